//! The events of docs/tracing.md, with the fields that are promised there.

use std::time::Duration;

use podlock::{NewRun, Pod};
use serde_json::json;

use crate::patience::SOON;
use crate::support::trace::{self, Event};
use crate::support::{Db, eventually, lease, start, timed};

async fn logged(name: &str, event: &str, level: &str, fields: &[&str]) -> Event {
    eventually(SOON, &format!("{event} of {name} is logged with {fields:?}"), || async {
        let of_name = trace::events(name);
        let found = of_name.iter().find(|e| e.get("event").is_some_and(|kind| kind == event));
        let found = found.ok_or_else(|| format!("{of_name:?}"))?;
        let complete = fields.iter().all(|f| found.contains_key(f)) && found["level"] == level;
        if complete { Ok(found.clone()) } else { Err(format!("{found:?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detach_a_kill_and_a_drain_are_logged_with_the_documented_fields() {
    timed(async {
        let db = Db::new().await;
        let [a, b]: [Pod; 2] = [start(db.config("traced-a")).await, start(db.config("traced-b")).await];
        logged("traced-a", "started", "INFO", &["pod", "incarnation", "backend"]).await;
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;

        db.client.terminate("traced-a", "liveness").await;
        let detached = logged("traced-a", "detached", "WARN", &["pod", "incarnation", "cause"]).await;
        assert!(detached["cause"].contains("administrator command"), "{detached:?}");
        let returned = logged("traced-a", "returned", "INFO", &["pod", "incarnation", "session", "away_ms"]).await;
        assert_eq!((returned["session"].as_str(), &returned["incarnation"]), ("2", &detached["incarnation"]));

        a.start(NewRun::new("wait")).await.unwrap();
        drop(a);
        let fields = ["pod", "incarnation", "by", "reason", "trigger", "in_sight_ms", "losses", "others"];
        let buried = logged("traced-a", "buried", "INFO", &fields).await;
        assert_eq!((buried["by"].as_str(), buried["reason"].as_str()), ("traced-b", "lost"));
        let claimed = logged("traced-b", "claimed", "INFO", &["pod", "incarnation", "runs", "adopted"]).await;
        assert_eq!((claimed["runs"].as_str(), claimed["adopted"].as_str()), ("1", "0"));

        b.shutdown(SOON).await.unwrap();
        let drained =
            logged("traced-b", "drained", "INFO", &["pod", "incarnation", "finished", "yielded", "aborted"]).await;
        assert_eq!((drained["yielded"].as_str(), drained["aborted"].as_str()), ("1", "0"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordon_and_a_move_are_logged_with_the_documented_fields() {
    timed(async {
        let db = Db::new().await;
        let config = |name: &str| db.config(name).with(|c| c.move_rest = Duration::ZERO);
        let busy = start(config("traced-m")).await;
        let operator = busy.operator();
        operator.cordon("traced-m").await.unwrap();
        let cordoned = logged("traced-m", "cordoned", "INFO", &["pod", "incarnation", "by"]).await;
        let by: String = db.client.scalar("SELECT by_pod FROM studio_pod_events WHERE kind = 'cordoned'", &[]).await;
        assert_eq!(cordoned["by"], by);
        operator.uncordon("traced-m").await.unwrap();
        logged("traced-m", "uncordoned", "INFO", &["pod", "incarnation"]).await;
        for _ in 0..4 {
            let steps = NewRun::new("steps").input(json!({ "steps": 10_000, "pause_ms": 1_000 })).movable(true);
            eventually(SOON, "it starts runs", || async { busy.start(steps.clone()).await.map_err(|e| e.to_string()) })
                .await;
        }
        let _idle = start(config("traced-n")).await;
        let moving = logged("traced-m", "moving", "INFO", &["pod", "incarnation", "runs", "running", "pods"]).await;
        assert_eq!((&*moving["runs"], &*moving["running"], &*moving["pods"]), ("2", "4", "2"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buried_pod_that_lives_says_that_it_was_fenced() {
    timed(async {
        let db = Db::new().await;
        let pod = start(db.config("traced-c")).await;
        let run = pod.start(NewRun::new("steps")).await.unwrap();
        // Somebody buried it by hand, and another took its run.
        let bury = "WITH gone AS (DELETE FROM studio_pods RETURNING incarnation), \
                    ended AS (UPDATE studio_pod_sessions SET ended_at = now(), reason = 'lost') \
                    UPDATE studio_runs SET fence = nextval('studio_fence'), owner_incarnation = gen_random_uuid()";
        db.client.batch_execute(bury).await.unwrap();
        let fenced =
            logged(&run.run_id.to_string(), "fenced", "INFO", &["pod", "incarnation", "run", "fence", "error"]).await;
        assert_eq!(fenced["fence"], run.fence.to_string());
        let self_fenced = logged("traced-c", "self_fenced", "WARN", &["pod", "incarnation", "runs", "reason"]).await;
        assert_eq!(self_fenced["reason"], "fenced");
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}
