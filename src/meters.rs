//! The metrics of podlock: the name, kind and meaning of each, in one place. Whoever records one names it by its constant here.
//!
//! podlock records through the facade crate `metrics`. A service that installs no recorder pays an atomic read for each.
//! No label has a value of unknown number, such as a run's id.
//!
//! ```
//! // After the service has installed its recorder.
//! podlock::meters::describe();
//! ```
//!
//! `docs/metrics.md` is made from this list (`make docs`).

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Declares the metrics: a constant with the name, and [`ALL`]. A label may state its values: `"to" = ["a", "b"]`.
macro_rules! meters {
    ($($(#[doc = $text:literal])+ $kind:ident $name:ident = $metric:literal
       [$($label:literal $(= [$($value:literal),*])?),*];)+) => {
        $(
            $(#[doc = $text])+
            pub(crate) const $name: &str = $metric;
        )+

        /// Each metric.
        pub const ALL: &[Meter] = &[$(Meter {
            name: $metric,
            kind: Kind::$kind,
            labels: &[$(Label { name: $label, values: &[$($($value),*)?] }),*],
            text: concat!($($text),+),
        }),+];
    };
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is set.
    Gauge,
    /// Many values of it are recorded.
    Histogram,
}

/// A label of a metric.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values, if podlock knows all of them. [`describe`] makes counters with these values begin at 0.
    pub values: &'static [&'static str],
}

/// A metric that podlock records.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Meter {
    /// Its name, as Prometheus writes it.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [Label],
    /// The meaning, in words.
    pub text: &'static str,
}

/// Bounds of histogram buckets that suit all histograms of podlock, in seconds: from a round trip within a machine to a
/// burial that waits for a long lease.
pub const BUCKETS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// How many kinds have series of their own in the metrics with the label `kind`: the first so many of the pod's handlers,
/// by name. Runs of all other kinds count under [`OTHERS`]. More kinds make more series in every pod.
pub const KINDS_MOST: usize = 50;

/// The value of the label `kind` for all kinds that have no series of their own.
pub const OTHERS: &str = "(others)";

/// How many pool connections of this process are in use. Whoever gets or gives back a connection changes it.
static POOL_IN_USE: AtomicI64 = AtomicI64::new(0);

/// Gives each metric its text and unit at the recorder that is installed, and makes counters begin at 0, so that the first
/// increase can be seen. Without a recorder it does nothing. A pod calls it when it starts. A service that installs its
/// recorder later calls it then.
pub fn describe() {
    for meter in ALL {
        let (unit, text) = (unit_of(meter.name), meter.text.trim_start());
        match (meter.kind, unit) {
            (Kind::Counter, _) => metrics::describe_counter!(meter.name, text),
            (Kind::Gauge, Some(unit)) => metrics::describe_gauge!(meter.name, unit, text),
            (Kind::Gauge, None) => metrics::describe_gauge!(meter.name, text),
            (Kind::Histogram, Some(unit)) => metrics::describe_histogram!(meter.name, unit, text),
            (Kind::Histogram, None) => metrics::describe_histogram!(meter.name, text),
        }
        match (meter.kind, meter.labels) {
            (Kind::Counter, []) => metrics::counter!(meter.name).increment(0),
            (Kind::Counter, [label]) => {
                for value in label.values {
                    metrics::counter!(meter.name, label.name => *value).increment(0);
                }
            }
            _ => {}
        }
    }
    note_build();
    pool_in_use(0);
}

fn unit_of(name: &str) -> Option<metrics::Unit> {
    match name {
        _ if name.ends_with("_seconds") => Some(metrics::Unit::Seconds),
        _ if name.ends_with("_bytes") => Some(metrics::Unit::Bytes),
        _ => None,
    }
}

