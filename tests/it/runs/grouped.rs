//! Writes that wait for one another go together, and each of them has its own answer.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use podlock::{ErrorKind, NewRun, Pod, Run, RunId, StopReason};
use serde_json::{Value, json};
use tokio_postgres::Transaction;

use super::stage::{Act, SOON, Stage, act, attempts, behind_proxy, story};
use crate::support::process::Process;
use crate::support::proxy::{Flow, Proxy};
use crate::support::sql::{self, Client};
use crate::support::{Db, eventually, lease, timed};

/// More than there are statements at a time.
const MANY: usize = 100;
/// The beginnings of the statements that make the writes of several runs.
const GROUP_OF_WRITES: &str = "WITH writes AS%";
const GROUP_OF_STARTS: &str = "WITH patience AS%";

fn roomy(c: &mut podlock::Config) {
    c.capacity = 1000;
}

/// Lets nobody write a run until it is opened. Writes that begin meanwhile are grouped: the first ones hold all slots.
struct Gate<'a>(Transaction<'a>);

impl<'a> Gate<'a> {
    async fn close(client: &'a mut Client) -> Self {
        let gate = client.transaction().await.unwrap();
        Self::close_in(gate).await
    }

    /// The transaction keeps the locks that it has so far when the gate is opened.
    async fn close_in(txn: Transaction<'a>) -> Self {
        txn.batch_execute("SAVEPOINT gate; LOCK TABLE studio_runs IN EXCLUSIVE MODE").await.unwrap();
        Self(txn)
    }

    async fn open(self) -> Transaction<'a> {
        self.0.batch_execute("ROLLBACK TO gate").await.unwrap();
        self.0
    }
}

/// Waits until a statement of a pod's pool waits for a lock: one, or several.
async fn is_blocked(client: &Client, statement: &str) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name LIKE 'podlock/%/pool' AND wait_event_type = 'Lock' AND query LIKE $1";
    eventually(SOON, &format!("a statement like {statement:?} waits for a lock"), || async {
        if client.scalar::<i64>(sql, &[&statement]).await > 0 { Ok(()) } else { Err("none waits".to_owned()) }
    })
    .await;
}

/// Attempts of so many runs of a pod.
async fn acts(stage: &Stage, pod: &Pod, count: usize) -> Vec<Act> {
    for started in pod.start_many((0..count).map(|_| act())).await {
        started.unwrap();
    }
    stage.acts(count).await
}

async fn checkpoint_of(client: &Client, run: &Run) -> Value {
    let sql = "SELECT COALESCE(checkpoint, 'null') FROM studio_runs WHERE run_id = $1";
    client.scalar(sql, &[&run.id().as_uuid()]).await
}

/// In how many transactions the rows of the runs were last written.
async fn transactions(client: &Client) -> usize {
    let count: i64 = client.scalar("SELECT count(DISTINCT xmin::text) FROM studio_runs", &[]).await;
    usize::try_from(count).unwrap()
}

/// Issue: "a lone write goes at once; what arrives while statements are under way goes together in the next ones".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_wait_for_one_another_go_in_few_transactions() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy)).await;
        let mut client = sql::connect(&db.url).await;

        let gate = Gate::close(&mut client).await;
        let starts = a.start_many((0..MANY).map(|n| act().input(json!(n))));
        tokio::pin!(starts);
        assert!(futures_util::poll!(&mut starts).is_pending());
        is_blocked(&db.client, GROUP_OF_STARTS).await;
        gate.open().await.commit().await.unwrap();
        let started: Vec<_> = starts.await.into_iter().map(|started| started.unwrap()).collect();
        let seen = transactions(&db.client).await;
        assert!(seen < 20, "{MANY} starts in {seen} transactions");
        let acts = stage.acts(MANY).await;
        for (n, started) in started.iter().enumerate() {
            let begun = acts.iter().find(|act| act.run.id() == started.run_id).expect("each begins");
            assert_eq!((begun.run.input(), begun.run.fence()), (&json!(n), started.fence), "the results are in order");
        }

        let gate = Gate::close(&mut client).await;
        let saving = join_all(acts.iter().enumerate().map(|(n, act)| act.run.checkpoint(json!({"at": n}))));
        tokio::pin!(saving);
        assert!(futures_util::poll!(&mut saving).is_pending());
        is_blocked(&db.client, GROUP_OF_WRITES).await;
        gate.open().await.commit().await.unwrap();
        saving.await.into_iter().for_each(|saved| saved.unwrap());
        let seen = transactions(&db.client).await;
        assert!(seen <= 8, "{MANY} checkpoints in {seen} transactions");
        for (n, act) in acts.iter().enumerate() {
            assert_eq!(checkpoint_of(&db.client, &act.run).await, json!({"at": n}));
        }

        let gate = Gate::close(&mut client).await;
        let ending = join_all(acts.iter().enumerate().map(|(n, act)| act.run.finish(json!(n))));
        tokio::pin!(ending);
        assert!(futures_util::poll!(&mut ending).is_pending());
        is_blocked(&db.client, GROUP_OF_WRITES).await;
        gate.open().await.commit().await.unwrap();
        ending.await.into_iter().for_each(|ended| _ = ended.unwrap());
        let seen = transactions(&db.client).await;
        assert!(seen <= 8, "{MANY} ends in {seen} transactions");
        for (n, act) in acts.iter().enumerate() {
            let sql = "SELECT result FROM studio_runs WHERE run_id = $1 AND state = 'succeeded'";
            let result: Value = db.client.scalar(sql, &[&act.run.id().as_uuid()]).await;
            assert_eq!(result, json!(n));
            let attempts = attempts(&db.client, act.run.id()).await;
            assert_eq!(attempts[0].reason.as_deref(), Some("succeeded"));
        }
    })
    .await;
}

