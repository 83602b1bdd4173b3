//! L5: every write of a former owner is refused, and its caller sees it.

use podlock::{OnDetach, StopReason};
use serde_json::json;

use super::stage::{Act, SOON, Stage, act, behind_proxy, story, told, whole_run};
use crate::support::proxy::Flow;
use crate::support::{Db, eventually, timed};

/// The pod `a` is cut off from its sessions, not from its pool: it lives, its runs go on computing, `b` buries it and
/// takes them over, and then the old attempts try to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_after_a_takeover_no_write_of_the_old_attempt_leaves_a_trace() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.on_detach = OnDetach::Continue)).await;
        let mut old = Vec::new();
        for key in ["checkpoint", "finish", "fail", "yield"] {
            a.start(act().key(key)).await.unwrap();
            old.push(stage.act().await);
        }
        let b = stage.pod(db.config("b")).await;
        proxy.all(&["liveness", "control", "watch"], Flow::Hole);
        for act in &old {
            db.client.run_owned_by(act.run.id(), b.incarnation(), SOON).await;
        }
        let new = stage.acts(4).await;
        assert!(new.iter().all(|act| act.pod() == "b" && act.run.attempt() == 2));
        let mut before = Vec::new();
        for act in &old {
            assert_eq!(act.run.stop_reason(), None, "on_detach = continue: nobody stopped it");
            before.push(whole_run(&db.client, act.run.id()).await);
        }
        let error = old[0].run.checkpoint(json!("stale")).await.unwrap_err();
        assert!(error.is_fenced(), "{error}");
        assert!(error.to_string().contains("was refused: pod b owns it"), "{error}");
        assert_eq!(old[0].run.stop_reason(), Some(StopReason::Fenced));
        let ids: Vec<_> = old.iter().map(|act| act.run.id()).collect();
        let runs: Vec<_> = old.iter().map(|act| act.run.clone()).collect();
        let ends: [fn(Act); 4] =
            [|act| act.fail("stopped"), |act| act.done(json!("stale")), |act| act.fail("stale"), |act| act.give_back()];
        old.into_iter().zip(ends).for_each(|(act, end)| end(act));
        eventually(SOON, "the old attempts have ended", || async {
            if a.status().runs == 0 { Ok(()) } else { Err(format!("{:?}", a.status())) }
        })
        .await;
        for ((run_id, run), before) in ids.iter().zip(&runs).zip(before) {
            assert_eq!(run.stop_reason(), Some(StopReason::Fenced), "its handler's clones can see it");
            assert_eq!(whole_run(&db.client, *run_id).await, before, "the stale write left a trace");
        }
        for act in new {
            let run_id = act.run.id();
            act.run.checkpoint(json!("fresh")).await.expect("the new owner writes");
            act.done(json!("fresh"));
            db.client.run_in_state(run_id, "succeeded", SOON).await;
            assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("lost")), ("b", Some("succeeded"))]));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_fences_rise_over_the_attempts_of_all_runs() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let _a = stage.pod(db.config("a")).await;
        let b = stage.pod(db.config("b")).await;
        let wanders = b.start(act()).await.unwrap().run_id;
        let mut fences = Vec::new();
        for _ in 0..5 {
            let wanderer = stage.act().await;
            assert_eq!(wanderer.run.id(), wanders);
            fences.push(wanderer.run.fence());
            fences.push(b.start(act()).await.unwrap().fence);
            drop(stage.act().await);
            wanderer.give_back();
        }
        assert!(fences.windows(2).all(|w| w[0] < w[1]), "{fences:?}");
        drop(stage.act().await);
        assert_eq!(story(&db.client, wanders).await.len(), 6);
    })
    .await;
}
