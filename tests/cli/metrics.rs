//! `podlock pod --metrics`: what Prometheus reads, and that each metric is recorded.

use std::collections::BTreeMap;

use podlock::meters::{self, Kind};
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Db, Lines, PodProcess, TEST, http_client, wait_for, within};

/// Metrics that this scenario cannot provoke, and why.
const ELSEWHERE: [(&str, &str); 7] = [
    (
        "podlock_worker_transitions_total",
        "a worker is active from its first report; the tests of workers make some inactive",
    ),
    ("podlock_backlog_failures_total", "no read of the backlog fails here"),
    ("podlock_samples_dropped_total", "samples are dropped only while the database is away for long"),
    ("podlock_flushes_failed_total", "as above"),
    ("podlock_flush_seconds", "the tests of the history see it"),
    ("podlock_roll_ups_total", "the tests of the history see it"),
    ("podlock_close_failures_total", "the burial here closes each session"),
];

/// The address of a pod's metrics, as its log says it.
async fn address(log: &Lines) -> String {
    let line = log.event("metrics_listening").await;
    format!("http://{}", line["address"].as_str().unwrap())
}

/// A pod with metrics.
struct Measured {
    pod: PodProcess,
    url: String,
    http: reqwest::Client,
}

/// The values of each series, by the name and the labels as they are written.
type Series = BTreeMap<String, f64>;

impl Measured {
    async fn start(db: &Db, name: &str) -> Self {
        let pod = db.pod(name, &["--metrics", "127.0.0.1:0"]).await;
        let url = address(&pod.log).await;
        Self { pod, url, http: http_client() }
    }

    /// A process that was frozen may have lost the connection on which this one reads, so it is read again.
    async fn series(&self) -> Series {
        wait_for("the metrics are read", || read(&self.http, &self.url)).await
    }

    /// Waits until the sum of the series of a metric whose labels contain `label` is at least 1.
    async fn counts(&self, name: &str, label: &str) -> f64 {
        wait_for(&format!("{name} {label} is recorded"), || async {
            let series = self.series().await;
            let of_name = series.iter().filter(|(key, _)| {
                key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
                    && key.contains(label)
            });
            let sum: f64 = of_name.map(|(_, value)| value).sum();
            if sum >= 1.0 { Ok(sum) } else { Err(format!("{sum}")) }
        })
        .await
    }
}

async fn read(http: &reqwest::Client, url: &str) -> Result<Series, String> {
    let response = http.get(format!("{url}/metrics")).send().await.map_err(|e| e.to_string())?;
    let status = response.status();
    let text = response.text().await.map_err(|e| e.to_string())?;
    assert!(status.is_success(), "{status}: {text}");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let series = lines.map(|line| {
        let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        (key.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line:?}")))
    });
    Ok(series.collect())
}

