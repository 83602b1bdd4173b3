//! A soak: three pods sample ten times a second. 20 s with the other tests; `make soak` runs it for an hour, alone, and then
//! it also measures how long writes take.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podlock::Pod;
use podlock::tokio_postgres::types::ToSql;

use super::{all_are_stored_once, often, stored, stores};
use crate::support::{Db, start, within};

/// Takes the seconds of each write.
#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<f64>>>);

impl metrics::HistogramFn for Writes {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

impl metrics::Recorder for Writes {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn register_counter(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        metrics::Counter::noop()
    }

    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::noop()
    }

    fn register_histogram(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        if key.name() == "podlock_flush_seconds" {
            metrics::Histogram::from_arc(Arc::new(self.clone()))
        } else {
            metrics::Histogram::noop()
        }
    }
}

/// The memory of this process that is in use, in kB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The backends of each pod's pool, at most four.
async fn pool_sizes(db: &Db) -> Vec<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name LIKE 'podlock/%/pool' GROUP BY application_name";
    let none: [&(dyn ToSql + Sync); 0] = [];
    db.client.query(sql, &none).await.expect("the backends").iter().map(|row| row.get(0)).collect()
}

/// "0 dropped, no growth of memory or connections, the pool never exhausted."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_drops_nothing_and_nothing_grows() {
    let minutes: Option<f64> =
        std::env::var("SOAK_MINUTES").ok().map(|text| text.parse().expect("a number of minutes"));
    let lasts = minutes.map_or(Duration::from_secs(20), |minutes| Duration::from_secs_f64(minutes * 60.0));
    let writes = Writes::default();
    if minutes.is_some() {
        metrics::set_global_recorder(writes.clone()).expect("this test runs alone");
    }
    within(lasts + Duration::from_secs(600), async {
        let db = Db::new().await;
        let mut pods: Vec<Pod> = Vec::new();
        for name in ["a", "b", "c"] {
            let pod = start(often(db.config(name))).await;
            pod.gauge("constant").unwrap().set(1.0);
            pods.push(pod);
            stores(&db.client, name, 20).await;
        }
        let (began, before) = (Instant::now(), resident());
        let (mut most_waiting, mut most_connections) = (0, 0);
        while began.elapsed() < lasts {
            tokio::time::sleep(Duration::from_millis(500)).await;
            most_waiting = pods.iter().map(|pod| pod.samples().waiting).max().unwrap().max(most_waiting);
            most_connections = pool_sizes(&db).await.into_iter().max().unwrap_or(0).max(most_connections);
        }
        let grown = resident().saturating_sub(before);
        // The writer's own, and one more: the keeper of days asks in between. And a write each 30 s at the latest, of 300
        // samples then. Beside other tests, no more than the pool has, and half a queue.
        let (connections, waiting) = if minutes.is_some() { (2, 330) } else { (4, 1000) };
        assert!(most_connections <= connections, "{most_connections} connections of a pool");
        assert!(most_waiting <= waiting, "{most_waiting} samples waited");
        let mut rows = 0;
        for pod in pods {
            let name = pod.pod_id().to_string();
            all_are_stored_once(&db, pod).await;
            rows += stored(&db.client, &name).await.0;
        }
        println!(
            "soak of {lasts:?}: {rows} samples, at most {most_waiting} waited, at most {most_connections} connections of a \
             pool, memory grew by {grown} kB"
        );
        if minutes.is_some() {
            let mut seconds = std::mem::take(&mut *writes.0.lock().unwrap());
            seconds.sort_by(f64::total_cmp);
            let p = |share: usize| seconds[(seconds.len() - 1) * share / 100] * 1e3;
            println!("{} writes: p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms", seconds.len(), p(50), p(99), p(100));
            assert!(p(99) < 100.0, "the p99 of a write is {:.1} ms", p(99));
            assert!(grown < 32 << 10, "memory grew by {grown} kB");
        }
    })
    .await;
}