/// Issue: "On shutdown it drains".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_yields_of_a_drain_go_together() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy)).await;
        let acts = acts(&stage, &a, MANY).await;
        let mut client = sql::connect(&db.url).await;
        let gate = Gate::close(&mut client).await;
        acts.into_iter().for_each(Act::give_back);
        is_blocked(&db.client, GROUP_OF_WRITES).await;
        let stop = tokio::spawn(async move { a.shutdown(SOON).await });
        gate.open().await.commit().await.unwrap();
        let report = stop.await.unwrap().unwrap();
        assert_eq!(report.aborted, 0);
        let sql = "SELECT count(*) FROM studio_runs r JOIN studio_run_attempts a USING (run_id) \
                   WHERE r.state = 'running' AND r.owner_incarnation IS NULL AND a.reason = 'yielded'";
        assert_eq!(db.client.scalar::<i64>(sql, &[]).await, i64::try_from(MANY).unwrap());
        let seen = transactions(&db.client).await;
        assert!(seen <= MANY / 2, "{MANY} yields in {seen} transactions");
    })
    .await;
}

/// Issue: "Each caller gets its own answer (started, key busy with its run, no owner, fenced, too large, late); one
/// that fails does not fail its neighbours". L5: owner and fence are in the condition of each row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_of_a_group_has_its_own_answer() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.checkpoint_max_bytes = 1000)).await;
        let acts = acts(&stage, &a, 20).await;
        // A trigger of somebody else's refuses one value.
        let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                         IF new.checkpoint->>'at' = '13' THEN \
                           RAISE EXCEPTION 'thirteen' USING ERRCODE = 'MY001'; END IF; RETURN new; END $$; \
                       CREATE TRIGGER refuse BEFORE UPDATE ON studio_runs FOR EACH ROW EXECUTE FUNCTION refuse()";
        db.client.batch_execute(trigger).await.unwrap();
        let (stolen, locked, bad, large) = (7, 11, 13, 17);
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let lock = "SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE";
        txn.execute(lock, &[&acts[locked].run.id().as_uuid()]).await.unwrap();
        // One run is another's by now, and its pod does not know.
        let taken = "UPDATE studio_runs SET fence = nextval('studio_fence'), owner_incarnation = gen_random_uuid() \
                     WHERE run_id = $1";
        db.client.execute(taken, &[&acts[stolen].run.id().as_uuid()]).await.unwrap();
        let gate = Gate::close_in(txn).await;
        let value = |n| if n == large { json!({"at": n, "pad": "x".repeat(1000)}) } else { json!({"at": n}) };
        let mut saving: Vec<_> =
            acts.iter().enumerate().map(|(n, act)| Box::pin(act.run.checkpoint(value(n)))).collect();
        let mut answers = Vec::new();
        for (n, saving) in saving.iter_mut().enumerate() {
            if let Poll::Ready(answer) = futures_util::poll!(saving) {
                answers.push((n, answer));
            }
        }
        assert_eq!(answers.len(), 1, "one is refused without a statement");
        is_blocked(&db.client, GROUP_OF_WRITES).await;
        let lock = gate.open().await;
        // The one that is locked waits, and nobody waits for it.
        let mut waits = saving.remove(locked);
        for (n, saving) in saving.into_iter().enumerate().map(|(n, s)| (if n < locked { n } else { n + 1 }, s)) {
            if n != large {
                answers.push((n, saving.await));
            }
        }
        assert!(futures_util::poll!(&mut waits).is_pending());
        for (n, answer) in answers {
            let saved = checkpoint_of(&db.client, &acts[n].run).await;
            match answer {
                Ok(()) => assert_eq!(saved, json!({"at": n})),
                Err(e) => {
                    assert_eq!(saved, Value::Null, "{e}");
                    match n {
                        _ if n == stolen => assert!(e.is_fenced(), "{e}"),
                        _ if n == large => assert_eq!(e.kind(), ErrorKind::TooLarge),
                        _ if n == bad => assert!(e.to_string().contains("thirteen"), "{e}"),
                        _ => panic!("a neighbour failed: {n}: {e}"),
                    }
                }
            }
        }
        lock.commit().await.unwrap();
        waits.await.unwrap();
        assert_eq!(checkpoint_of(&db.client, &acts[locked].run).await, json!({"at": locked}));
    })
    .await;
}