/// Says which version this is. A pod repeats it with each look at the roster, for a recorder that was installed later.
pub(crate) fn note_build() {
    metrics::gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Records a time in seconds.
pub(crate) fn took(histogram: &'static str, time: Duration) {
    metrics::histogram!(histogram).record(time.as_secs_f64());
}

/// Counts one, under the value of a label.
pub(crate) fn count(counter: &'static str, label: &'static str, value: &'static str) {
    metrics::counter!(counter, label => value).increment(1);
}

/// Changes how many pool connections are in use.
pub(crate) fn pool_in_use(by: i64) {
    let now = POOL_IN_USE.fetch_add(by, Ordering::Relaxed) + by;
    gauge(POOL_IN_USE_NOW, now);
}

/// Sets a gauge without labels.
pub(crate) fn gauge(gauge: &'static str, to: i64) {
    metrics::gauge!(gauge).set(to as f64);
}

/// Sets a gauge, under the value of a label.
pub(crate) fn gauge_of(gauge: &'static str, label: &'static str, value: impl Into<metrics::SharedString>, to: i64) {
    metrics::gauge!(gauge, label => value.into()).set(to as f64);
}

meters! {
    /// Pods of the roster as this pod's last look at the whole roster showed them, itself included, by state: `alive` (the
    /// liveness lock is held), `draining` (the same, and the pod is stopping), `free` (its lock is free and it is not buried
    /// yet), `unknown` (its lock could not be probed).
    Gauge PODS = "podlock_pods" ["state" = ["alive", "draining", "free", "unknown"]];
    /// Whether this pod holds its lock: 1 or 0.
    Gauge ATTACHED = "podlock_attached" [];
    /// How often this pod lost its liveness session. Its runs go on, and the pod comes back.
    Counter DETACHES = "podlock_detaches_total" [];
    /// How often this pod gave up its incarnation and told its runs to stop: `self_fenced` (it was silent for too long, L7),
    /// `fenced` (it was buried, or its row was gone).
    Counter SELF_FENCES = "podlock_self_fences_total" ["reason" = ["self_fenced", "fenced"]];
    /// Seconds from sending a ping on the liveness session to its answer. Only answered pings count.
    Histogram LEASE_ROUND_TRIP = "podlock_lease_round_trip_seconds" [];
    /// Seconds from when this pod saw a peer's liveness lock free to its verdict that the peer is dead. It sees the lock free
    /// when its watch session is granted the lock, or when a look at the roster is answered.
    Histogram DETECTION = "podlock_detection_seconds" [];
    /// Seconds from when this pod saw a peer's liveness lock free to the commit of its burial by this pod.
    Histogram BURIAL = "podlock_burial_seconds" [];
    /// Pods that this pod buried, by reason.
    Counter BURIALS = "podlock_burials_total"
        ["reason" = ["shutdown", "lost", "replaced", "detached", "stalled", "evicted"]];
    /// Burials that wait, by why, each counted by this pod when it begins to wait. The peer's lock is free, and it may live:
    /// `connection_broken`, `second_loss`, `many_lost`, `unconfirmed`, `many_unknown`. Or the peer is dead: `unsettled` (this
    /// pod has not been up for long enough to bury it), `door_closed` (the server accepts no connection), `held_up` (another
    /// transaction has had its row locked for a lease).
    Counter WAITS = "podlock_waits_total"
        ["reason" = ["connection_broken", "second_loss", "many_lost", "unconfirmed", "many_unknown", "unsettled",
                     "door_closed", "held_up"]];
    /// Runs that this process executes, or is about to begin.
    Gauge RUNS = "podlock_runs" [];
    /// Runs that this pod took over, by how the attempt before ended: as the incarnation of the owner ended, `released` (a
    /// handler yielded, or a person released the run), `adopted` (this pod owned the run and did not execute it). The first
    /// attempt of a run is not counted.
    Counter RECOVERED = "podlock_runs_recovered_total"
        ["reason" = ["shutdown", "lost", "replaced", "detached", "stalled", "evicted", "released", "adopted"]];
    /// Attempts on this pod that ended, by how: `succeeded`, `failed`, `yielded`.
    Counter ENDED = "podlock_runs_ended_total" ["outcome" = ["succeeded", "failed", "yielded"]];
    /// Runs that this pod quarantined.
    Counter QUARANTINED = "podlock_runs_quarantined_total" [];
    /// Writes of runs that were refused, because another attempt has the run or the run has ended.
    Counter FENCE_REFUSALS = "podlock_fence_refusals_total" [];
    /// Runs that no pod of the roster owns, by kind, as this pod last read `studio_backlog`.
    Gauge BACKLOG_WAITING = "podlock_backlog_waiting_runs" ["kind"];
    /// Runs that a pod of the roster owns, by kind, as this pod last read `studio_backlog`.
    Gauge BACKLOG_RUNNING = "podlock_backlog_running_runs" ["kind"];
    /// How many more runs of a kind the pods of the roster have room for, as this pod last read `studio_backlog`. A place that
    /// may go to several kinds counts for each of them.
    Gauge BACKLOG_FREE = "podlock_backlog_free_capacity" ["kind"];
    /// Pods that take runs of a kind, as this pod last read `studio_backlog`.
    Gauge BACKLOG_PODS = "podlock_backlog_pods" ["kind"];
    /// Reads of `studio_backlog` that failed. The gauges then keep what was read before.
    Counter BACKLOG_FAILURES = "podlock_backlog_failures_total" [];
    /// Seconds that a caller waited for a connection of a pool, also in vain.
    Histogram POOL_WAIT = "podlock_pool_wait_seconds" [];
    /// Connections of all pools of this process that are in use.
    Gauge POOL_IN_USE_NOW = "podlock_pool_in_use" [];
    /// Notices that this pod heard, by the word. Notices of one word that come while the session is busy count as one.
    Counter NOTICES_HEARD = "podlock_notices_heard_total"
        ["word" = ["look", "free", "roster", "log", "recover", "take", "runs", "asked", "workers"]];
    /// Statements of this pod that send notices, by what they tell of: `look` (a loss), `orphans`, `run` (a submit or a start
    /// in a caller's transaction), `workers`, `drain`, `burial`, `stream` (chunks that somebody on another pod reads).
    Counter NOTICES_SENT = "podlock_notices_sent_total"
        ["about" = ["look", "orphans", "run", "workers", "drain", "burial", "stream"]];
    /// 1, with the version of podlock.
    Gauge BUILD = "podlock_build_info" ["version"];
    /// Samples that were dropped because the queue was full.
    Counter SAMPLES_DROPPED = "podlock_samples_dropped_total" [];
    /// Flushes of samples that failed. The samples stay in the queue.
    Counter FLUSHES_FAILED = "podlock_flushes_failed_total" [];
    /// Seconds that a flush of samples took.
    Histogram FLUSH_SECONDS = "podlock_flush_seconds" [];
    /// Roll-ups of samples and scores that this pod made, by outcome: made, failed.
    Counter ROLL_UPS = "podlock_roll_ups_total" ["outcome" = ["made", "failed"]];
    /// Sessions in the history that stayed open after their incarnation had ended, and were closed later.
    Counter CLOSE_FAILURES = "podlock_close_failures_total" [];
    /// Changes of a worker's liveness that this pod saw, by what it became: active, inactive.
    Counter WORKER_TRANSITIONS = "podlock_worker_transitions_total" ["to" = ["active", "inactive"]];
    /// Bytes of memory that this pod's copy of the worker registry takes, about.
    Gauge WORKER_BYTES = "podlock_worker_bytes" [];
    /// Alerts that this pod heard, by kind: lost, quarantined, inactive. Each pod hears each alert.
    Counter ALERTS = "podlock_alerts_total" ["kind"];
    /// Alerts that the callback of the service missed because it was too slow.
    Counter ALERTS_MISSED = "podlock_alerts_missed_total" [];
    /// Attempts of this pod to deliver an alert to a webhook, by outcome: delivered, failed (tried again), given_up.
    Counter WEBHOOK_DELIVERIES = "podlock_webhook_deliveries_total" ["outcome"];
    /// How often this pod found that the log was cut before all of it was delivered to a webhook. Alerts may be lost.
    Counter WEBHOOK_CUTS = "podlock_webhook_cuts_total" [];
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    use super::*;
    use crate::pages;

    const ALERTS: &str = include_str!("../ops/alerts.yaml");
    const DASHBOARD: &str = include_str!("../ops/grafana.json");
    const SCALING: &str = include_str!("meters.scaling.md");

    fn document() -> String {
        let mut metrics = String::new();
        for meter in ALL {
            let labels: Vec<_> = meter.labels.iter().map(|label| format!("`{}`", label.name)).collect();
            let kind = format!("{:?}", meter.kind).to_lowercase();
            writeln!(metrics, "| `{}` | {kind} | {} | {} |", meter.name, labels.join(", "), meter.text.trim()).unwrap();
        }
        pages::filled(include_str!("meters.md"), &[("metrics", &metrics), ("scaling", SCALING)])
    }

    #[test]
    fn the_page_on_metrics_says_what_the_code_does() {
        pages::renew_or_compare("docs/metrics.md", &document());
    }

    #[test]
    fn names_and_labels_are_as_prometheus_wants_them() {
        let mut names = BTreeSet::new();
        for meter in ALL {
            assert!(names.insert(meter.name), "{} is there twice", meter.name);
            let is_name =
                meter.name.starts_with("podlock_") && meter.name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(is_name, "{}", meter.name);
            assert_eq!(meter.kind == Kind::Counter, meter.name.ends_with("_total"), "{}", meter.name);
            assert_eq!(meter.kind == Kind::Histogram, meter.name.ends_with("_seconds"), "{}", meter.name);
            assert!(meter.text.trim().ends_with('.') && !meter.text.contains('|'), "{}: {}", meter.name, meter.text);
            let bounded = |label: &Label| ["kind", "version"].contains(&label.name) || !label.values.is_empty();
            assert!(meter.labels.iter().all(bounded), "{} has a label without bound", meter.name);
        }
        assert!(BUCKETS.is_sorted());
    }

    /// The names of metrics in a text, each with what follows it.
    fn names_in(text: &str) -> Vec<(&str, &str)> {
        let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let starts = text.match_indices("podlock_").map(|(at, _)| at);
        let starts = starts.filter(|at| !text[..*at].ends_with(is_of_name));
        starts.map(|at| text[at..].split_at(text[at..].find(|c| !is_of_name(c)).unwrap_or(text.len() - at))).collect()
    }

    /// The metric of a series. A histogram has three series.
    #[track_caller]
    fn meter(series: &str) -> &'static Meter {
        let is_of = |meter: &&Meter| {
            meter.name == series
                || (meter.kind == Kind::Histogram
                    && ["_bucket", "_sum", "_count"].iter().any(|end| series.strip_suffix(end) == Some(meter.name)))
        };
        ALL.iter().find(is_of).unwrap_or_else(|| panic!("there is no metric {series}"))
    }

    /// Labels that Prometheus and its scrape add.
    const ADDED: [&str; 3] = ["job", "instance", "le"];

    /// Checks the names, the labels and the values of labels in an expression. Returns the names.
    #[track_caller]
    fn check(expression: &str) -> Vec<&'static str> {
        let mut known: BTreeSet<&str> = ADDED.into();
        let mut seen = Vec::new();
        for (series, rest) in names_in(expression) {
            let meter = meter(series);
            seen.push(meter.name);
            known.extend(meter.labels.iter().map(|label| label.name));
            let Some((selectors, _)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
            for selector in selectors.split(',') {
                let at = selector.find(['=', '!']).expect("a comparison");
                let (name, values) = (selector[..at].trim(), selector[at..].trim_start_matches(['=', '!', '~']));
                let label = meter.labels.iter().find(|label| label.name == name);
                assert!(label.is_some() || ADDED.contains(&name), "{series} has no label {name}: {expression}");
                for value in values.trim_matches('"').split('|') {
                    let known = label.is_none_or(|label| label.values.is_empty() || label.values.contains(&value));
                    assert!(known, "label {name} of {series} is never {value:?}: {expression}");
                }
            }
        }
        assert!(!seen.is_empty(), "it names no metric: {expression}");
        for grouped in expression.split(" by (").skip(1) {
            for label in grouped.split_once(')').expect("it ends").0.split(',').map(str::trim) {
                assert!(known.contains(label), "no metric of this has a label {label}: {expression}");
            }
        }
        seen
    }

    #[test]
    fn each_metric_and_label_that_the_alerts_name_is_recorded() {
        let file: serde_json::Value = serde_yaml_ng::from_str(ALERTS).expect("YAML");
        let mut alerts = BTreeSet::new();
        let groups = file["groups"].as_array().expect("groups");
        for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")) {
            let text = |value: &serde_json::Value| value.as_str().map(ToOwned::to_owned).expect("text");
            assert!(alerts.insert(text(&rule["alert"])), "twice: {rule}");
            check(&text(&rule["expr"]));
            assert!(["warning", "critical"].contains(&text(&rule["labels"]["severity"]).as_str()), "{rule}");
            assert!(!text(&rule["annotations"]["summary"]).is_empty());
            assert!(!text(&rule["annotations"]["description"]).is_empty());
            let known = ["alert", "expr", "for", "labels", "annotations"];
            assert!(rule.as_object().expect("a map").keys().all(|key| known.contains(&key.as_str())), "{rule}");
        }
        for wanted in ["PodLost", "WorkerInactive", "OrphansWaiting", "Quarantine", "SelfFence"] {
            assert!(alerts.contains(&format!("Podlock{wanted}")), "there is no alert {wanted}");
        }
    }

    #[test]
    fn each_metric_and_label_that_the_dashboard_names_is_recorded_and_it_shows_each_metric() {
        let file: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
        let mut shown = BTreeSet::new();
        for panel in file["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().expect("an expression").replace("=~\"$job\"", "=\"j\"");
                let of_this = check(&expression);
                for label in target["legendFormat"].as_str().expect("a legend").split("{{").skip(1) {
                    let label = label.split_once("}}").expect("it ends").0;
                    assert!(expression.contains(&format!("by ({label})")), "the legend has {label}: {expression}");
                }
                shown.extend(of_this);
            }
        }
        let all: BTreeSet<_> = ALL.iter().map(|meter| meter.name).collect();
        assert_eq!(shown, all, "a metric without a panel, or the reverse");
    }

    #[test]
    fn each_metric_that_the_page_names_is_recorded() {
        for (series, _) in names_in(&document()).into_iter().filter(|(name, _)| !name.ends_with('_')) {
            meter(series);
        }
    }
}
