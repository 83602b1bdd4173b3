//! Pods of one fleet with different settings, as while a setting is rolled out.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use podlock::operator::PodRow;
use podlock::throwaway::Server;
use podlock::{Config, Incarnation, NewRun, OnStall, Operator, Outcome, Pod, Run, RunId};
use serde_json::json;

use crate::patience::{SOON, slack};
use crate::support::faults::{OwnServer, reconnected};
use crate::support::proxy::{ALL, Flow, Proxy};
use crate::support::{Db, eventually, sql, start, timed, trace};

/// The shortest lease that there is.
const SHORT: Duration = Duration::from_secs(2);

/// The longer lease, far longer than the observers' `settle`. The observers' wait ends a tenth of this lease after the
/// pod has told its runs to stop. So a slow machine gets a longer lease.
fn long() -> Duration {
    slack(Duration::from_secs(15)).min(Duration::from_secs(60))
}

/// Why and when a run was first told to stop.
type Told = Arc<OnceLock<(String, Instant)>>;

/// A pod of the longer lease behind a proxy, with a run that goes on until it is told to stop.
struct LongPod {
    pod: Pod,
    proxy: Proxy,
    incarnation: Incarnation,
    run: RunId,
    told: Told,
}

impl LongPod {
    async fn start(db: &Db, server: &Server, name: &str) -> Self {
        let proxy = Proxy::before(server.port()).await;
        let config = db.config(name).lease(long()).with(|c| {
            c.database_url = proxy.url(&db.pod_url, server.port()).into();
        });
        let told = Told::default();
        let for_run = Arc::clone(&told);
        let handler = move |run: Run| {
            let told = Arc::clone(&for_run);
            async move {
                if run.attempt() > 1 {
                    return Ok(Outcome::Done(json!(run.attempt())));
                }
                let reason = run.stopped().await;
                told.get_or_init(|| (reason.to_string(), Instant::now()));
                Err::<Outcome, _>("told to stop".into())
            }
        };
        let pod = Pod::builder(config).handler("goes_on", handler).start().await.expect("the pod starts");
        let run = pod.start(NewRun::new("goes_on")).await.expect("a run").run_id;
        let incarnation = pod.incarnation();
        Self { pod, proxy, incarnation, run, told }
    }

    /// Waits until this incarnation is gone from the roster. Its run must have been told to stop before.
    async fn is_buried_after_its_run_was_told_to_stop(&self, client: &sql::Client, since: Instant) {
        let settings = self.pod.settings();
        eventually(settings.lease + SOON, "the pod of the longer lease is buried", || async {
            let sql = "SELECT count(*) FROM studio_pods WHERE incarnation = $1";
            let there: i64 = client.scalar(sql, &[&self.incarnation.as_uuid()]).await;
            if there == 0 { Ok(()) } else { Err(format!("told: {:?}", self.told.get())) }
        })
        .await;
        let gone = since.elapsed();
        let (reason, told) = self.told.get().unwrap_or_else(|| {
            panic!("it was gone after {gone:?}, while its run went on; its self_fence is {:?}", settings.self_fence)
        });
        println!("told to stop ({reason}) after {:?}, gone after {gone:?}", told.duration_since(since));
        let (reason, by) = client.session_end(self.incarnation).await.expect("its end");
        assert_eq!((reason.as_str(), by.is_some()), ("lost", true));
    }
}

/// A pod with the shorter lease. It buries the other pod and takes over its run.
async fn observer(db: &Db, name: &str) -> Pod {
    let config = db.config(name).lease(SHORT);
    let handler = |run: Run| async move { Ok(Outcome::Done(json!(run.attempt()))) };
    Pod::builder(config).handler("goes_on", handler).start().await.expect("the pod starts")
}

