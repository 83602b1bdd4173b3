//! Each write of a group has its own answer.

use std::task::Poll;

use futures_util::future::join_all;
use podlock::{ErrorKind, NewRun, RunId};
use serde_json::{Value, json};

use super::super::stage::{Act, SOON, Stage, act, attempts};
use super::{
    FEW, GROUP_OF_STARTS, GROUP_OF_WRITES, Gate, MANY, acts, checkpoint_of, is_blocked, occupy, roomy, transactions,
};
use crate::support::{Db, eventually, sql, timed};

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
        assert!(seen <= FEW, "{MANY} starts in {seen} transactions");
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
        assert!(seen <= FEW, "{MANY} checkpoints in {seen} transactions");
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
        assert!(seen <= FEW, "{MANY} ends in {seen} transactions");
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
