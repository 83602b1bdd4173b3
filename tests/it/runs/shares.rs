//! Who takes how much of what a dead pod leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use podlock::{Config, ErrorKind, NewRun, Pod, Run};
use serde_json::json;

use super::stage::{SOON, Stage, act, no_orphans, nudge, orphan};
use crate::support::sql::Client;
use crate::support::{Db, eventually, lease, timed, with_kinds};

/// How many running runs each pod owns.
async fn owned(client: &Client) -> BTreeMap<String, i64> {
    let sql = "SELECT owner_pod, count(*) FROM studio_runs r JOIN studio_pods p ON p.incarnation = r.owner_incarnation \
               WHERE r.state = 'running' GROUP BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Hands in runs that nobody owns, and tells nobody.
async fn hand_in(client: &Client, count: i32, kind: &str) {
    let sql = "INSERT INTO studio_runs (run_id, kind) SELECT gen_random_uuid(), $2 FROM generate_series(1, $1)";
    client.execute(sql, &[&count, &kind]).await.expect("runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_orphans_of_one_dead_pod_are_shared_by_four_survivors() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").capacity(1000)).await;
        hand_in(&db.client, 1000, "act").await;
        nudge(&db.client).await;
        eventually(SOON, "the first pod has them all", || async {
            let owned = owned(&db.client).await;
            if owned.get("a") == Some(&1000) { Ok(()) } else { Err(format!("{owned:?}")) }
        })
        .await;
        let mut survivors = Vec::new();
        for name in ["b", "c", "d", "e"] {
            survivors.push(stage.pod(db.config(name).capacity(1000)).await);
        }
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        drop(a);
        db.client.roster_is(&["b", "c", "d", "e"], SOON).await;
        no_orphans(&db.client).await;
        let owned = owned(&db.client).await;
        assert_eq!(owned.len(), 4, "{owned:?}");
        assert!(owned.values().all(|runs| (200..=300).contains(runs)), "{owned:?}");
        let attempts = "SELECT count(*) FROM studio_run_attempts";
        assert_eq!(db.client.scalar::<i64>(attempts, &[]).await, 2000, "each was claimed once more");
    })
    .await;
}

/// Pods of unequal room: whoever is full takes nothing, and the rest goes to those who are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_at_capacity_claims_nothing_and_a_free_one_takes_all_at_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let lease = Duration::from_secs(60);
        let config = |name: &str| db.config(name).lease(lease);
        let full = stage.pod(config("full").capacity(2)).await;
        for _ in 0..2 {
            full.start(act()).await.unwrap();
        }
        let _small = stage.pod(config("small").capacity(5)).await;
        let _free = stage.pod(config("free").capacity(100)).await;
        hand_in(&db.client, 50, "act").await;
        nudge(&db.client).await;
        // The limit ends long before pods take runs that others left. So each pod read the shares from the roster,
        // which shows who has room.
        eventually(lease / 6, "all are taken", || async {
            let owned = owned(&db.client).await;
            let expected = [("free", 45), ("full", 2), ("small", 5)].map(|(pod, n)| (pod.to_owned(), n));
            if owned == BTreeMap::from(expected) { Ok(()) } else { Err(format!("{owned:?}")) }
        })
        .await;
    })
    .await;
}

/// The roster cannot show why a pod takes nothing. After a sweep the others stop waiting for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_leaves_that_seems_to_have_room_is_taken_by_the_others_in_the_end() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let _a = stage.pod(db.config("a")).await;
        // In the roster, and nobody looks for orphans there.
        let ghost = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                       liveness_pid, liveness_started, kinds, capacity) \
                     SELECT 'ghost', '', 1, gen_random_uuid(), 1, 2, 1, now(), kinds, 100 FROM studio_pods";
        db.client.execute(ghost, &[]).await.unwrap();
        hand_in(&db.client, 10, "act").await;
        nudge(&db.client).await;
        let first = stage.acts(5).await;
        let others = stage.acts(5).await;
        let wait = others[0].at.duration_since(first[4].at);
        assert!(wait > lease() / 4, "its share first: {wait:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_a_handler_for_the_kind_has_no_share_of_it() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let lease = Duration::from_secs(60);
        let _without = with_kinds(Pod::builder(db.config("b").lease(lease))).start().await.unwrap();
        let _a = stage.pod(db.config("a").lease(lease)).await;
        hand_in(&db.client, 10, "act").await;
        nudge(&db.client).await;
        assert!(stage.acts(10).await.iter().all(|act| act.pod() == "a"));
    })
    .await;
}

/// A pod with the kind `act` of a stage, and `few`, of which it runs one at a time.
async fn with_few(config: Config) -> Result<Pod, podlock::Error> {
    let forever = |_run: Run| std::future::pending();
    Pod::builder(config.capacity_of("few", 1)).handler("few", forever).handler("many", forever).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_with_a_limit_of_its_own_takes_that_many_and_leaves_room_for_others() {
    timed(async {
        let db = Db::new().await;
        // The oldest, and more of them than a pass loads.
        for _ in 0..40 {
            orphan(&db.client, "few").await;
        }
        for _ in 0..3 {
            orphan(&db.client, "many").await;
        }
        let a = with_few(db.config("a").capacity(4)).await.unwrap();
        let of_kind = async |kind: &str| {
            let sql = "SELECT count(*) FROM studio_runs WHERE kind = $1 AND owner_pod = 'a' AND state = 'running'";
            db.client.scalar::<i64>(sql, &[&kind]).await
        };
        eventually(SOON, "it is full", || async {
            let owned = (of_kind("few").await, of_kind("many").await);
            if owned == (1, 3) { Ok(()) } else { Err(format!("{owned:?}")) }
        })
        .await;
        let full = a.start(NewRun::new("few")).await.expect_err("it has one");
        assert_eq!(full.kind(), ErrorKind::AtCapacity, "{full}");
        // As soon as one ends, the next begins.
        let running: uuid::Uuid =
            db.client.scalar("SELECT run_id FROM studio_runs WHERE kind = 'few' AND owner_pod = 'a'", &[]).await;
        a.cancel(running.into()).await.unwrap();
        eventually(SOON, "the next one of its kind runs", || async {
            let few = of_kind("few").await;
            if few == 1 { Ok(()) } else { Err(format!("{few}")) }
        })
        .await;
        assert_eq!(of_kind("many").await, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_beyond_the_limit_of_its_kind_is_refused_by_name_and_a_limit_without_a_handler_too() {
    timed(async {
        let db = Db::new().await;
        let a = with_few(db.config("a")).await.unwrap();
        a.start(NewRun::new("few").input(json!(1))).await.unwrap();
        let full = a.start(NewRun::new("few")).await.expect_err("it has one");
        assert_eq!(full.kind(), ErrorKind::AtCapacity, "{full}");
        assert!(
            full.to_string().contains("1 runs of kind \"few\"") && full.to_string().contains("capacity_of"),
            "{full}"
        );
        a.start(NewRun::new("many")).await.expect("room for others");
        let typo = with_few(db.config("b").capacity_of("fwe", 2)).await.expect_err("no such handler");
        assert_eq!(typo.kind(), ErrorKind::Config, "{typo}");
        assert!(typo.to_string().contains("\"fwe\""), "{typo}");
    })
    .await;
}
