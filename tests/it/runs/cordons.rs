//! A cordon: the pod keeps its runs and gets no new ones, until the cordon is lifted or its process ends.

use std::time::{Duration, Instant};

use podlock::operator::{Condition, EventFilter, Operator, RunFilter};
use podlock::{Error, ErrorKind, Phase, Pod, PodEvent};
use serde_json::json;

use super::stage::{CLAIM, SOON, Stage, act, blocked, nudge, orphan, story, told};
use crate::support::{Db, eventually, sql, timed};

async fn is_in_phase(pod: &Pod, phase: Phase) {
    eventually(SOON, &format!("pod {} is {phase}", pod.pod_id()), || async {
        let status = pod.status();
        if status.phase == phase { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

fn is_refused(error: &Error, pod: &str) {
    assert_eq!((error.kind(), error.retry_elsewhere(), error.is_transient()), (ErrorKind::Cordoned, true, false));
    let text = error.to_string();
    for part in ["is cordoned", "no run was started", &format!("podlock uncordon {pod}")] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_pod_keeps_its_runs_and_gets_no_new_ones_until_it_is_uncordoned() {
    timed(async {
        let (mut db, stage) = (Db::new().await, Stage::new());
        // Nothing here waits for a sweep, nor for a pod that takes its share first.
        let sweep = Duration::from_secs(60);
        let config =
            |db: &Db, name: &str| db.config(name).lease(sweep * 3 / 2).with(|c| c.sweep_interval = Some(sweep));
        let a = stage.pod(config(&db, "a")).await;
        let mut heard = a.events();
        let kept = a.start(act()).await.unwrap().run_id;
        let kept_act = stage.act_of(kept).await;
        let b = stage.pod(config(&db, "b")).await;
        let began = Instant::now();
        let operator = Operator::connect(&db.config("x")).await.unwrap();

        assert_eq!(operator.cordon("a").await.unwrap(), a.incarnation());
        is_in_phase(&a, Phase::Cordoned).await;
        is_refused(&a.start(act()).await.unwrap_err(), "a");
        let txn = db.client.transaction().await.unwrap();
        is_refused(&a.start_in_txn(&txn, act()).await.unwrap_err(), "a");
        let in_txn = a.submit_in_txn(&txn, act()).await.unwrap();
        txn.commit().await.unwrap();
        let (orphan, _) = orphan(&db.client, "act").await;
        let mut given: Vec<_> = vec![in_txn, orphan];
        for _ in 0..4 {
            given.push(a.submit(act()).await.unwrap());
        }
        for act in stage.acts(given.len()).await {
            assert!(act.pod() == "b" && given.contains(&act.run.id()), "{:?} on {}", act.run, act.pod());
            act.done(1);
        }
        assert!(began.elapsed() < sweep / 2, "a cordoned pod has no share that others wait for");
        kept_act.run.checkpoint(json!(1)).await.expect("it keeps its runs");
        assert_eq!(kept_act.run.stop_reason(), None);
        let row = operator.pods(Default::default()).await.unwrap().remove(0);
        assert_eq!((row.condition, row.runs, row.state.as_str()), (Condition::Cordoned, 1, "active"));
        assert!(row.cordoned_by.is_some() && row.condition_in_words() == "cordoned", "{row:?}");

        // Cordoned again, nothing changes. Where all pods are cordoned, runs wait, and a list shows them.
        operator.cordon("a").await.unwrap();
        operator.cordon("b").await.unwrap();
        is_in_phase(&b, Phase::Cordoned).await;
        let waits = b.submit(act()).await.unwrap();
        let unclaimable = operator.runs(RunFilter::new().unclaimable()).await.unwrap();
        assert_eq!(unclaimable.iter().map(|run| run.run_id).collect::<Vec<_>>(), [waits]);
        nudge(&db.client).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.nothing_more_has_begun().await;

        assert_eq!(operator.uncordon("a").await.unwrap(), a.incarnation());
        operator.uncordon("a").await.unwrap();
        let lifted = Instant::now();
        let taken = stage.act().await;
        assert_eq!((taken.pod(), taken.run.id()), ("a", waits));
        assert!(lifted.elapsed() < sweep / 2, "it does not wait for a sweep");
        a.start(act()).await.expect("it starts runs again");
        kept_act.done(1);
        assert_eq!(story(&db.client, kept).await.len(), 1, "one attempt, from its start to its end");

        let events = operator.events(EventFilter::new()).await.unwrap();
        let acts: Vec<_> =
            events.iter().filter(|e| e.kind.ends_with("cordoned")).map(|e| (&*e.kind, &*e.pod_id)).collect();
        assert_eq!(acts, [("cordoned", "a"), ("cordoned", "b"), ("uncordoned", "a")]);
        assert!(events.iter().all(|e| !e.kind.ends_with("cordoned") || e.by_pod == row.cordoned_by.clone().unwrap()));
        let mut told = Vec::new();
        while told.len() < 3 {
            match tokio::time::timeout(SOON, heard.recv()).await.expect("the service hears").unwrap() {
                PodEvent::Cordoned { pod, .. } => told.push(format!("{pod} cordoned")),
                PodEvent::Uncordoned { pod, .. } => told.push(format!("{pod} uncordoned")),
                _ => {}
            }
        }
        assert_eq!(told, ["a cordoned", "b cordoned", "a uncordoned"]);
        db.client.assert_fold_is_roster().await;
        let error = operator.cordon("nobody").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("nobody was cordoned"), "{error}");
    })
    .await;
}

/// The row decides, and not what the pod has heard: its own start is refused, and so is a claim that was planned before
/// the cordon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l11_the_server_refuses_a_start_and_a_claim_of_a_pod_that_has_not_heard_of_its_cordon() {
    timed(async {
        let (mut db, stage) = (Db::new().await, Stage::new());
        // So long that no sweep tells the pod.
        let a = stage.pod(db.config("a").lease(Duration::from_secs(600))).await;
        let eyes = sql::connect(&db.url).await;
        let (run_id, ghost) = orphan(&eyes, "act").await;
        let gate = db.client.transaction().await.unwrap();
        gate.batch_execute("LOCK TABLE studio_run_attempts IN ACCESS EXCLUSIVE MODE").await.unwrap();
        nudge(&eyes).await;
        blocked(&eyes, CLAIM, 1).await;
        let silently = "UPDATE studio_pods SET cordoned_by = 'somebody'";
        eyes.execute(silently, &[]).await.unwrap();
        gate.rollback().await.unwrap();
        is_refused(&a.start(act()).await.unwrap_err(), "a");
        let txn = db.client.transaction().await.unwrap();
        is_refused(&a.start_in_txn(&txn, act()).await.unwrap_err(), "a");
        txn.rollback().await.unwrap();
        assert_eq!(a.status().phase, Phase::Active, "it has not heard");
        nudge(&eyes).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let run = eyes.run(run_id).await;
        assert_eq!((run.owner, run.attempt), (Some(ghost.as_uuid()), 1), "it is not claimed");
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// A run that was started in a transaction before the cordon is the pod's own when the transaction commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_start_commits_after_the_cordon_is_begun() {
    timed(async {
        let (mut db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").lease(Duration::from_secs(60))).await;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        let txn = db.client.transaction().await.unwrap();
        let run_id = a.start_in_txn(&txn, act()).await.unwrap();
        operator.cordon("a").await.unwrap();
        is_in_phase(&a, Phase::Cordoned).await;
        txn.commit().await.unwrap();
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.pod()), (run_id, "a"));
        assert_eq!(story(&db.client, run_id).await, told(&[("a", None)]));
    })
    .await;
}

/// With every notice lost, a sweep finds the cordon (L6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_missed_the_notice_learns_of_its_cordon_at_its_next_sweep() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        db.client.execute("UPDATE studio_pods SET cordoned_by = 'somebody'", &[]).await.unwrap();
        is_in_phase(&a, Phase::Cordoned).await;
        db.client.execute("UPDATE studio_pods SET cordoned_by = NULL", &[]).await.unwrap();
        is_in_phase(&a, Phase::Active).await;
    })
    .await;
}

/// The cordon belongs to the process: it outlasts a lost session and an eviction, and the next process of the name
/// begins without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordon_outlasts_lost_sessions_and_the_incarnation_and_ends_with_the_process() {
    timed(async {
        let db = Db::new().await;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        let a = db.pod("a").await;
        db.client.armed("a", SOON).await;
        let first = a.incarnation();
        operator.cordon("a").await.unwrap();
        is_in_phase(&a, Phase::Cordoned).await;
        let mut heard = a.events();
        db.client.terminate("a", "liveness").await;
        while tokio::time::timeout(SOON, heard.recv()).await.expect("it is back").unwrap() != PodEvent::Returned {}
        assert_eq!((a.incarnation(), a.status().phase), (first, Phase::Cordoned));
        db.client.assert_fold_is_roster().await;

        operator.evict("a").await.unwrap();
        eventually(SOON, "it comes back as another incarnation", || async {
            let status = a.status();
            if status.incarnation != first && status.attached { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        assert_eq!(a.status().phase, Phase::Cordoned);
        let by: Option<String> = db.client.scalar("SELECT cordoned_by FROM studio_pods", &[]).await;
        assert!(by.is_some(), "the row says so as well");
        db.client.assert_fold_is_roster().await;

        a.shutdown(Duration::ZERO).await.unwrap();
        let a = db.pod("a").await;
        assert_eq!(a.status().phase, Phase::Active, "another process");
        let by: Option<String> = db.client.scalar("SELECT cordoned_by FROM studio_pods", &[]).await;
        assert_eq!(by, None);
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// An operator lifts the cordon while the pod is away. The pod's row counts, and not what the process remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordon_that_was_lifted_while_the_pod_was_away_is_lifted() {
    timed(async {
        let db = Db::new().await;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        let a = db.pod("a").await;
        operator.cordon("a").await.unwrap();
        is_in_phase(&a, Phase::Cordoned).await;
        // Without a notice, and with an end of its sessions in the same transaction.
        let silently = "WITH row AS (UPDATE studio_pods SET cordoned_by = NULL RETURNING liveness_pid, control_pid) \
                        SELECT pg_terminate_backend(liveness_pid), pg_terminate_backend(control_pid) FROM row";
        db.client.execute(silently, &[]).await.unwrap();
        is_in_phase(&a, Phase::Active).await;
    })
    .await;
}