/// The bug: while a lease was rolled out, the database restarted. Pods with a lease of 2 s buried a pod with a lease of
/// 30 s after 2.2 s.
async fn a_restart_beside(observers: &[&str], long_pod: &str) {
    let server = OwnServer::start(&[]).await;
    let db = Db::on(&server).await;
    let long_pod = LongPod::start(&db, &server, long_pod).await;
    let mut pods = Vec::new();
    for name in observers {
        pods.push(observer(&db, name).await);
    }
    // The pod's sessions end with the server, and the proxy cuts its new connections.
    long_pod.proxy.future(&ALL, Flow::Cut);
    let since = Instant::now();
    server.suffers(Server::restart_fast).await;
    let (client, _) = reconnected(&db.url).await;
    long_pod.is_buried_after_its_run_was_told_to_stop(&client, since).await;
    let run = client.run_in_state(long_pod.run, "succeeded", SOON).await;
    assert_eq!(run.attempt, 2, "an observer went on with it, once: {run:?}");
    // When the pod can connect again, it registers as a new incarnation.
    long_pod.proxy.future(&ALL, Flow::Pass);
    eventually(SOON, "it is back", || async {
        let now = (long_pod.pod.status().attached, long_pod.pod.incarnation());
        if now.0 && now.1 != long_pod.incarnation { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    client.assert_fold_is_roster().await;
}

/// One observer. It finds a single lost pod, which counts as dead as soon as the observer is settled for that pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_after_a_restart_a_pod_of_a_longer_lease_is_buried_only_after_its_run_was_told_to_stop() {
    timed(a_restart_beside(&["unequal-a"], "unequal-one")).await;
}

/// Several observers. Each may find the others lost too. Then it holds the burial of the pod for as long as one
/// observer waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_the_same_beside_several_observers() {
    timed(a_restart_beside(&["unequal-b", "unequal-c", "unequal-d"], "unequal-two")).await;
}

/// The pod's liveness connection breaks and does not come back. Its witness lock is still held, so its process lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_a_pod_of_a_longer_lease_with_a_broken_connection_gets_its_own_grace() {
    timed(async {
        let db = Db::new().await;
        let long_pod = LongPod::start(&db, crate::support::server(), "unequal-broken").await;
        let _observer = observer(&db, "unequal-e").await;
        long_pod.proxy.future(&["liveness"], Flow::Cut);
        let since = Instant::now();
        assert_eq!(long_pod.proxy.present(&["liveness"], Flow::Cut), 1);
        long_pod.is_buried_after_its_run_was_told_to_stop(&db.client, since).await;
        assert_eq!(db.client.run_in_state(long_pod.run, "succeeded", SOON).await.attempt, 2);
    })
    .await;
}

/// A wait that is not the observer's own is told like any other: why, and for how long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_no_observer_has_been_up_for_long_enough_to_bury_is_told_as_waited_for() {
    timed(async {
        let db = Db::new().await;
        let long_pod = LongPod::start(&db, crate::support::server(), "unequal-waited").await;
        let _observer = observer(&db, "unequal-f").await;
        // The observer has just started. For all that it knows, the server has as well.
        long_pod.proxy.all(&ALL, Flow::Cut);
        let wait = eventually(SOON, "the wait is told", || async {
            let sql = "SELECT detail FROM studio_pod_events WHERE kind = 'held' AND pod_id = 'unequal-waited'";
            let rows = db.client.query(sql, &[]).await.unwrap();
            let details: Vec<serde_json::Value> = rows.iter().map(|row| row.get(0)).collect();
            details.iter().find(|d| d["reason"] == "unsettled").cloned().ok_or_else(|| format!("{details:?}"))
        })
        .await;
        let told = Duration::from_millis(wait["wait_ms"].as_u64().unwrap());
        assert!(told > SHORT && told <= long_pod.pod.settings().settle, "{wait}");
    })
    .await;
}

/// Its beats are rarer than the looks of its observer, whose policy is to evict a pod that makes no progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_beats_less_often_than_its_observer_looks_is_not_suspected() {
    timed(async {
        let db = Db::new().await;
        let rare = start(db.config("rare").with(|c| c.beat_interval = Some(Duration::from_secs(2)))).await;
        let eager = db.config("eager").with(|c| {
            c.beat_interval = Some(Duration::from_millis(200));
            c.on_stall = OnStall::Evict;
        });
        let _eager = start(eager).await;
        let incarnation = rare.incarnation();
        let index = "SELECT event_index FROM studio_pods WHERE pod_id = 'rare'";
        let mut last: i64 = db.client.scalar(index, &[]).await;
        for _ in 0..3 {
            last = eventually(SOON, "it beats", || async {
                let now: i64 = db.client.scalar(index, &[]).await;
                if now > last { Ok(now) } else { Err(format!("{now}")) }
            })
            .await;
        }
        let sql = "SELECT count(*) FROM studio_pod_events WHERE kind IN ('suspected', 'evicted')";
        assert_eq!(db.client.scalar::<i64>(sql, &[]).await, 0, "nobody was suspected");
        assert_eq!(rare.incarnation(), incarnation);
    })
    .await;
}

