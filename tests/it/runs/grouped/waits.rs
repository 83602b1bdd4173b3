//! What a write waits for, and what it does not wait for.

use std::task::Poll;

use futures_util::future::join_all;
use podlock::{ErrorKind, NewRun, StopReason};
use serde_json::{Value, json};

use super::super::stage::{Act, SOON, Stage, act, behind_proxy, take_key};
use super::{GROUP_OF_STARTS, GROUP_OF_WRITES, Gate, acts, checkpoint_of, is_blocked, occupy, roomy};
use crate::support::proxy::Flow;
use crate::support::{Db, eventually, sql, timed};

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
            take_key(&txn, &format!("k{n}")).await;
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
