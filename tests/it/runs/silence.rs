//! L7: a pod that falls silent stops its runs before it can be replaced, unless its service wants otherwise.

use std::time::{Duration, Instant};

use podlock::{NewRun, OnDetach, Outcome, Phase, Pod, Run, StopReason};
use serde_json::json;

use super::stage::{SOON, Stage, act, behind_proxy, story, told};
use crate::support::proxy::{ALL, Flow};
use crate::support::{Db, eventually, lease, sql, timed};

/// How late a token may fire on a loaded machine.
fn slack() -> Duration {
    crate::patience::slack(Duration::from_millis(700))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_a_silent_pod_stops_its_runs_within_self_fence() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config).await;
        let (before, settings) = (a.incarnation(), a.settings().clone());
        let run_id = a.start(act()).await.unwrap().run_id;
        let silent = stage.act().await;
        proxy.all(&ALL, Flow::Hole);
        let cut_off = Instant::now();
        let reason = tokio::time::timeout(SOON, silent.run.stopped()).await.expect("told to stop");
        let after = cut_off.elapsed();
        assert_eq!(reason, StopReason::SelfFenced);
        assert!(after <= settings.self_fence + slack(), "told after {after:?}");
        assert!(
            after + settings.ping_interval + settings.ping_timeout > settings.self_fence,
            "told after {after:?}, too soon"
        );
        let error = silent.run.checkpoint(json!("too late")).await.unwrap_err();
        assert!(error.is_fenced() && error.to_string().contains("silent"), "{error}");
        // It does not listen, so it is aborted.
        eventually(slack() + lease() / 20, "the deaf handler is aborted", || async {
            if a.status().runs == 0 { Ok(()) } else { Err(format!("{:?}", a.status())) }
        })
        .await;
        proxy.all(&ALL, Flow::Pass);
        let resumed = stage.act().await;
        assert_eq!((resumed.run.id(), resumed.run.attempt()), (run_id, 2));
        assert!(a.incarnation() != before && resumed.run.incarnation() == a.incarnation());
        assert_eq!(db.client.session_end(before).await.unwrap().0, "detached");
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("detached")), ("a", None)]));
        let row = db.client.run(run_id).await;
        assert_eq!(row.crashes, 0, "a detach is no crash");
        let saved: Option<serde_json::Value> = db.client.scalar("SELECT checkpoint FROM studio_runs", &[]).await;
        assert_eq!(saved, None);
    })
    .await;
}

/// A pod that is not answered lets neither of its locks go while its runs may go on: the server would free both at
/// once, and a peer would begin the runs beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_a_pod_that_is_not_answered_keeps_both_locks_until_its_runs_were_told() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        // Both sessions count as silent long before the deadline.
        let quick = |config: podlock::Config| {
            config.lease(Duration::from_secs(6)).with(|c| {
                c.statement_timeout = Some(Duration::from_millis(1500));
                c.sweep_interval = Some(Duration::from_millis(500));
            })
        };
        let a = stage.pod(quick(config)).await;
        let b = stage.pod(quick(db.config("b"))).await;
        tokio::time::sleep(b.settings().settle + Duration::from_millis(300)).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let silent = stage.act().await;
        proxy.all(&ALL, Flow::Mute);
        let resumed = stage.act().await;
        assert_eq!((resumed.run.id(), resumed.pod()), (run_id, "b"));
        assert_eq!(silent.run.stop_reason(), Some(StopReason::SelfFenced), "it still runs beside its successor");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_on_detach_continue_runs_go_on_past_self_fence_and_the_same_incarnation_returns() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.on_detach = OnDetach::Continue)).await;
        let before = a.incarnation();
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        proxy.all(&ALL, Flow::Hole);
        let run = begun.run.clone();
        let saving = tokio::spawn(async move { run.checkpoint(json!({"at": 1})).await });
        // The server has let go of the lock, and nobody is there to bury.
        eventually(SOON, "the server has freed the lock", || async {
            let alive: bool = db.client.scalar("SELECT alive FROM studio_pod_status", &[]).await;
            if alive { Err("held".to_owned()) } else { Ok(()) }
        })
        .await;
        eventually(SOON, "it knows", || async {
            let phase = a.status().phase;
            if phase == Phase::Detached { Ok(()) } else { Err(phase.to_string()) }
        })
        .await;
        assert_eq!(begun.run.stop_reason(), None);
        proxy.all(&ALL, Flow::Pass);
        eventually(SOON, "it is back", || async {
            let phase = a.status().phase;
            if phase == Phase::Active { Ok(()) } else { Err(phase.to_string()) }
        })
        .await;
        assert_eq!((a.incarnation(), begun.run.stop_reason()), (before, None));
        saving.await.unwrap().expect("the write that waited is accepted");
        begun.run.checkpoint(json!({"at": 2})).await.expect("so is the next");
        begun.done(json!(null));
        let end = db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!((end.attempt, end.owner), (1, Some(before.as_uuid())));
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
        let sessions: i64 = db.client.scalar("SELECT session FROM studio_pods", &[]).await;
        assert!(sessions >= 2, "{sessions}");
        stage.nothing_more_has_begun().await;
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_runtime_is_blocked_gives_its_runs_up_and_comes_back_as_another() {
    timed(async {
        let db = Db::new().await;
        let one_thread = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (wake, asleep) = std::sync::mpsc::channel::<()>();
        let (wrote, written) = tokio::sync::oneshot::channel();
        let first = std::sync::Mutex::new(Some((asleep, wrote)));
        let blocks = move |run: Run| {
            let first = first.lock().unwrap().take();
            async move {
                if let Some((asleep, wrote)) = first {
                    asleep.recv().unwrap();
                    wrote.send((run.checkpoint(json!("stale")).await, run.stop_reason())).unwrap();
                }
                Ok(Outcome::Done(json!(run.attempt())))
            }
        };
        let config = db.config("a").with(|c| c.stall_after = Some(lease() / 4));
        let starting = one_thread.spawn(Pod::builder(config).handler("blocks", blocks).start());
        let a = starting.await.unwrap().expect("a starts");
        let before = a.incarnation();
        // In a transaction of the test's own: a submit of the pod would answer on the runtime that the run blocks, and a
        // recovery pass may begin the run before the answer is seen.
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let run_id = a.submit_in_txn(&txn, NewRun::new("blocks")).await.unwrap();
        txn.commit().await.unwrap();
        db.client.run_owned_by(run_id, before, SOON).await;
        let b = Pod::builder(db.config("b"))
            .handler("blocks", |run: Run| async move { Ok(Outcome::Done(json!(run.attempt()))) })
            .start()
            .await
            .unwrap();
        // A survivor has it while the first attempt still sleeps.
        let end = db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!((end.attempt, end.owner), (2, Some(b.incarnation().as_uuid())));
        assert_eq!(a.status().phase, Phase::Detached, "it stays away while its runtime is blocked");
        wake.send(()).unwrap();
        let (write, reason) = tokio::time::timeout(SOON, written).await.expect("it wakes").unwrap();
        assert!(write.unwrap_err().is_fenced());
        assert_eq!(reason, Some(StopReason::SelfFenced));
        eventually(SOON, "a is back as another", || async {
            let status = a.status();
            if status.phase == Phase::Active && status.incarnation != before {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
        let saved: Option<serde_json::Value> = db.client.scalar("SELECT checkpoint FROM studio_runs", &[]).await;
        assert_eq!(saved, None);
        drop(a);
        one_thread.shutdown_background();
    })
    .await;
}
