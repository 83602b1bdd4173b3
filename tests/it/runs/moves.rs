//! Moves: after a rolling deploy, runs that may move are spread over the pods again.

use std::collections::BTreeMap;
use std::time::Duration;

use podlock::{Config, NewRun, Outcome, Pod, Run, RunId, StopReason};
use serde_json::json;

use super::stage::{SOON, Stage, attempts, story};
use crate::support::sql::Client;
use crate::support::{Db, eventually, start_of, timed, within};

/// How long a run rests in these tests.
const REST: Duration = Duration::from_secs(1);

/// A pod with the kinds `long`, which saves a checkpoint and yields when it is told to stop, `unsaved`, which saves
/// none, and `stays`, which saves one and goes on when it is asked to move.
async fn pod(config: Config) -> Pod {
    start_of(|| {
        Pod::builder(config.clone())
            .handler("long", |run: Run| async move {
                run.checkpoint(json!({ "attempt": run.attempt() })).await?;
                run.stopped().await;
                Ok(Outcome::Yield)
            })
            .handler("unsaved", |run: Run| async move {
                run.stopped().await;
                Ok(Outcome::Yield)
            })
            .handler("stays", |run: Run| async move {
                run.checkpoint(1).await?;
                while run.stop_reason().is_none_or(|reason| reason == StopReason::Moving) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(Outcome::Yield)
            })
    })
    .await
}

fn config(db: &Db, name: &str) -> Config {
    db.config(name).with(|c| c.move_rest = REST)
}