/// "`--metrics ADDR` for the metrics' listener": it answers before the pod is registered, and ends with the process.
#[test]
fn metrics_are_served_on_a_listener_of_their_own_from_before_the_start_to_the_end() {
    within(TEST, async {
        let db = Db::new().await;
        let first = db.pod("same", &[]).await;
        // The second process of a name waits until the first has ended.
        let mut command = db.command(&["pod", "--name", "same", "--log-format", "json", "--metrics", "127.0.0.1:0"]);
        command.env("PODLOCK_LEASE", "3s").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut waiting = command.spawn().unwrap();
        let (log, out) = (Lines::read(waiting.stderr.take().unwrap()), Lines::read(waiting.stdout.take().unwrap()));
        let (url, http) = (address(&log).await, http_client());
        let series = read(&http, &url).await.unwrap();
        assert_eq!(out.all(), Vec::<String>::new(), "the pod has not started yet");
        let build = format!("podlock_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        assert_eq!(series.get(&build), Some(&1.0), "{series:?}");
        // Counters begin at 0, so that their first increase can be seen.
        assert_eq!(series.get("podlock_detaches_total"), Some(&0.0));
        assert_eq!(series.get("podlock_burials_total{reason=\"lost\"}"), Some(&0.0));

        let response = http.get(format!("{url}/metrics")).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let text = response.text().await.unwrap();
        assert!(text.contains("# HELP podlock_detaches_total How often"), "{text}");
        assert!(text.contains("# TYPE podlock_detaches_total counter"), "{text}");
        for path in ["/", "/readyz", "/v1/runs", "/metrics/x"] {
            assert_eq!(http.get(format!("{url}{path}")).send().await.unwrap().status(), 404, "{path}");
        }
        assert_eq!(http.post(format!("{url}/metrics")).send().await.unwrap().status(), 405);
        let foreign = http.get(format!("{url}/metrics")).header("host", "evil.example").send().await.unwrap();
        assert_eq!(foreign.status(), 421, "a page of another site reads nothing");

        crate::harness::signal(waiting.id().unwrap(), Signal::TERM);
        let status = tokio::time::timeout(crate::harness::SOON, waiting.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{:?}", log.all());
        assert!(http.get(format!("{url}/metrics")).send().await.is_err(), "nobody listens any more");
        drop(first);
    });
}

#[test]
fn a_taken_address_is_said_and_nothing_starts() {
    within(TEST, async {
        let db = Db::migrated().await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let done = db.run(&["pod", "--name", "a", "--metrics", &address]).await;
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains(&format!("cannot serve metrics on {address}")), "{done:?}");
        assert_eq!(db.run(&["pod", "--metrics", "nowhere"]).await.code, 2);
    });
}

/// "every metric": a pod is cut off, killed and frozen; its runs are taken over, quarantined and fenced.
#[test]
fn each_metric_is_recorded_by_pods_that_live_and_die() {
    within(TEST, async {
        let db = Db::new().await;
        let client = db.client().await;
        let (mut a, b) = (Measured::start(&db, "a").await, Measured::start(&db, "b").await);
        let alive = wait_for("both are seen alive", || async {
            let series = b.series().await;
            let alive = series.get("podlock_pods{state=\"alive\"}").copied();
            if alive == Some(2.0) { Ok(series) } else { Err(format!("{alive:?}")) }
        })
        .await;
        assert_eq!(alive.get("podlock_attached"), Some(&1.0));
        b.counts("podlock_lease_round_trip_seconds_count", "").await;
        b.counts("podlock_pool_wait_seconds_count", "").await;

        // A run from its start to its end, and a worker.
        a.pod.demo(json!({ "chunks": 1, "delay_ms": 1 })).await;
        a.counts("podlock_runs_ended_total", "succeeded").await;
        let worker = json!({ "url": "http://127.0.0.1:9", "spec": { "kind": "llm" } });
        let put = a.pod.http.put(format!("{}/v1/workers", a.pod.url)).json(&worker).send().await.unwrap();
        assert!(put.status().is_success(), "{put:?}");
        a.counts("podlock_notices_sent_total", "workers").await;
        b.counts("podlock_notices_heard_total", "workers").await;
        b.counts("podlock_worker_bytes", "").await;

        // Frozen, it cannot come back: the peer sees that the liveness lock is free and the witness is held.
        let end = "SELECT pg_terminate_backend(liveness_pid) FROM studio_pods WHERE pod_id = 'a'";
        a.pod.signal(Signal::STOP);
        client.execute(end, &[]).await.unwrap();
        b.counts("podlock_waits_total", "connection_broken").await;
        a.pod.signal(Signal::CONT);
        a.counts("podlock_detaches_total", "").await;
        wait_for("it is back", || async {
            let attached = a.series().await.get("podlock_attached").copied();
            if attached == Some(1.0) { Ok(()) } else { Err(format!("{attached:?}")) }
        })
        .await;

        // Somebody else has the run: the next write is refused.
        let long = json!({ "chunks": 100_000, "delay_ms": 20 });
        let run = a.pod.demo(long).await;
        let steal = "UPDATE studio_runs SET fence = nextval('studio_fence') WHERE run_id = $1";
        let id: uuid::Uuid = run.parse().unwrap();
        client.execute(steal, &[&id]).await.unwrap();
        a.counts("podlock_fence_refusals_total", "").await;
        // It is still named as the owner, and takes the run up again.
        a.counts("podlock_runs_recovered_total", "adopted").await;

        // Killed, with one run that goes on and one that has had enough owners.
        // It makes no checkpoint meanwhile, which would set the count of crashes back.
        let poison = a.pod.demo(json!({ "chunks": 2, "delay_ms": 600_000 })).await;
        let began = |line: &str| (line.contains(&poison) && line.contains("executing")).then_some(());
        a.pod.log.find("the run is executing", began).await;
        let crashes = "UPDATE studio_runs SET crashes = 2 WHERE run_id = $1";
        assert_eq!(client.execute(crashes, &[&poison.parse::<uuid::Uuid>().unwrap()]).await.unwrap(), 1);
        let of_a = a.series().await;
        a.pod.signal(Signal::KILL);
        a.pod.ended().await;
        b.counts("podlock_burials_total", "lost").await;
        b.counts("podlock_detection_seconds_count", "").await;
        b.counts("podlock_burial_seconds_count", "").await;
        b.counts("podlock_runs_recovered_total", "lost").await;
        b.counts("podlock_runs_quarantined_total", "").await;
        b.counts("podlock_runs", "").await;
        b.counts("podlock_notices_sent_total", "burial").await;
        b.counts("podlock_backlog_running_runs", "demo").await;
        b.counts("podlock_backlog_free_capacity", "demo").await;
        b.counts("podlock_backlog_pods", "demo").await;

        let mut seen = b.series().await;

        // Frozen for longer than its lease: it gives its incarnation up when it wakes.
        b.pod.signal(Signal::STOP);
        wait_for("the server has ended its sessions", || async {
            let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                       (SELECT oid FROM pg_database WHERE datname = current_database())";
            let held: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
            if held == 0 { Ok(()) } else { Err(format!("{held} locks")) }
        })
        .await;
        b.pod.signal(Signal::CONT);
        b.counts("podlock_self_fences_total", "self_fenced").await;

        seen.extend(b.series().await);
        for (key, value) in of_a {
            *seen.entry(key).or_default() += value;
        }
        let series = seen;
        let sum = |name: &str| {
            let of = series.iter().filter(|(key, _)| key.split('{').next() == Some(name));
            of.map(|(_, value)| value).sum::<f64>()
        };
        let has = |name: &str| series.keys().any(|key| key.split('{').next() == Some(name));
        for meter in meters::ALL.iter().filter(|meter| ELSEWHERE.iter().all(|(of, _)| *of != meter.name)) {
            let is_recorded = match meter.kind {
                Kind::Counter => sum(meter.name) >= 1.0,
                Kind::Histogram => sum(&format!("{}_count", meter.name)) >= 1.0,
                _ => has(meter.name),
            };
            assert!(is_recorded, "{} was not recorded: {series:#?}", meter.name);
        }
        assert!(ELSEWHERE.iter().all(|(of, _)| meters::ALL.iter().any(|meter| meter.name == *of)));
        for key in series.keys() {
            let name = key.split('{').next().unwrap();
            let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let of = meters::ALL.iter().find(|meter| [name, bare].contains(&meter.name));
            let of = of.unwrap_or_else(|| panic!("{name} is in no list"));
            for label in key.split_once('{').map_or("", |(_, labels)| labels).split("\",").filter(|l| l.contains('=')) {
                let label = label.split('=').next().unwrap();
                assert!(label == "le" || of.labels.iter().any(|known| known.name == label), "{key}");
            }
        }
    });
}
