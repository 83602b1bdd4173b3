//! A statement commits and its reply never comes: what was done is found, and done once.

use std::time::Duration;

use podlock::ErrorKind;
use serde_json::json;

use super::stage::{
    CLAIM, FINISH, SOON, START, Stage, act, behind_proxy, blocked, no_orphans, nudge, orphan, port_of_blocked, story,
    take_key, told,
};
use crate::support::proxy::Flow;
use crate::support::{Db, eventually, sql, timed};

/// Longer than a statement may take: only the cut ends it.
fn patient(c: &mut podlock::Config) {
    c.statement_timeout = Some(Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finish_whose_reply_was_lost_is_read_back_and_not_called_fenced() {
    timed(finish_with_lost_reply(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_even_if_a_recovery_pass_sees_the_finish_before_its_owner_does() {
    timed(finish_with_lost_reply(true)).await;
}

async fn finish_with_lost_reply(with_a_pass: bool) {
    let (db, stage) = (Db::new().await, Stage::new());
    let (proxy, config) = behind_proxy(&db, "a").await;
    // No pass comes by itself.
    let lease = Duration::from_secs(60);
    let a = stage.pod(config.lease(lease).with(patient).with(|c| c.sweep_interval = Some(lease / 2))).await;
    let run_id = a.start(act()).await.unwrap().run_id;
    let begun = stage.act().await;
    let run = begun.run.clone();
    let mut gate = sql::connect(&db.url).await;
    let gate = gate.transaction().await.unwrap();
    gate.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE", &[&run_id.as_uuid()]).await.unwrap();
    begun.done(json!("once"));
    let link = port_of_blocked(&db.client, FINISH).await;
    proxy.one(link, Flow::Mute);
    gate.rollback().await.unwrap();
    db.client.run_in_state(run_id, "succeeded", SOON).await;
    assert_eq!(a.status().runs, 1, "its owner does not know yet");
    if with_a_pass {
        a.submit(act()).await.unwrap();
        // What a pass claims, it begins after it has checked the runs in memory.
        stage.act().await.done(json!(null));
    }
    proxy.one(link, Flow::Cut);
    eventually(SOON, "the attempt has ended", || async {
        if a.status().runs == 0 { Ok(()) } else { Err(format!("{run:?}")) }
    })
    .await;
    assert_eq!(run.stop_reason(), None, "somebody called it fenced");
    assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
    stage.nothing_more_has_begun().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_whose_reply_was_lost_is_written_again_and_the_run_goes_on() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(patient)).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE", &[&run_id.as_uuid()]).await.unwrap();
        let run = begun.run.clone();
        let saving = tokio::spawn(async move { run.checkpoint(json!({"at": 9})).await });
        blocked(&db.client, "UPDATE%checkpoint%", 1).await;
        proxy.present(&["pool"], Flow::Cut);
        gate.rollback().await.unwrap();
        saving.await.unwrap().expect("saved, by this try or the next");
        let at: i64 = db.client.scalar("SELECT (checkpoint->'at')::bigint FROM studio_runs", &[]).await;
        assert_eq!(at, 9);
        begun.done(json!(null));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
    })
    .await;
}

/// A network that held a request back lets it through when the run is long past it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_arrives_after_a_later_one_changes_nothing() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage
            .pod(config.with(|c| (c.statement_timeout, c.pool_size) = (Some(Duration::from_millis(1_600)), 1)))
            .await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        // The server knows the statement on these connections: the next time it comes in one piece.
        begun.run.checkpoint(json!({"at": 1})).await.unwrap();
        let pids = "SELECT array_agg(pid) FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'podlock/a/pool'";
        let given_up: Vec<i32> = db.client.scalar(pids, &[]).await;
        assert_eq!(proxy.present(&["pool"], Flow::Hole), given_up.len());
        begun.run.checkpoint(json!({"at": 2})).await.expect("saved on another connection");
        begun.run.checkpoint(json!({"at": 3})).await.expect("saved");
        proxy.present(&["pool"], Flow::Pass);
        eventually(SOON, "what was held back has arrived, and its connection ended", || async {
            let left = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
            match db.client.scalar::<i64>(left, &[&given_up]).await {
                0 => Ok(()),
                left => Err(format!("{left} connections")),
            }
        })
        .await;
        let at: i64 = db.client.scalar("SELECT (checkpoint->'at')::bigint FROM studio_runs", &[]).await;
        assert_eq!(at, 3);
        begun.done(json!(null));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
    })
    .await;
}