/// Checkpoints of runs that the transaction locks: they hold every slot for a moment, and what begins meanwhile is
/// grouped.
async fn occupy<'a>(
    txn: &Transaction<'_>,
    acts: &'a [Act],
) -> Vec<Pin<Box<dyn Future<Output = podlock::Result<()>> + 'a>>> {
    for act in acts {
        let lock = "SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE";
        txn.execute(lock, &[&act.run.id().as_uuid()]).await.unwrap();
    }
    let mut waiting = Vec::new();
    for act in acts {
        let mut saving: Pin<Box<dyn Future<Output = _>>> = Box::pin(act.run.checkpoint(json!("locked")));
        assert!(futures_util::poll!(&mut saving).is_pending());
        waiting.push(saving);
    }
    waiting
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_start_of_a_group_has_its_own_answer() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy).with(|c| c.statement_timeout = Some(SOON))).await;
        let locked = acts(&stage, &a, 3).await;
        let holder = a.start(act().key("busy")).await.unwrap().run_id;
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let key = |n: usize| match n % 4 {
            0 => act().key("busy"),
            1 => act().key("twins"),
            2 => act().key(format!("own-{n}")),
            _ => act(),
        };
        let mut both = Box::pin(async {
            let submits = a.submit_many((0..MANY).map(|n| key(n).input(json!("submitted"))));
            tokio::join!(a.start_many((0..MANY).map(key)), submits)
        });
        let waiting = occupy(&txn, &locked).await;
        assert!(futures_util::poll!(&mut both).is_pending());
        let sql = "SELECT count(*), count(DISTINCT xmin::text) FROM studio_runs WHERE key IS NOT NULL";
        let all = 2 + i64::try_from(MANY).unwrap() / 4;
        eventually(SOON, "each key is taken", || async {
            let row = db.client.query_one(sql, &[]).await.unwrap();
            match (row.get::<_, i64>(0), row.get::<_, i64>(1)) {
                (keys, transactions) if keys == all && transactions < 10 => Ok(()),
                seen => Err(format!("{seen:?}")),
            }
        })
        .await;
        txn.rollback().await.unwrap();
        for saved in waiting {
            saved.await.unwrap();
        }
        let (starts, submits) = both.await;
        let mut ids: Vec<podlock::Result<RunId>> =
            starts.into_iter().map(|started| started.map(|started| started.run_id)).collect();
        ids.extend(submits);
        let twin: uuid::Uuid = db.client.scalar("SELECT run_id FROM studio_runs WHERE key = 'twins'", &[]).await;
        let mut twins = 0;
        for (n, id) in ids.into_iter().enumerate() {
            let holder = if n % 4 == 0 { holder.as_uuid() } else { twin };
            match (n % 4, id) {
                (1, Ok(id)) if id.as_uuid() == twin => twins += 1,
                (0 | 1, Err(e)) => {
                    assert_eq!(e.kind(), ErrorKind::KeyBusy, "{e}");
                    assert!(e.to_string().contains(&holder.to_string()), "{e}");
                }
                // A start and a submit have the same key here.
                (2, Err(e)) => assert_eq!(e.kind(), ErrorKind::KeyBusy, "{e}"),
                (2 | 3, Ok(_)) => {}
                (_, other) => panic!("{n}: {other:?}"),
            }
        }
        assert_eq!(twins, 1);
        assert_eq!(db.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), all);
    })
    .await;
}