/// How many running runs each pod of the roster owns.
async fn owned(client: &Client) -> BTreeMap<String, i64> {
    let sql = "SELECT p.pod_id, (SELECT count(*) FROM studio_runs r \
                                  WHERE r.state = 'running' AND r.owner_incarnation = p.incarnation) \
                 FROM studio_pods p WHERE p.state = 'active'";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Waits until the pods own so many runs.
async fn owned_is(client: &Client, expected: &[(&str, i64)], limit: Duration) {
    let expected: BTreeMap<_, _> = expected.iter().map(|(pod, n)| ((*pod).to_owned(), *n)).collect();
    eventually(limit, &format!("they own {expected:?}"), || async {
        let owned = owned(client).await;
        if owned == expected { Ok(()) } else { Err(format!("{owned:?}")) }
    })
    .await;
}

/// How many attempts ended with a move.
async fn moved(client: &Client) -> i64 {
    client.scalar("SELECT count(*) FROM studio_run_attempts WHERE reason = 'moved'", &[]).await
}

/// No attempt was shorter than the rest if it ended with a move. The server's clock tells the attempt's times, which
/// this only checks.
async fn each_rested(client: &Client) {
    let sql = "SELECT count(*) FROM studio_run_attempts WHERE reason = 'moved' AND ended_at - began_at < $1::int8 * \
               interval '1 ms'";
    let rest = i64::try_from(REST.as_millis()).unwrap() - 50;
    let short: i64 = client.scalar(sql, &[&rest]).await;
    assert_eq!(short, 0, "a run was moved twice within its rest");
}

async fn starts(pod: &Pod, kind: &str, count: usize) -> Vec<RunId> {
    let mut runs = Vec::new();
    for _ in 0..count {
        runs.push(pod.start(NewRun::new(kind).movable(true)).await.unwrap().run_id);
    }
    runs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_more_than_its_share_moves_runs_and_each_goes_on_from_its_checkpoint() {
    timed(async {
        let db = Db::new().await;
        let a = pod(config(&db, "a")).await;
        let runs = starts(&a, "long", 6).await;
        let b = pod(config(&db, "b")).await;
        owned_is(&db.client, &[("a", 3), ("b", 3)], SOON).await;
        let mut of_b = 0;
        for run_id in runs {
            let run = db.client.run(run_id).await;
            let story = story(&db.client, run_id).await;
            let pods: Vec<_> = story.iter().map(|(pod, reason)| (&**pod, reason.as_deref())).collect();
            if run.owner == Some(b.incarnation().as_uuid()) {
                of_b += 1;
                assert_eq!(pods, [("a", Some("moved")), ("b", None)]);
                assert_eq!(run.crashes, 0, "a move is no crash");
            } else {
                assert_eq!(pods, [("a", None)], "it was left alone");
            }
        }
        assert_eq!(of_b, 3);
        each_rested(&db.client).await;
        // Nothing moves to and fro.
        tokio::time::sleep(REST * 3).await;
        assert_eq!(moved(&db.client).await, 3);
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// The runs that stay: those whose starter did not say that they may move, those without a checkpoint of this attempt,
/// and those whose handler goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_may_not_move_or_has_no_checkpoint_since_its_claim_is_not_moved() {
    timed(async {
        let db = Db::new().await;
        let a = pod(config(&db, "a")).await;
        for _ in 0..6 {
            a.start(NewRun::new("long")).await.unwrap();
        }
        starts(&a, "unsaved", 6).await;
        let _b = pod(config(&db, "b")).await;
        tokio::time::sleep(REST * 5).await;
        assert_eq!(moved(&db.client).await, 0);
        // One that saves a checkpoint later moves then. `b` has none of these and takes it.
        let stays = starts(&a, "stays", 2).await;
        let long = starts(&a, "long", 1).await[0];
        eventually(SOON, "the one that yields has moved", || async {
            let attempts = attempts(&db.client, long).await;
            if attempts.len() == 2 { Ok(()) } else { Err(format!("{attempts:?}")) }
        })
        .await;
        tokio::time::sleep(REST * 2).await;
        for run_id in stays {
            assert_eq!(attempts(&db.client, run_id).await.len(), 1, "its handler goes on, and nobody ends it");
        }
        assert_eq!(moved(&db.client).await, 1);
    })
    .await;
}

/// A pod moves as many runs at a time as `moves_at_once` says; with 0, none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_so_many_are_on_their_way_at_a_time() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        // Those that were asked count as being on their way for so long.
        let rest = Duration::from_secs(5);
        let config = |name: &str, at_once| db.config(name).with(|c| (c.moves_at_once, c.move_rest) = (at_once, rest));
        let a = stage.pod(config("a", 2)).await;
        for _ in 0..8 {
            a.start(NewRun::new("act").movable(true)).await.unwrap();
        }
        let acts = stage.acts(8).await;
        for act in &acts {
            act.run.checkpoint(1).await.unwrap();
        }
        let _b = stage.pod(config("b", 0)).await;
        let asked = || acts.iter().filter(|act| act.run.stop_reason() == Some(StopReason::Moving)).count();
        eventually(SOON, "two are asked", || async { if asked() == 2 { Ok(()) } else { Err(asked().to_string()) } })
            .await;
        // As long as these may still yield, no other is asked.
        tokio::time::sleep(rest / 3).await;
        assert_eq!(asked(), 2);
        let (going, staying): (Vec<_>, Vec<_>) =
            acts.into_iter().partition(|act| act.run.stop_reason() == Some(StopReason::Moving));
        for act in going {
            act.run.checkpoint(2).await.expect("writes are accepted");
            act.give_back();
        }
        for act in stage.acts(2).await {
            assert_eq!((act.pod(), act.run.saved()), ("b", Some(&json!(2))));
        }
        drop(staying);
    })
    .await;
}

/// A cordoned pod keeps its runs, and gets none that moves. So does a pod without a handler for the kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_move_neither_from_nor_to_a_cordoned_pod_and_only_where_there_is_a_handler() {
    timed(async {
        let db = Db::new().await;
        let a = pod(config(&db, "a")).await;
        starts(&a, "long", 6).await;
        let operator = a.operator();
        let _without = db.pod("c").await;
        let b = pod(config(&db, "b")).await;
        operator.cordon("b").await.unwrap();
        tokio::time::sleep(REST * 4).await;
        owned_is(&db.client, &[("a", 6), ("b", 0), ("c", 0)], SOON).await;
        assert_eq!(moved(&db.client).await, 0);
        operator.cordon("a").await.unwrap();
        operator.uncordon("b").await.unwrap();
        tokio::time::sleep(REST * 4).await;
        owned_is(&db.client, &[("a", 6), ("b", 0), ("c", 0)], SOON).await;
        assert_eq!(moved(&db.client).await, 0);
        operator.uncordon("a").await.unwrap();
        owned_is(&db.client, &[("a", 3), ("b", 3), ("c", 0)], SOON).await;
        drop((a, b));
    })
    .await;
}

/// A rolling deploy: each of ten pods is replaced by one that has nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_ten_pods_were_replaced_one_by_one_runs_are_spread_again() {
    within(SOON * 4, async {
        let db = Db::new().await;
        let names: Vec<String> = (0..10).map(|n| format!("p{n}")).collect();
        let mut pods = Vec::new();
        for name in &names {
            pods.push(pod(config(&db, name)).await);
        }
        for pod in &pods {
            starts(pod, "long", 4).await;
        }
        for (name, slot) in names.iter().zip(&mut pods) {
            slot.clone().shutdown(SOON).await.unwrap();
            *slot = pod(config(&db, name)).await;
        }
        eventually(SOON * 2, "each has its share again, and nothing moves any more", || async {
            let before = moved(&db.client).await;
            tokio::time::sleep(REST * 4).await;
            let (owned, moved) = (owned(&db.client).await, moved(&db.client).await);
            let spread = owned.len() == 10 && owned.values().all(|n| (2..=6).contains(n));
            let all = owned.values().sum::<i64>() == 40;
            if spread && all && moved == before && moved > 0 {
                Ok(())
            } else {
                Err(format!("{owned:?}, {moved} moves"))
            }
        })
        .await;
        each_rested(&db.client).await;
        db.client.assert_fold_is_roster().await;
    })
    .await;
}
