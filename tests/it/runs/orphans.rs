//! L6: an orphan is a state. Nobody has to say that it is there.

use std::time::{Duration, Instant};

use serde_json::json;

use super::stage::{SOON, Stage, nudge, orphan, story, told};
use crate::patience::slack;
use crate::support::{Db, eventually, lease, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l6_an_orphan_that_nobody_told_of_is_found_by_the_sweep() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let (run_id, ghost) = orphan(&db.client, "act").await;
        let since = Instant::now();
        let found = stage.act().await;
        assert_eq!((found.run.id(), found.run.attempt(), found.pod()), (run_id, 2, "a"));
        assert!(since.elapsed() < a.settings().sweep_interval + slack(lease()), "found after {:?}", since.elapsed());
        assert_eq!(db.client.run(run_id).await.crashes, 0, "nobody knows how its owner ended");
        assert_eq!(story(&db.client, run_id).await, told(&[("ghost", Some("lost")), ("a", None)]));
        let from = super::stage::detail_of_event(&db.client, "claimed", a.incarnation()).await.unwrap();
        assert_eq!(from, json!({"runs": 1, "from": [ghost]}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_of_a_dead_owner_are_left_alone_for_claim_delay_and_unowned_runs_are_not() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let delay = Duration::from_millis(1500);
        let a = stage.pod(db.config("a").with(|c| c.claim_delay = delay)).await;
        let (run_id, _) = orphan(&db.client, "act").await;
        let made = Instant::now();
        nudge(&db.client).await;
        let unowned = a.submit(super::stage::act()).await.unwrap();
        let first = stage.act().await;
        assert_eq!(first.run.id(), unowned);
        let claimed = super::stage::detail_of_event(&db.client, "claimed", a.incarnation()).await.unwrap();
        assert_eq!(claimed, json!({"runs": 1, "from": []}), "nobody is no former owner");
        eventually(SOON, "it is seen as an orphan", || async {
            let count: i64 = db.client.scalar("SELECT count(*) FROM studio_orphans", &[]).await;
            if count == 1 { Ok(()) } else { Err(format!("{count}")) }
        })
        .await;
        let claimed = stage.act().await;
        assert_eq!(claimed.run.id(), run_id);
        let after = claimed.at.duration_since(made);
        assert!(after >= delay && after < delay + slack(lease()), "claimed after {after:?}");
    })
    .await;
}
