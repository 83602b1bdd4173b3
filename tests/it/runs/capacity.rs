//! A pod runs as many runs as it may, and takes the next one as soon as it may.

use std::time::{Duration, Instant};

use serde_json::json;

use super::stage::{Stage, act, nudge};
use crate::support::{Db, eventually, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pod_claims_nothing_and_when_a_run_ends_it_takes_the_next_at_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let lease = Duration::from_secs(60);
        let a = stage.pod(db.config("a").lease(lease).capacity(2).with(|c| c.sweep_interval = Some(lease / 2))).await;
        let first = a.start(act()).await.unwrap().run_id;
        let second = a.submit(act()).await.unwrap();
        let mut acts = stage.acts(2).await;
        assert_eq!([acts[0].run.id(), acts[1].run.id()], [first, second]);
        let waiting = [a.submit(act()).await.unwrap(), a.submit(act()).await.unwrap(), a.submit(act()).await.unwrap()];
        for _ in 0..3 {
            nudge(&db.client).await;
        }
        for run_id in waiting {
            let ended = acts.remove(0);
            assert_eq!(a.status().runs, 2);
            stage.nothing_more_has_begun().await;
            assert_eq!(db.client.run(run_id).await.owner, None, "there is no room for it");
            let freed = Instant::now();
            ended.done(json!(null));
            let next = stage.act().await;
            assert_eq!(next.run.id(), run_id, "the oldest first");
            assert!(freed.elapsed() < lease / 6, "taken after {:?}: by a sweep", freed.elapsed());
            acts.push(next);
        }
        eventually(lease / 6, "two runs run", || async {
            if a.status().runs == 2 { Ok(()) } else { Err(format!("{}", a.status().runs)) }
        })
        .await;
        stage.nothing_more_has_begun().await;
    })
    .await;
}