/// Saved, its reply lost, and the run taken by another before the next try: refused, and not called unwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_fenced_after_a_lost_reply_says_that_it_may_have_been_saved() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(patient)).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE", &[&run_id.as_uuid()]).await.unwrap();
        let run = begun.run.clone();
        let saving = tokio::spawn(async move { run.checkpoint(json!({"at": 9})).await });
        let link = port_of_blocked(&db.client, "UPDATE%checkpoint%").await;
        proxy.one(link, Flow::Mute);
        gate.rollback().await.unwrap();
        let saved = "SELECT (checkpoint->'at')::bigint IS NOT DISTINCT FROM 9 FROM studio_runs";
        eventually(SOON, "it is saved", || async {
            if db.client.scalar::<bool>(saved, &[]).await { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        let taken = "UPDATE studio_runs SET fence = nextval('studio_fence'), owner_incarnation = gen_random_uuid()";
        db.client.batch_execute(taken).await.unwrap();
        proxy.one(link, Flow::Cut);
        let error = saving.await.unwrap().expect_err("it is another's by now");
        assert!(error.is_fenced() && error.may_have_been_done(), "{error}");
        assert!(error.to_string().contains("whose reply was lost, may have been"), "{error}");
        let again = begun.run.checkpoint(json!({"at": 10})).await.expect_err("it still is");
        assert!(again.is_fenced() && !again.may_have_been_done(), "{again}");
    })
    .await;
}

/// The claim's last step appends to the event log, whose lock the test holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reply_to_a_claim_is_lost_after_commit_and_the_run_is_adopted_under_a_new_fence() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(patient)).await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.batch_execute("LOCK TABLE studio_log_order IN EXCLUSIVE MODE").await.unwrap();
        let run_id = a.submit(act()).await.unwrap();
        blocked(&db.client, CLAIM, 1).await;
        assert!(proxy.present(&["pool"], Flow::Mute) > 0);
        gate.rollback().await.unwrap();
        let claimed = db.client.run_owned_by(run_id, a.incarnation(), SOON).await;
        assert_eq!(claimed.attempt, 1);
        stage.nothing_more_has_begun().await;
        proxy.present(&["pool"], Flow::Cut);
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.run.attempt(), begun.pod()), (run_id, 2, "a"));
        assert!(begun.run.fence().get() > claimed.fence);
        begun.done(json!("once"));
        let end = db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(end.crashes, 0);
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("adopted")), ("a", Some("succeeded"))]));
        no_orphans(&db.client).await;
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_reply_was_lost_with_its_connection_is_started_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(patient)).await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        take_key(&gate, "k").await;
        let starter = a.clone();
        let starting = tokio::spawn(async move { starter.start(act().key("k")).await });
        blocked(&db.client, START, 1).await;
        assert!(proxy.present(&["pool"], Flow::Mute) > 0);
        gate.rollback().await.unwrap();
        eventually(SOON, "the row is there", || async {
            let rows: i64 = db.client.scalar("SELECT count(*) FROM studio_runs WHERE kind = 'act'", &[]).await;
            if rows == 1 { Ok(()) } else { Err(format!("{rows}")) }
        })
        .await;
        proxy.present(&["pool"], Flow::Cut);
        let started = starting.await.unwrap().expect("the second try finds the first one's row");
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.run.attempt(), begun.run.fence()), (started.run_id, 1, started.fence));
        begun.done(json!(null));
        db.client.run_in_state(started.run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, started.run_id).await, told(&[("a", Some("succeeded"))]));
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_timed_out_after_its_commit_says_so_and_runs_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config).await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        take_key(&gate, "k").await;
        let starter = a.clone();
        let starting = tokio::spawn(async move { starter.start(act().key("k")).await });
        blocked(&db.client, START, 1).await;
        assert!(proxy.present(&["pool"], Flow::Mute) > 0);
        gate.rollback().await.unwrap();
        let error = starting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.to_string().contains("may have been started"), "{error}");
        let run_id = error.run_id().expect("it names the run");
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.run.attempt(), begun.pod()), (run_id, 2, "a"));
        begun.done(json!(null));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("adopted")), ("a", Some("succeeded"))]));
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// A claim that is on its way when its pod is dropped must not begin a handler that nobody would ever stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_under_way_when_its_pod_ends_begins_nothing() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(patient)).await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.batch_execute("LOCK TABLE studio_log_order IN EXCLUSIVE MODE").await.unwrap();
        let (run_id, _) = orphan(&db.client, "act").await;
        nudge(&db.client).await;
        blocked(&db.client, CLAIM, 1).await;
        drop(a);
        gate.rollback().await.unwrap();
        blocked(&db.client, CLAIM, 0).await;
        let b = stage.pod(db.config("b")).await;
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.pod()), (run_id, "b"), "the dead pod began an attempt");
        assert_eq!(begun.run.incarnation(), b.incarnation());
        stage.nothing_more_has_begun().await;
    })
    .await;
}