/// L6: a run whose owner is not in the roster, or drains, would be an orphan at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_that_wait_while_their_pod_begins_to_drain_are_refused() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy)).await;
        let mut client = sql::connect(&db.url).await;
        let gate = Gate::close(&mut client).await;
        let starts = a.start_many((0..MANY).map(|_| act()));
        tokio::pin!(starts);
        assert!(futures_util::poll!(&mut starts).is_pending());
        is_blocked(&db.client, GROUP_OF_STARTS).await;
        db.client.batch_execute("UPDATE studio_pods SET state = 'draining'").await.unwrap();
        gate.open().await.commit().await.unwrap();
        for started in starts.await {
            let error = started.expect_err("the pod drains");
            assert!(matches!(error.kind(), ErrorKind::Detached | ErrorKind::Draining), "{error}");
        }
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 0);
    })
    .await;
}

/// A key that another transaction is inserting. The starts of other keys do not wait until that ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_that_is_being_inserted_does_not_hold_the_others_up() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.statement_timeout = Some(SOON))).await;
        let locked = acts(&stage, &a, 3).await;
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let taken = [4, 9, 14, 19, 24, 29];
        for n in taken {
            super::stage::take_key(&txn, &format!("k{n}")).await;
        }
        let mut other = sql::connect(&db.url).await;
        let other = other.transaction().await.unwrap();
        let waiting = occupy(&other, &locked).await;
        let mut starts: Vec<_> = (0..30).map(|n| Box::pin(a.start(act().key(format!("k{n}"))))).collect();
        for start in &mut starts {
            assert!(futures_util::poll!(start).is_pending());
        }
        is_blocked(&db.client, GROUP_OF_STARTS).await;
        other.rollback().await.unwrap();
        for saved in waiting {
            saved.await.unwrap();
        }
        let mut waits = Vec::new();
        for (n, start) in starts.into_iter().enumerate() {
            if taken.contains(&n) {
                waits.push(start);
            } else {
                start.await.unwrap();
            }
        }
        for waits in &mut waits {
            assert!(futures_util::poll!(waits).is_pending());
        }
        txn.rollback().await.unwrap();
        for waits in waits {
            waits.await.unwrap();
        }
    })
    .await;
}

/// L12. Of the runs that are locked, two hold a connection each. All that need not wait for them is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_locked_runs_hold_up_no_write_that_needs_no_lock() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.statement_timeout = Some(SOON))).await;
        let all = acts(&stage, &a, 16).await;
        let (locked, others) = all.split_at(12);
        let holder = a.start(act().key("busy")).await.unwrap().run_id;
        let taken = "UPDATE studio_runs SET fence = nextval('studio_fence'), owner_incarnation = gen_random_uuid() \
                     WHERE run_id = $1";
        db.client.execute(taken, &[&others[0].run.id().as_uuid()]).await.unwrap();
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let waiting = occupy(&txn, locked).await;
        let mut waiting = Box::pin(join_all(waiting));
        {
            let answered = async {
                for _ in 0..3 {
                    let busy = a.start(act().key("busy")).await.unwrap_err();
                    assert_eq!((busy.kind(), busy.run_id()), (ErrorKind::KeyBusy, Some(holder)), "{busy}");
                    a.start(act()).await.unwrap();
                    a.submit(NewRun::new("elsewhere")).await.unwrap();
                    others[1].run.checkpoint(json!("saved")).await.unwrap();
                }
                assert!(others[0].run.checkpoint(json!("stale")).await.unwrap_err().is_fenced());
                others[2].run.finish(json!("ended")).await.unwrap();
            };
            // The locked ones are polled meanwhile, as their handlers would.
            tokio::select! {
                biased;
                () = answered => {}
                _ = &mut waiting => panic!("they are locked"),
            }
        }
        txn.rollback().await.unwrap();
        waiting.await.into_iter().for_each(|saved| saved.unwrap());
    })
    .await;
}

