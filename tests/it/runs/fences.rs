//! L5: every write of a former owner is refused, and its caller sees it.

use podlock::{OnDetach, StopReason};
use serde_json::json;

use super::stage::{Act, SOON, Stage, act, behind_proxy, story, told, whole_run};
use crate::support::proxy::Flow;
use crate::support::{Db, eventually, sql, timed};

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

/// A claim that leaves out most of what it wanted takes no numbers for those, and none that others are given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_a_claim_that_passes_over_locked_runs_takes_no_number_of_anothers() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").capacity(5)).await;
        for _ in 0..5 {
            a.start(act()).await.unwrap();
        }
        let busy = stage.acts(5).await;
        let orphans =
            "INSERT INTO studio_runs (run_id, kind) SELECT gen_random_uuid(), 'act' FROM generate_series(1, 5)";
        db.client.batch_execute(orphans).await.unwrap();
        let mut other = sql::connect(&db.url).await;
        let txn = other.transaction().await.unwrap();
        let locked = "SELECT FROM studio_runs WHERE owner_pod IS NULL ORDER BY run_id LIMIT 4 FOR UPDATE";
        assert_eq!(txn.query(locked, &[]).await.unwrap().len(), 4);
        busy.into_iter().for_each(|act| act.done(json!(null)));
        let claimed = stage.act().await;
        let b = stage.pod(db.config("b")).await;
        let mut fences = vec![claimed.run.fence()];
        for _ in 0..5 {
            fences.push(b.start(act()).await.unwrap().fence);
        }
        assert!(fences.windows(2).all(|w| w[0] < w[1]), "{fences:?}");
        txn.rollback().await.unwrap();
    })
    .await;
}

/// After a failover that took the sequence back, what a pod starts or claims, one by one or in a batch, is above all
/// that it was given before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_that_took_the_sequence_back_a_pods_fences_go_on_rising() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let mut given = Vec::new();
        for _ in 0..40 {
            given.push(a.start(act()).await.unwrap().fence);
            stage.act().await.done(json!(null));
        }
        db.client.batch_execute("SELECT setval('studio_fence', 1, false)").await.unwrap();
        given.push(a.start(act()).await.unwrap().fence);
        stage.act().await.done(json!(null));
        db.client.batch_execute("SELECT setval('studio_fence', 1, false)").await.unwrap();
        let batch =
            "INSERT INTO studio_runs (run_id, kind) SELECT gen_random_uuid(), 'act' FROM generate_series(1, 20)";
        db.client.batch_execute(&format!("{batch}; NOTIFY podlock_public, 'recover'")).await.unwrap();
        let mut batch: Vec<_> = stage.acts(20).await.iter().map(|act| act.run.fence()).collect();
        batch.sort_unstable();
        given.extend(batch);
        assert!(given.windows(2).all(|w| w[0] < w[1]), "{given:?}");
    })
    .await;
}
