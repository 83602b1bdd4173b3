//! The metrics of podlock: the name, kind and meaning of each, in one place. Whoever records one names it by its constant here.
//!
//! podlock records through the facade crate `metrics`. A service that installs no recorder pays an atomic read for each.
//! No label has a value of unknown number, such as a run's id.

/// Declares the metrics: a constant with the name, and [`ALL`].
macro_rules! meters {
    ($($(#[doc = $text:literal])+ $kind:ident $name:ident = $metric:literal [$($label:literal),*];)+) => {
        $(
            $(#[doc = $text])+
            pub(crate) const $name: &str = $metric;
        )+

        /// Each metric.
        pub const ALL: &[Meter] = &[$(Meter {
            name: $metric,
            kind: Kind::$kind,
            labels: &[$($label),*],
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

/// A metric that podlock records.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Meter {
    /// Its name, as Prometheus writes it.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The meaning, in words.
    pub text: &'static str,
}

meters! {
    /// Samples that were dropped because the queue was full.
    Counter SAMPLES_DROPPED = "podlock_samples_dropped_total" [];
    /// Flushes of samples that failed. The samples stay in the queue.
    Counter FLUSHES_FAILED = "podlock_flushes_failed_total" [];
    /// Seconds that a flush of samples took.
    Histogram FLUSH_SECONDS = "podlock_flush_seconds" [];
    /// Roll-ups of samples and scores that this pod made, by outcome: made, failed.
    Counter ROLL_UPS = "podlock_roll_ups_total" ["outcome"];
    /// Sessions in the history that stayed open after their incarnation had ended, and were closed later.
    Counter CLOSE_FAILURES = "podlock_close_failures_total" [];
    /// Changes of a worker's liveness that this pod saw, by what it became: active, inactive.
    Counter WORKER_TRANSITIONS = "podlock_worker_transitions_total" ["to"];
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