/// A commit that notifies may wait for those of other sessions. No short time-out of a group is in force then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_short_wait_for_keys_is_over_at_the_commit() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.statement_timeout = Some(SOON))).await;
        let locked = acts(&stage, &a, 3).await;
        let trigger = "CREATE TABLE at_commit (wait text, xid text); GRANT INSERT ON at_commit TO PUBLIC; \
                       CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                         INSERT INTO public.at_commit VALUES (current_setting('lock_timeout'), \
                           pg_current_xact_id()::text); RETURN NULL; END $$; \
                       CREATE CONSTRAINT TRIGGER note AFTER INSERT ON studio_runs DEFERRABLE INITIALLY DEFERRED \
                         FOR EACH ROW EXECUTE FUNCTION note()";
        db.client.batch_execute(trigger).await.unwrap();
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let waiting = occupy(&txn, &locked).await;
        let key = |n: usize| act().key(format!("k{n}"));
        let starts = a.start_many((0..30).map(key));
        let (started, submitted) = tokio::join!(starts, a.submit_many((30..60).map(key)));
        started.into_iter().for_each(|started| _ = started.unwrap());
        submitted.into_iter().for_each(|submitted| _ = submitted.unwrap());
        let row = db.client.query_one("SELECT count(*), count(DISTINCT xid), min(wait), max(wait) FROM at_commit", &[]);
        let row = row.await.unwrap();
        let (runs, transactions): (i64, i64) = (row.get(0), row.get(1));
        assert!(runs == 60 && transactions < 30, "{runs} runs in {transactions} transactions");
        let usual = format!("{}min", SOON.as_secs() / 60);
        assert_eq!((row.get::<_, &str>(2), row.get::<_, &str>(3)), (&*usual, &*usual));
        txn.rollback().await.unwrap();
        for saved in waiting {
            saved.await.unwrap();
        }
    })
    .await;
}

/// L7: a group that had to wait for a connection is not sent past the deadline of its pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_writes_that_wait_while_their_pod_falls_silent_are_not_sent() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.statement_timeout = Some(SOON))).await;
        let acts = acts(&stage, &a, 12).await;
        let mut client = sql::connect(&db.url).await;
        let gate = Gate::close(&mut client).await;
        let save = |act: &Act| {
            let run = act.run.clone();
            tokio::spawn(async move { run.checkpoint(json!("late")).await })
        };
        let blocked = async |count: i64| {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'podlock/a/pool' AND wait_event_type = 'Lock'";
            eventually(SOON, &format!("{count} statements wait"), || async {
                match db.client.scalar::<i64>(sql, &[]).await {
                    seen if seen >= count => Ok(()),
                    seen => Err(format!("{seen}")),
                }
            })
            .await;
        };
        // Two alone and two groups take all connections of the pool.
        let mut saving: Vec<_> = acts[..6].iter().map(save).collect();
        blocked(3).await;
        saving.extend(acts[6..9].iter().map(save));
        blocked(4).await;
        let late: Vec<_> = acts[9..].iter().map(save).collect();
        proxy.all(&["liveness", "control", "watch"], Flow::Hole);
        assert_eq!(acts[11].run.stopped().await, StopReason::SelfFenced);
        gate.open().await.commit().await.unwrap();
        for (saving, act) in late.into_iter().zip(&acts[9..]) {
            assert!(saving.await.unwrap().unwrap_err().is_fenced());
            assert_eq!(checkpoint_of(&db.client, &act.run).await, Value::Null);
        }
    })
    .await;
}

/// Two transactions take keys in one order, whatever the collation of the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_runs_in_two_transactions_do_not_deadlock() {
    timed(async {
        let (db, stage) = (Db::in_english().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let (mut one, mut two) = (sql::connect(&db.url).await, sql::connect(&db.url).await);
        let txn = one.transaction().await.unwrap();
        let key = |key: &str| NewRun::new("elsewhere").key(key);
        a.submit_many_in_txn(&txn, &[key("B")]).await.unwrap()[0].as_ref().unwrap();
        let other = a.clone();
        let waits = tokio::spawn(async move {
            let txn = two.transaction().await.unwrap();
            let both = other.submit_many_in_txn(&txn, &[key("a"), key("B")]).await.unwrap();
            txn.commit().await.unwrap();
            both
        });
        let blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND wait_event_type = 'Lock' AND query LIKE 'WITH patience AS%'";
        eventually(SOON, "the other waits", || async {
            if db.client.scalar::<i64>(blocked, &[]).await > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        a.submit_many_in_txn(&txn, &[NewRun::new("elsewhere").key("a")]).await.unwrap()[0].as_ref().unwrap();
        txn.commit().await.unwrap();
        for busy in waits.await.unwrap() {
            assert_eq!(busy.unwrap_err().kind(), ErrorKind::KeyBusy);
        }
    })
    .await;
}

/// A search among many rows that are refused gives up. The sound ones are made all the same, each alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_ends_among_many_that_are_refused_are_written() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| (c.capacity, c.statement_timeout) = (1000, Some(SOON)))).await;
        let acts = acts(&stage, &a, 120).await;
        let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                         IF new.result::int % 3 = 0 THEN RAISE EXCEPTION 'thirds' USING ERRCODE = 'MY001'; END IF; \
                         RETURN new; END $$; \
                       CREATE TRIGGER refuse BEFORE UPDATE ON studio_runs \
                         FOR EACH ROW WHEN (new.state <> 'running') EXECUTE FUNCTION refuse()";
        db.client.batch_execute(trigger).await.unwrap();
        let ends = join_all(acts.iter().enumerate().map(|(n, act)| act.run.finish(json!(n)))).await;
        for (n, ended) in ends.into_iter().enumerate() {
            match ended {
                Ok(_) => assert_ne!(n % 3, 0),
                Err(e) => assert!(n % 3 == 0 && e.sqlstate() == Some("MY001"), "{n}: {e}"),
            }
        }
    })
    .await;
}

