//! The clean stop: what may finish finishes, what can be handed over is, and nothing overlaps.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podlock::{ErrorKind, NewRun, Outcome, Phase, Pod, Run, StopReason};
use serde_json::json;

use super::stage::{SOON, START, Stage, act, blocked, detail_of_event, story, take_key, told};
use crate::support::{Db, eventually, lease, sql, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_lets_runs_finish_or_yield_and_aborts_the_rest() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        for key in ["finishes", "yields", "fails", "hangs"] {
            a.start(act().key(key)).await.unwrap();
        }
        let mut acts = stage.acts(4).await;
        acts.sort_by(|x, y| x.run.key().cmp(&y.run.key()));
        let [fails, finishes, hangs, yields] = acts.try_into().ok().unwrap();
        let b = stage.pod(db.config("b")).await;
        let dead = a.incarnation();
        let stopping = tokio::spawn(a.shutdown(Duration::from_secs(2)));
        for act in [&fails, &finishes, &hangs, &yields] {
            let reason = tokio::time::timeout(SOON, act.run.stopped()).await.expect("told to stop");
            assert_eq!(reason, StopReason::Draining);
        }
        let ids = [&fails, &finishes, &hangs, &yields].map(|act| act.run.id());
        finishes.run.checkpoint(json!(1)).await.expect("writes are accepted during the drain");
        finishes.done(json!("done"));
        yields.run.checkpoint(json!({"at": 3})).await.unwrap();
        yields.give_back();
        fails.fail("told to stop");
        let report = stopping.await.unwrap().unwrap();
        assert_eq!((report.finished, report.yielded, report.aborted), (1, 2, 1), "{report:?}");
        db.client.run_in_state(ids[1], "succeeded", SOON).await;
        for run_id in [ids[0], ids[2], ids[3]] {
            db.client.run_owned_by(run_id, b.incarnation(), SOON).await;
        }
        let resumed = stage.acts(3).await;
        let at = resumed.iter().find(|act| act.run.id() == ids[3]).unwrap();
        assert_eq!(at.run.saved(), Some(&json!({"at": 3})));
        assert_eq!(
            story(&db.client, ids[0]).await,
            told(&[("a", Some("yielded")), ("b", None)]),
            "an error while draining is a yield"
        );
        assert_eq!(story(&db.client, ids[1]).await, told(&[("a", Some("succeeded"))]));
        assert_eq!(story(&db.client, ids[2]).await, told(&[("a", Some("shutdown")), ("b", None)]));
        assert_eq!(story(&db.client, ids[3]).await, told(&[("a", Some("yielded")), ("b", None)]));
        assert_eq!(db.client.session_end(dead).await, Some(("shutdown".into(), Some("b".into()))));
        for act in &resumed {
            assert_eq!(db.client.run(act.run.id()).await.crashes, 0, "a drain is no crash");
        }
        stage.nothing_more_has_begun().await;
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// L4: a pod never deletes its own row. Alone in the fleet, its end leaves everything for the next one to bury.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_the_row_and_the_owner_stay_until_a_survivor_buries_with_reason_shutdown() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let hangs = stage.act().await;
        let dead = a.incarnation();
        let report = a.shutdown(Duration::from_millis(50)).await.unwrap();
        assert_eq!((report.finished, report.yielded, report.aborted), (0, 0, 1));
        drop(hangs);
        // The session has been ended; the server's process takes a moment to go.
        eventually(SOON, "its row stays, draining, and its lock is free", || async {
            let sql = "SELECT state, alive FROM studio_pod_status WHERE pod_id = 'a'";
            let row = db.client.query_one(sql, &[]).await.unwrap();
            let seen = (row.get::<_, String>(0), row.get::<_, bool>(1));
            if seen == ("draining".to_owned(), false) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        let left = db.client.run(run_id).await;
        assert_eq!((left.state.as_str(), left.owner, left.attempt), ("running", Some(dead.as_uuid()), 1));
        assert_eq!(story(&db.client, run_id).await, told(&[("a", None)]));
        let _b = stage.pod(db.config("b")).await;
        let resumed = stage.act().await;
        assert_eq!((resumed.run.id(), resumed.run.attempt()), (run_id, 2));
        assert_eq!(db.client.session_end(dead).await, Some(("shutdown".into(), Some("b".into()))));
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("shutdown")), ("b", None)]));
        assert_eq!(db.client.run(run_id).await.crashes, 0);
    })
    .await;
}

struct SlowDrop(Arc<Mutex<Option<Instant>>>);