/// The times that the row of a pod says, in milliseconds.
async fn said(client: &sql::Client, pod: &str) -> (Option<i32>, Option<i32>) {
    let sql = "SELECT lease_ms, self_fence_ms FROM studio_pods WHERE pod_id = $1";
    let row = client.query_one(sql, &[&pod]).await.expect("its row");
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_differs_is_named_once_with_each_setting_and_rows_and_lists_say_the_lease() {
    timed(async {
        let db = Db::new().await;
        let equal = |name: &str| db.config(name).lease(Duration::from_secs(10));
        let _first = start(equal("differ-a")).await;
        let _second = start(equal("differ-b")).await;
        let other = start(equal("differ-other").with(|c| c.self_fence = Some(Duration::from_secs(7)))).await;
        assert_eq!(said(&db.client, "differ-a").await, (Some(10_000), Some(8000)));
        assert_eq!(said(&db.client, "differ-other").await, (Some(10_000), Some(7000)));
        let warnings = || -> Vec<_> {
            let events = trace::events("settings_differ");
            let ours = events.into_iter().filter(|e| e["pod"].starts_with("differ-") || e["by"].starts_with("differ-"));
            ours.map(|e| ["by", "pod", "setting", "ours", "theirs", "level"].map(|field| e[field].clone())).collect()
        };
        let due = |by: &str, pod: &str, ours: &str, theirs: &str| {
            [by, pod, "self_fence", ours, theirs, "WARN"].map(str::to_owned)
        };
        let all = [
            due("differ-a", "differ-other", "8s", "7s"),
            due("differ-b", "differ-other", "8s", "7s"),
            due("differ-other", "differ-a", "7s", "8s"),
            due("differ-other", "differ-b", "7s", "8s"),
        ];
        eventually(SOON, "each names whom it differs from", || async {
            let mut warned = warnings();
            warned.sort();
            if warned == all { Ok(()) } else { Err(format!("{warned:?}")) }
        })
        .await;
        // A row that lost what it said, as by the hand of somebody: the pod says it again when it returns.
        let forget = "UPDATE studio_pods SET lease_ms = NULL, self_fence_ms = NULL WHERE pod_id = 'differ-other'";
        assert_eq!(db.client.execute(forget, &[]).await.unwrap(), 1);
        assert_eq!(db.client.terminate("differ-other", "liveness").await, 1);
        eventually(SOON, "its row says it again", || async {
            let said = said(&db.client, "differ-other").await;
            if said == (Some(10_000), Some(7000)) { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        let listed: Vec<PodRow> = operator.pods(Default::default()).await.unwrap();
        assert!(listed.len() == 3 && listed.iter().all(|pod| pod.lease_ms == Some(10_000)), "{listed:?}");
        // Looks went on all the while, and nothing was said a second time.
        let mut warned = warnings();
        warned.sort();
        assert_eq!(warned, all);
        drop(other);
    })
    .await;
}

/// What no pod says is refused where it is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_row_says_no_lease_that_no_pod_can_have() {
    timed(async {
        let db = Db::new().await;
        let config: Config = db.config("a");
        let _pod = start(config).await;
        for (lease, self_fence) in [("1999", "1000"), ("3600001", "1000"), ("10000", "10000"), ("10000", "0")] {
            let sql = format!("UPDATE studio_pods SET lease_ms = {lease}, self_fence_ms = {self_fence}");
            let error = db.client.batch_execute(&sql).await.expect_err("refused");
            assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::CHECK_VIOLATION), "{sql}");
        }
    })
    .await;
}