/// A handler may poll a write and then do something else for a long time. Such writes keep no slot from others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_nobody_polls_hold_no_others_up() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy)).await;
        let acts = acts(&stage, &a, 20).await;
        let (asleep, awake) = acts.split_at(5);
        let mut sleeping = Vec::new();
        for act in asleep {
            let mut saving = Box::pin(act.run.checkpoint(json!("asleep")));
            match futures_util::poll!(&mut saving) {
                Poll::Pending => sleeping.push((act, saving)),
                // This thread stood still for as long as the write took.
                Poll::Ready(saved) => saved.unwrap(),
            }
        }
        for n in 0..3 {
            let saving = join_all(awake.iter().map(|act| act.run.checkpoint(json!(n)))).await;
            saving.into_iter().for_each(|saved| saved.unwrap());
        }
        for (act, sleeping) in sleeping {
            sleeping.await.unwrap();
            assert_eq!(checkpoint_of(&db.client, &act.run).await, json!("asleep"));
        }
    })
    .await;
}

/// Writes that wait when their pod ends have an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_the_writer_of_a_pod_that_has_ended() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy)).await;
        let acts = acts(&stage, &a, 20).await;
        let mut client = sql::connect(&db.url).await;
        let gate = Gate::close(&mut client).await;
        let saving = join_all(acts.iter().map(|act| act.run.checkpoint(json!("last"))));
        tokio::pin!(saving);
        assert!(futures_util::poll!(&mut saving).is_pending());
        is_blocked(&db.client, GROUP_OF_WRITES).await;
        drop(a);
        eventually(SOON, "the pod has ended", || async {
            let there = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                         AND application_name LIKE 'podlock/a/%' AND application_name <> 'podlock/a/pool'";
            match db.client.scalar::<i64>(there, &[]).await {
                0 => Ok(()),
                there => Err(format!("{there} sessions")),
            }
        })
        .await;
        gate.open().await.commit().await.unwrap();
        for (answer, act) in saving.await.into_iter().zip(&acts) {
            let saved = checkpoint_of(&db.client, &act.run).await == json!("last");
            match answer {
                Ok(()) => assert!(saved),
                Err(e) => assert!(!saved || e.may_have_been_done(), "{e:?}"),
            }
        }
    })
    .await;
}

/// Holds the statements of pods that write runs once they are under way, until it is opened.
struct Pause<'a>(&'a Client);

impl<'a> Pause<'a> {
    async fn install(db: &Db) {
        let trigger = "CREATE FUNCTION test_pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                         PERFORM pg_catalog.pg_advisory_xact_lock_shared(77); RETURN NULL; END $$; \
                       CREATE TRIGGER test_pause BEFORE INSERT OR UPDATE ON studio_runs \
                         FOR EACH STATEMENT EXECUTE FUNCTION test_pause()";
        db.client.batch_execute(trigger).await.unwrap();
    }

    async fn begin(client: &'a Client) -> Self {
        client.batch_execute("SELECT pg_advisory_lock(77)").await.unwrap();
        Self(client)
    }

    async fn end(self) {
        self.0.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    }
}

