use std::time::{Duration, Instant};

use podlock::NewRun;
use serde_json::json;

use crate::patience::SOON;
use crate::support::{Db, eventually, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pods_runs_resume_on_a_survivor() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let run = a.start(NewRun::new("steps").input(json!({"steps": 100, "pause_ms": 20}))).await.unwrap();
        let dead = a.incarnation();
        eventually(SOON, "a checkpoint", || async {
            let n: Option<serde_json::Value> = db.client.scalar("SELECT checkpoint FROM studio_runs", &[]).await;
            n.filter(|n| n["done"].as_u64() > Some(3)).map(|_| ()).ok_or("none".to_owned())
        })
        .await;
        let began = Instant::now();
        drop(a);
        db.client.run_owned_by(run.run_id, b.incarnation(), SOON).await;
        println!("taken over after {:?}", began.elapsed());
        assert_eq!(db.client.session_end(dead).await, Some(("lost".to_owned(), Some("b".to_owned()))));
        let end = db.client.run_in_state(run.run_id, "succeeded", SOON).await;
        assert_eq!((end.attempt, end.crashes), (2, 0));
        b.shutdown(Duration::from_secs(5)).await.unwrap();
        db.client.assert_fold_is_roster().await;
    })
    .await;
}