impl Drop for SlowDrop {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(300));
        *self.0.lock().unwrap() = Some(Instant::now());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_aborted_and_the_resumed_attempt_never_overlap() {
    timed(async {
        let db = Db::new().await;
        let dropped = Arc::new(Mutex::new(None));
        let resumed = Arc::new(Mutex::new(None));
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let config = |name| db.config(name).with(|c| c.sweep_interval = Some(Duration::from_millis(50)));
        let pod = |name| {
            let (dropped, resumed, begun) = (Arc::clone(&dropped), Arc::clone(&resumed), begun.clone());
            Pod::builder(config(name)).handler("slow", move |run: Run| {
                let (dropped, resumed, begun) = (Arc::clone(&dropped), Arc::clone(&resumed), begun.clone());
                async move {
                    if run.pod_id().as_str() == "b" {
                        *resumed.lock().unwrap() = Some(Instant::now());
                        return Ok(Outcome::Done(json!(run.attempt())));
                    }
                    let _slow = SlowDrop(dropped);
                    // The test listens until its end.
                    let _ = begun.send(());
                    std::future::pending::<()>().await;
                    Ok(Outcome::Yield)
                }
            })
        };
        let a = pod("a").start().await.unwrap();
        let _b = pod("b").start().await.unwrap();
        let run_id = a.start(NewRun::new("slow")).await.unwrap().run_id;
        begins.recv().await.unwrap();
        tokio::time::sleep(lease()).await;
        let report = a.shutdown(Duration::from_millis(20)).await.unwrap();
        assert_eq!(report.aborted, 1);
        assert!(dropped.lock().unwrap().is_some(), "joined before the shutdown returned");
        let end = db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(end.attempt, 2);
        let (dropped, resumed) = (dropped.lock().unwrap().unwrap(), resumed.lock().unwrap().unwrap());
        assert!(dropped <= resumed, "resumed {:?} before the aborted one had ended", dropped - resumed);
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("shutdown")), ("b", Some("succeeded"))]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_never_awaits_makes_the_shutdown_stuck_and_the_lock_stays() {
    timed(async {
        let db = Db::new().await;
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let block = move |_run: Run| {
            let (blocked, begun) = (Arc::clone(&blocked), begun.clone());
            async move {
                begun.send(())?;
                // Until the test lets go of the other end.
                let _ = blocked.lock().unwrap().recv();
                Ok(Outcome::Done(json!(null)))
            }
        };
        let lease = Duration::from_secs(2);
        let a = Pod::builder(db.config("a").lease(lease)).handler("block", block).start().await.unwrap();
        let dead = a.incarnation();
        let run_id = a.start(NewRun::new("block")).await.unwrap().run_id;
        begins.recv().await.unwrap();
        let error = a.shutdown(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stuck, "{error}");
        assert!(error.to_string().contains(&run_id.to_string()), "{error}");
        // For longer than any lease the lock is still held, although the call has taken the last handle with it.
        let until = Instant::now() + lease * 3 / 2;
        while Instant::now() < until {
            let alive: bool = db.client.scalar("SELECT alive FROM studio_pod_status WHERE pod_id = 'a'", &[]).await;
            assert!(alive, "the lock was let go while the handler runs");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let row = db.client.run(run_id).await;
        assert_eq!((row.state.as_str(), row.owner), ("running", Some(dead.as_uuid())));
        drop(release);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_asked_to_drain_takes_no_more_and_says_who_asked() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        a.start(act()).await.unwrap();
        let running = stage.act().await;
        let asked: uuid::Uuid = db.client.scalar("SELECT studio_drain('a')", &[]).await;
        assert_eq!(asked, a.incarnation().as_uuid());
        tokio::time::timeout(SOON, a.drain_requested()).await.expect("asked to drain");
        let me: String = db.client.scalar("SELECT session_user::text", &[]).await;
        let detail = eventually(SOON, "the event is there", || async {
            detail_of_event(&db.client, "draining", a.incarnation()).await.ok_or("none".to_owned())
        })
        .await;
        assert_eq!(detail["requested_by"], json!(me));
        assert_eq!(a.status().phase, Phase::Draining);
        assert_eq!(a.start(act()).await.unwrap_err().kind(), ErrorKind::Draining);
        let unowned = a.submit(act()).await.expect("for the others");
        running.run.checkpoint(json!(1)).await.expect("what runs goes on");
        assert_eq!(running.run.stop_reason(), None, "only the shutdown tells the runs");
        let b = stage.pod(db.config("b")).await;
        let taken = stage.act().await;
        assert_eq!((taken.run.id(), taken.run.incarnation()), (unowned, b.incarnation()));
        running.done(json!(null));
        a.shutdown(SOON).await.unwrap();
        let error = db.client.query("SELECT studio_drain('nobody')", &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "P0002");
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// A start that is under way when the deadline of the shutdown passes must not hold the stop up as stuck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_under_way_at_the_deadline_is_stopped_as_well() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.statement_timeout = Some(Duration::from_secs(20)))).await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        // The start has read its pod's row, and now waits to see what becomes of the key.
        take_key(&gate, "k").await;
        let starter = a.clone();
        let starting = tokio::spawn(async move { starter.start(act().key("k")).await });
        blocked(&db.client, START, 1).await;
        let stopping = tokio::spawn(a.shutdown(Duration::ZERO));
        eventually(SOON, "the row is marked", || async {
            let draining: i64 =
                db.client.scalar("SELECT count(*) FROM studio_pods WHERE state = 'draining'", &[]).await;
            if draining == 1 { Ok(()) } else { Err("active".to_owned()) }
        })
        .await;
        // The deadline has passed by now: it was nothing.
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.rollback().await.unwrap();
        let run_id = starting.await.unwrap().expect("it was on its way").run_id;
        stopping.await.unwrap().expect("nothing is stuck");
        let row = db.client.run(run_id).await;
        assert_eq!(row.state, "running", "a survivor goes on with it");
    })
    .await;
}