/// Makes `writes` while the pod's statements are held, and loses the replies of those that then commit. `committed`
/// counts the writes that the tables show.
async fn with_lost_replies<T>(
    db: &Db,
    proxy: &Proxy,
    group: &str,
    committed: &str,
    writes: impl Future<Output = T>,
) -> T {
    let client = sql::connect(&db.url).await;
    let pause = Pause::begin(&client).await;
    tokio::pin!(writes);
    assert!(futures_util::poll!(&mut writes).is_pending());
    is_blocked(&db.client, group).await;
    proxy.present(&["pool"], Flow::Mute);
    pause.end().await;
    eventually(SOON, "a write is committed", || async {
        match db.client.scalar::<i64>(committed, &[]).await {
            n if n > 0 => Ok(()),
            n => Err(format!("{n} writes")),
        }
    })
    .await;
    proxy.present(&["pool"], Flow::Cut);
    writes.await
}

/// Issue: "what was sent and got no reply is repeated under the numbers that make repetition harmless".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_whose_replies_are_lost_are_written_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        Pause::install(&db).await;
        let (proxy, config) = behind_proxy(&db, "a").await;
        // Longer than a statement may take: only the cut ends it.
        let patient = |c: &mut podlock::Config| c.statement_timeout = Some(Duration::from_secs(20));
        let a = stage.pod(config.with(patient).with(roomy)).await;
        let all = i64::try_from(MANY).unwrap();

        let runs = "SELECT count(*) FROM studio_runs";
        let starts = a.start_many((0..MANY).map(|n| act().input(json!(n))));
        for started in with_lost_replies(&db, &proxy, GROUP_OF_STARTS, runs, starts).await {
            started.expect("started, by this try or the next");
        }
        let acts = stage.acts(MANY).await;
        stage.nothing_more_has_begun().await;
        assert_eq!(db.client.scalar::<i64>(runs, &[]).await, all);

        let saved = "SELECT count(*) FROM studio_runs WHERE checkpoint IS NOT NULL";
        let saving = join_all(acts.iter().map(|act| act.run.checkpoint(json!("saved"))));
        for saved in with_lost_replies(&db, &proxy, GROUP_OF_WRITES, saved, saving).await {
            saved.expect("saved, by this try or the next");
        }
        assert_eq!(db.client.scalar::<i64>(saved, &[]).await, all);

        let ended = "SELECT count(*) FROM studio_runs WHERE state = 'succeeded'";
        let ending = join_all(acts.iter().map(|act| act.run.finish(json!("once"))));
        for ended in with_lost_replies(&db, &proxy, GROUP_OF_WRITES, ended, ending).await {
            ended.expect("ended, by this try or an earlier one");
        }
        assert_eq!(db.client.scalar::<i64>(ended, &[]).await, all);
        for act in &acts {
            assert_eq!(attempts(&db.client, act.run.id()).await.len(), 1);
        }
    })
    .await;
}

/// Issue: "500 tasks that write at once with random cancellation". What was acknowledged is there, a later write is
/// never replaced by an earlier one, and nobody waits for a write that nobody wants any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_give_writes_up_at_random_lose_nothing_that_was_acknowledged() {
    const TASKS: usize = 500;
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy)).await;
        let acts = acts(&stage, &a, TASKS).await;
        let writing = acts.into_iter().enumerate().map(|(task, act)| {
            tokio::spawn(async move {
                let mut dice = u64::try_from(task).unwrap() * 2 + 1;
                let (mut acknowledged, mut last) = (0, 0);
                for n in 1..=20_i64 {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let patience = Duration::from_micros(dice >> 50);
                    last = n;
                    // A third of the writes have all the time that they need.
                    let saved = if dice >> 40 & 3 == 0 {
                        Some(act.run.checkpoint(json!(n)).await)
                    } else {
                        tokio::time::timeout(patience, act.run.checkpoint(json!(n))).await.ok()
                    };
                    if let Some(saved) = saved {
                        saved.unwrap();
                        acknowledged = n;
                    }
                }
                (act, acknowledged, last)
            })
        });
        for written in join_all(writing).await {
            let (act, acknowledged, last) = written.unwrap();
            let saved = checkpoint_of(&db.client, &act.run).await.as_i64().unwrap_or(0);
            assert!((acknowledged..=last).contains(&saved), "{acknowledged} was acknowledged, and {saved} is there");
            act.done(json!(null));
        }
        eventually(SOON, "all have ended", || async {
            let left = "SELECT count(*) FROM studio_runs WHERE state <> 'succeeded'";
            match db.client.scalar::<i64>(left, &[]).await {
                0 => Ok(()),
                left => Err(format!("{left} runs")),
            }
        })
        .await;
    })
    .await;
}

