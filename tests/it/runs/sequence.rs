//! L9: the sequence of fences is raised where it has to be, never lowered, and no row uses it up.

use std::time::Duration;

use podlock::{NewRun, migrate};
use serde_json::json;

use super::stage::{SOON, Stage, act, nudge, orphan};
use crate::support::{Db, eventually, sql, start, timed};

/// A move by logical replication copies rows, and no sequences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_the_first_start_on_a_copy_without_sequences_steps_past_the_fences_that_are_there() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        migrate::up(&db.config("m")).await.unwrap();
        let ended = "INSERT INTO studio_runs (run_id, kind, state, fence, attempt, finished_at) \
                     VALUES (gen_random_uuid(), 'act', 'succeeded', 7000000, 1, now())";
        db.client.batch_execute(ended).await.unwrap();
        let a = stage.pod(db.config("a")).await;
        let started = a.start(act()).await.unwrap();
        assert!(started.fence.get() > 7_000_000, "{started:?}");
        assert!(started.fence.get() < 7_000_100, "{started:?}");
    })
    .await;
}

/// A run whose fence is far above the sequence is claimed under a higher one, without counting there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_the_sequence_is_raised_for_a_run_whose_fence_is_far_above_it() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let _a = stage.pod(db.config("a")).await;
        let (run_id, _) = orphan(&db.client, "act").await;
        let far = 900_000_000_000_i64;
        db.client.execute("UPDATE studio_runs SET fence = $1", &[&far]).await.unwrap();
        nudge(&db.client).await;
        let act = stage.act().await;
        assert_eq!(act.run.id(), run_id);
        assert!(act.run.fence().get() > far, "{:?}", act.run.fence());
    })
    .await;
}

/// "`ALTER SEQUENCE studio_fence CACHE 50` makes fences fall": a session takes 50 numbers at once, and may hand out low
/// ones after other sessions handed out high ones. Starts and claims refuse such numbers, and set CACHE back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_numbers_that_sessions_hold_in_advance_are_thrown_away() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let [a, b] = [stage.pod(db.config("a")).await, stage.pod(db.config("b")).await];
        let mut fences = Vec::new();
        for round in 0..3 {
            db.client.batch_execute("ALTER SEQUENCE studio_fence CACHE 50").await.unwrap();
            for pod in [&a, &b, &a, &b] {
                let started = pod.start(act()).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
                fences.push(started.fence);
                stage.act().await.done(json!(null));
            }
        }
        assert!(fences.windows(2).all(|w| w[0] < w[1]), "{fences:?}");
        let cache = "SELECT seqcache FROM pg_sequence WHERE seqrelid = 'studio_fence'::regclass";
        assert_eq!(db.client.scalar::<i64>(cache, &[]).await, 1);
        // A sweep finds it too, where nothing is started and nothing is to be claimed.
        db.client.batch_execute("ALTER SEQUENCE studio_fence CACHE 50").await.unwrap();
        eventually(SOON, "a sweep sets CACHE back", || async {
            let cache: i64 = db.client.scalar(cache, &[]).await;
            if cache == 1 { Ok(()) } else { Err(format!("CACHE {cache}")) }
        })
        .await;
    })
    .await;
}

/// Many take numbers while others raise the sequence by less and by more: no number comes twice, and what begins after
/// a raise has returned is above it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_a_raise_never_lowers_the_sequence_whoever_takes_numbers_meanwhile() {
    timed(async {
        let db = Db::new().await;
        migrate::up(&db.config("m")).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..4_i64 {
            let url = db.url.clone();
            tasks.spawn(async move {
                let client = sql::connect(&url).await;
                let mut taken = Vec::new();
                for round in 0..150_i64 {
                    let last: i64 = if round % 5 == task {
                        // Sometimes below where the sequence stands, sometimes above.
                        let floor = (round - 50) * 300 + task * 1000;
                        client.scalar("SELECT studio_raise_fence($1)", &[&floor.max(0)]).await
                    } else {
                        0
                    };
                    let next: i64 = client.scalar("SELECT nextval('studio_fence')", &[]).await;
                    assert!(next > last, "{next} after a raise to {last}");
                    taken.push(next);
                }
                assert!(taken.windows(2).all(|w| w[0] < w[1]), "{taken:?}");
                taken
            });
        }
        let mut all: Vec<i64> = tasks.join_all().await.concat();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "no number came twice");
        let too_far =
            db.client.batch_execute("SELECT studio_raise_fence(4611686018427387904)").await.expect_err("refused");
        assert!(too_far.as_db_error().is_some_and(|e| e.message().contains("is not raised")), "{too_far:?}");
    })
    .await;
}

/// A pod's role may raise the sequence, although it has no right to alter it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_the_least_rights_raises_the_sequence() {
    timed(async {
        let db = Db::new().await;
        migrate::up(&db.config("m")).await.unwrap();
        let pod = start(db.config("a")).await;
        db.client.batch_execute("ALTER SEQUENCE studio_fence CACHE 50").await.unwrap();
        pod.start(NewRun::new("echo")).await.unwrap();
        pod.shutdown(Duration::from_secs(5)).await.unwrap();
    })
    .await;
}
