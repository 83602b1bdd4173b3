//! Samples: what a pod takes of itself, and how it reaches the store.

mod days;
mod outages;
mod soak;

use std::time::Duration;

use podlock::{Config, NewRun, Pod};
use serde_json::{Value, json};

use crate::patience::SOON;
use crate::support::{Db, eventually, sql, timed};

/// Ten samples a second.
pub(super) fn often(config: Config) -> Config {
    config.with(|c| c.sample_interval = Duration::from_millis(100))
}

pub(super) async fn pod(db: &Db, name: &str) -> Pod {
    crate::support::start(often(db.config(name))).await
}

/// How many samples of this pod are stored, how many different numbers they have, and the last one.
pub(super) async fn stored(client: &sql::Client, pod: &str) -> (i64, i64, i64) {
    let sql = "SELECT count(*), count(DISTINCT (incarnation, number)), COALESCE(max(number), 0) \
               FROM studio_pod_heartbeats WHERE pod_id = $1";
    let row = client.query_one(sql, &[&pod]).await.expect("the samples");
    (row.get(0), row.get(1), row.get(2))
}

/// Waits until at least so many samples of this pod are stored.
pub(super) async fn stores(client: &sql::Client, pod: &str, least: i64) {
    eventually(SOON, &format!("{least} samples of {pod} are stored"), || async {
        let seen = stored(client, pod).await;
        if seen.0 >= least { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Stops the pod. Then each sample that it took is stored, and once.
pub(super) async fn all_are_stored_once(db: &Db, pod: Pod) {
    let (name, handle) = (pod.pod_id().to_string(), pod.clone());
    handle.shutdown(Duration::from_secs(5)).await.expect("it stops");
    let counts = pod.samples();
    let taken = i64::try_from(counts.taken).unwrap();
    assert_eq!((counts.dropped, counts.waiting), (0, 0), "{counts:?}");
    assert_eq!(stored(&db.client, &name).await, (taken, taken, taken), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_samples_itself_with_the_gauges_and_details_of_its_application() {
    timed(async {
        let db = Db::new().await;
        let pod = pod(&db, "a").await;
        let (gpu, broken) = (pod.gauge("gpu_memory").unwrap(), pod.gauge("broken").unwrap());
        gpu.set(2.5);
        broken.set(f64::NAN);
        pod.set_details(json!({"model": "m"})).unwrap();
        pod.counter("served").unwrap().add(7);
        pod.start(NewRun::new("wait")).await.unwrap();
        let echo = pod.start(NewRun::new("echo")).await.unwrap().run_id;
        db.client.run_in_state(echo, "succeeded", SOON).await;
        let wanted = "SELECT count(*) FROM studio_pod_heartbeats WHERE pod_id = 'a' AND status = 'active' \
                      AND running_runs = 1 AND gauges = '{\"gpu_memory\": 2.5, \"broken\": null}' \
                      AND details = '{\"model\": \"m\"}' AND incarnation = $1";
        eventually(SOON, "a sample has it all", || async {
            let count: i64 = db.client.scalar(wanted, &[&pod.incarnation().as_uuid()]).await;
            if count > 0 { Ok(()) } else { Err(format!("{:?}", pod.samples())) }
        })
        .await;
        drop(broken);
        eventually(SOON, "a dropped gauge vanishes", || async {
            let newest = "SELECT gauges FROM studio_pod_heartbeats ORDER BY number DESC LIMIT 1";
            let gauges: Option<Value> = db.client.scalar(newest, &[]).await;
            if gauges == Some(json!({"gpu_memory": 2.5})) { Ok(()) } else { Err(format!("{gauges:?}")) }
        })
        .await;
        let odd = "SELECT count(*) FROM studio_pod_heartbeats WHERE NOT COALESCE(cpu_usage BETWEEN 0 AND 1 \
                   AND memory_pressure BETWEEN 0 AND 1 AND memory_available > 0 AND runtime_lag_ms >= 0 \
                   AND health IN ('nominal', 'fair', 'serious', 'critical') \
                   AND sampled_at BETWEEN now() - interval '1 hour' AND now(), false)";
        assert_eq!(db.client.scalar::<i64>(odd, &[]).await, 0, "each sample is measured");
        all_are_stored_once(&db, pod).await;
    })
    .await;
}

/// "Runs served, and counters that the application adds to."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sessions_row_has_the_counters_and_a_row_that_is_held_delays_no_sample() {
    timed(async {
        let db = Db::new().await;
        let pod = pod(&db, "a").await;
        let served = pod.counter("served").unwrap();
        served.add(7);
        for _ in 0..3 {
            let run = pod.start(NewRun::new("echo")).await.unwrap().run_id;
            db.client.run_in_state(run, "succeeded", SOON).await;
        }
        let own = pod.incarnation().as_uuid();
        let says = async |wanted: &str| {
            let sql = format!("SELECT {wanted} FROM studio_pod_sessions WHERE incarnation = $1");
            eventually(SOON, wanted, || async {
                let sees: bool = db.client.scalar(&sql, &[&own]).await;
                if sees { Ok(()) } else { Err(format!("{:?}", pod.samples())) }
            })
            .await;
        };
        says("COALESCE(last_heartbeat_at > began_at AND runs_served = 3 AND counters = '{\"served\": 7}', false)")
            .await;
        // Somebody holds the row: samples are written, and the row is passed over.
        let holder = sql::connect(&db.url).await;
        holder.batch_execute("BEGIN; SELECT FROM studio_pod_sessions FOR UPDATE").await.unwrap();
        served.add(1);
        let (before, ..) = stored(&db.client, "a").await;
        stores(&db.client, "a", before + 20).await;
        says("counters = '{\"served\": 7}'").await;
        assert_eq!(pod.samples().flushes_failed, 0);
        holder.batch_execute("ROLLBACK").await.unwrap();
        says("counters = '{\"served\": 8}'").await;
        served.add(1);
        all_are_stored_once(&db, pod).await;
        let last: Value = db.client.scalar("SELECT counters FROM studio_pod_sessions", &[]).await;
        assert_eq!(last, json!({"served": 9}), "the stop writes them a last time");
        let status = "SELECT status FROM studio_pod_heartbeats ORDER BY number DESC LIMIT 1";
        assert_eq!(db.client.scalar::<String>(status, &[]).await, "draining");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_an_interval_takes_no_samples() {
    timed(async {
        let db = Db::new().await;
        let pod = crate::support::start(db.config("a").with(|c| c.sample_interval = Duration::ZERO)).await;
        let handle = pod.clone();
        handle.shutdown(Duration::from_secs(5)).await.unwrap();
        assert_eq!((pod.samples().taken, stored(&db.client, "a").await.0), (0, 0));
    })
    .await;
}
