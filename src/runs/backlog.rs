//! The backlog as gauges, for a service that asks for it (`PodBuilder::report_backlog`).
//!
//! load (the view `studio_backlog`) → sum up → set the gauges. The pods of a large fleet read it more rarely, so that all of
//! them together make as many reads as a small fleet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use crate::background::part::{Next, Part};
use crate::membership::clock;
use crate::meters::{self, KINDS_MOST, OTHERS};
use crate::nag::Nag;
use crate::protocol::neighbours;
use crate::store::backlog::{self, OfKind};

/// The shortest time between two reads. More often costs the database more than an autoscaler can use.
const SHORTEST: Duration = Duration::from_secs(1);
/// The least time between two warnings that reads fail.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Reads the backlog now and then.
pub(crate) struct Backlog {
    engine: Arc<Engine>,
    /// `None`: nobody asked for it.
    every: Option<Duration>,
    nag: Nag,
}

impl Backlog {
    pub(crate) fn new(engine: Arc<Engine>, every: Option<Duration>) -> Self {
        Self { engine, every: every.map(|every| every.max(SHORTEST)), nag: Nag::new(SAY_AGAIN) }
    }
}

impl Part for Backlog {
    const NAME: &'static str = "the backlog";

    fn first(&self) -> Next {
        if self.every.is_none() { Next::Never } else { Next::Within(Duration::ZERO) }
    }

    fn period(&self) -> Option<Duration> {
        // Pods that began together should not read together.
        let jitter = 0.75 + 0.5 * fastrand::f64();
        self.every.map(|every| neighbours::rarer(every, self.engine.member.peers()).mul_f64(jitter))
    }

    async fn work(&mut self) -> Next {
        match backlog::backlog(&self.engine.db).await {
            Ok(rows) => {
                self.nag.passed();
                show(&self.engine.kinds, &rows);
            }
            Err(e) => {
                metrics::counter!(meters::BACKLOG_FAILURES).increment(1);
                let patience = if e.is_transient() { self.engine.member.settings.lease } else { Duration::ZERO };
                if let Some(times) = self.nag.failed(clock::now(), patience) {
                    tracing::warn!(
                        target: "podlock", event = "backlog_unread", pod = %self.engine.member.pod_id, times, error = %e,
                        "the backlog cannot be read, so its metrics are old; the next read comes"
                    );
                }
            }
        }
        Next::Wait
    }
}

/// Sets the gauges of the kinds that this pod handles, and of all others together.
fn show(own: &[String], rows: &[OfKind]) {
    for (kind, of_kind) in by_series(own, rows) {
        let series: Arc<str> = Arc::from(kind);
        for (gauge, value) in [
            (meters::BACKLOG_WAITING, of_kind.waiting),
            (meters::BACKLOG_RUNNING, of_kind.running),
            (meters::BACKLOG_FREE, of_kind.free_capacity),
            (meters::BACKLOG_PODS, of_kind.pods),
        ] {
            meters::gauge_of(gauge, "kind", Arc::clone(&series), value);
        }
    }
}

/// One backlog for each series. A kind of this pod that is in no row has none, which is 0. Pods and places of other kinds
/// are not summed up, because a pod that takes several kinds counts for each.
fn by_series<'a>(own: &'a [String], rows: &[OfKind]) -> BTreeMap<&'a str, OfKind> {
    let empty = OfKind { kind: String::new(), waiting: 0, running: 0, free_capacity: 0, pods: 0 };
    let own = &own[..own.len().min(KINDS_MOST)];
    let mut series: BTreeMap<&str, OfKind> =
        own.iter().map(String::as_str).chain([OTHERS]).map(|kind| (kind, empty.clone())).collect();
    for row in rows {
        if own.contains(&row.kind) {
            if let Some(of_kind) = series.get_mut(row.kind.as_str()) {
                *of_kind = row.clone();
            }
        } else if let Some(others) = series.get_mut(OTHERS) {
            others.waiting += row.waiting;
            others.running += row.running;
        }
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str, waiting: i64, free_capacity: i64) -> OfKind {
        OfKind { kind: kind.to_owned(), waiting, running: 1, free_capacity, pods: 2 }
    }

    #[test]
    fn a_pod_has_a_series_for_each_kind_of_its_own_and_one_for_all_others() {
        let own = ["a".to_owned(), "b".to_owned()];
        let series = by_series(&own, &[row("a", 3, 4), row("x", 5, 6), row("y", 7, 8)]);
        let seen: Vec<_> = series.iter().map(|(kind, of)| (*kind, of.waiting, of.running, of.free_capacity)).collect();
        assert_eq!(seen, [(OTHERS, 12, 2, 0), ("a", 3, 1, 4), ("b", 0, 0, 0)]);
    }

    #[test]
    fn however_many_kinds_there_are_the_series_are_bounded() {
        let own: Vec<String> = (0..KINDS_MOST * 3).map(|n| format!("k{n:04}")).collect();
        let rows: Vec<_> = own.iter().map(|kind| row(kind, 1, 1)).collect();
        let series = by_series(&own, &rows);
        assert_eq!(series.len(), KINDS_MOST + 1);
        assert_eq!(series[OTHERS].waiting, i64::try_from(KINDS_MOST * 2).expect("few"));
    }
}