/// Issue: "`submit_many` (also in the caller's transaction) with one result each".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_of_a_transaction_have_one_result_each_and_begin_when_it_commits() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.capacity = 40)).await;
        let holder = a.submit(NewRun::new("elsewhere").key("busy")).await.unwrap();
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        // More than there is room for, one without a handler, and twins.
        let mut new: Vec<NewRun> = (0..60).map(|n| act().key(format!("k{}", n / 2 * 2)).input(json!(n))).collect();
        new.push(NewRun::new("elsewhere"));
        let started = a.start_many_in_txn(&txn, &new).await.unwrap();
        let submits =
            [NewRun::new("elsewhere").key("busy"), NewRun::new("elsewhere").input(json!("x".repeat(2_000_000)))];
        let submitted = a.submit_many_in_txn(&txn, &submits).await.unwrap();
        assert_eq!(a.start_many_in_txn(&txn, &[]).await.unwrap().len(), 0);
        txn.commit().await.unwrap();
        let kinds: Vec<Option<ErrorKind>> =
            started.iter().map(|s| s.as_ref().err().map(podlock::Error::kind)).collect();
        assert_eq!(kinds.len(), 61);
        assert_eq!(kinds.iter().filter(|kind| kind.is_none()).count(), 20, "every other of those with a place");
        assert_eq!(kinds[..40].iter().filter(|kind| **kind == Some(ErrorKind::KeyBusy)).count(), 20);
        assert!(kinds[40..60].iter().all(|kind| *kind == Some(ErrorKind::AtCapacity)), "{kinds:?}");
        assert_eq!(kinds[60], Some(ErrorKind::NoHandler));
        let busy = submitted[0].as_ref().unwrap_err();
        assert!(busy.kind() == ErrorKind::KeyBusy && busy.to_string().contains(&holder.to_string()), "{busy}");
        submitted[1].as_ref().unwrap();
        let begun = stage.acts(20).await;
        for act in &begun {
            let n = act.run.input().as_u64().and_then(|n| usize::try_from(n).ok()).unwrap();
            assert_eq!(*started[n].as_ref().unwrap(), act.run.id(), "the results are in order");
        }
    })
    .await;
}

/// Issue: "a crash of the pod between send and reply at each write". The server makes what the dead pod had sent, and
/// nobody hears of it. Each run ends once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_whose_pod_is_killed_while_its_writes_are_under_way_end_once() {
    timed(async {
        let db = Db::new().await;
        Pause::install(&db).await;
        let client = sql::connect(&db.url).await;
        let process = async |name: &'static str| {
            let url = db.pod_url.clone();
            tokio::task::spawn_blocking(move || Process::start(&url, name, lease())).await.unwrap()
        };
        let _survivor = process("survivor").await;
        let front = db.pod("front").await;
        let demo = || NewRun::new("demo").input(json!({"chunks": 5, "delay_ms": 20, "resume": "continue"}));
        let mut runs = Vec::new();
        for name in ["first", "second"] {
            let victim = process(name).await;
            for submitted in front.submit_many((0..60).map(|_| demo())).await {
                runs.push(submitted.unwrap());
            }
            let under_way = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND application_name = 'podlock/{name}/pool' AND wait_event_type = 'Lock' AND query LIKE '%studio_runs%'"
            );
            let owned = format!("SELECT count(*) FROM studio_runs WHERE owner_pod = '{name}' AND state = 'running'");
            eventually(SOON, "the victim executes runs", || async {
                if db.client.scalar::<i64>(&owned, &[]).await > 0 { Ok(()) } else { Err("none yet".to_owned()) }
            })
            .await;
            let pause = Pause::begin(&client).await;
            eventually(SOON, "writes of the victim are under way", || async {
                if db.client.scalar::<i64>(&under_way, &[]).await > 0 { Ok(()) } else { Err("none".to_owned()) }
            })
            .await;
            victim.signal(rustix::process::Signal::KILL);
            drop(victim);
            pause.end().await;
        }
        for run in runs {
            db.client.run_in_state(run, "succeeded", SOON).await;
            let story = story(&db.client, run).await;
            let ends = story.iter().filter(|(_, reason)| reason.as_deref() == Some("succeeded")).count();
            assert_eq!((ends, story.last().and_then(|(_, reason)| reason.as_deref())), (1, Some("succeeded")), "{story:?}");
        }
    })
    .await;
}
