//! The settings with nothing left open, and the bounds that follow from them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::declared::NAMES;
use super::{Config, DEDICATED_SESSIONS, IDLE_IN_TRANSACTION, Settings, WITNESS_WAIT};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::limits::{Keepalives, Limits};
use crate::protocol::neighbours;
use crate::protocol::patience::Stated;

/// The longest name of a schema. The names of the channels contain it, and PostgreSQL takes 63 bytes for a name, of
/// which `podstream_` leaves 53.
const SCHEMA_MAX_BYTES: usize = 48;
/// What is younger is never deleted: `studio_may_prune` holds it too. The bound of the `keep_*` begins here. A mistaken
/// setting or call so never deletes what people still look at or a client asks for again.
pub(crate) const KEEP_MIN: Duration = Duration::from_secs(3600);
/// A thousand years, which an interval of the server's can hold. The bound of the `keep_*` ends here.
pub(crate) const KEEP_MAX: Duration = Duration::from_secs(1000 * 365 * 86400);
/// The share of its interval by which a sweep comes earlier or later, at random. Without it, pods that started together
/// would sweep together. More would lengthen each bound that a sweep has.
const SWEEP_JITTER: f64 = 0.1;

/// How long each kind of death takes at most to be noticed, counted from the fault, while the server answers our
/// statements within `ping_timeout` and at least one survivor is settled (right after all survivors have started, up to
/// `settle` comes on top). The usual time of a killed process is milliseconds, by push; these are the bounds
/// when every push is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorstCase {
    /// A process that was killed, alone: a sweep, a second look and two statements. If others are lost one after
    /// another meanwhile, or the server accepts no connection when it is to be buried, the bound is `many_lost`.
    pub process_killed: Duration,
    /// A host that vanished or was cut off without a word: the lease, then as `process_killed`.
    pub host_lost: Duration,
    /// A process that was stopped (SIGSTOP): the lease, then as `process_killed`.
    pub frozen: Duration,
    /// A pod whose application runtime is blocked: `stall_after`, a ping interval, then as `process_killed`.
    pub runtime_blocked: Duration,
    /// A pod that runs and makes no progress, from its last progress until it is suspected: a beat that was still
    /// written, and `stall_cycles` + 1 checks. If it is evicted, then as `process_killed`.
    pub stalled: Duration,
    /// A pod whose liveness connection broke and that lives, but does not come back: a sweep, `reconnect_grace`, a
    /// probe.
    pub connection_broken: Duration,
    /// Several pods lost within lease / 10, more than half of the others: a sweep, `settle`, a probe.
    pub many_lost: Duration,
    /// A pod that died while the database restarted, counted from the server's return: the reconnect back-off, then as
    /// `many_lost`.
    pub database_restarted: Duration,
    /// What a burier that freezes between its grant and its commit adds to any of the above.
    pub burier_frozen_adds: Duration,
    /// A run whose owner has left the roster, and of which no event tells any more: until a pod with a handler and room
    /// claims it. A sweep and two statements, in a fleet of up to 17 pods. For a larger fleet:
    /// [`Settings::orphan_claimed`].
    pub orphan_claimed: Duration,
    /// When a silent pod has told its runs to stop, counted from the last answered ping: `self_fence`.
    pub silent_pod_stops: Duration,
    /// A database outage of this length disturbs no run: `self_fence − ping_interval − reconnect_backoff_max`.
    pub outage_tolerated: Duration,
}

/// An order that two settings, or what follows from them, must keep.
pub(super) struct Order {
    /// What must be less, in the names of settings.
    pub(super) small: &'static str,
    small_is: Duration,
    pub(super) or_equal: bool,
    /// What must be more.
    pub(super) large: &'static str,
    large_is: Duration,
}

impl Order {
    pub(super) fn words(&self) -> &'static str {
        if self.or_equal { "at most" } else { "less than" }
    }

    fn is_kept(&self) -> bool {
        self.small_is < self.large_is || (self.or_equal && self.small_is == self.large_is)
    }

    /// The settings that it is about: each word that is the name of one.
    fn names(&self) -> Vec<&'static str> {
        let words = |text: &'static str| text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        let is_setting = |word: &&str| NAMES.contains(word);
        words(self.small).chain(words(self.large)).filter(is_setting).collect()
    }
}

impl Settings {
    pub(super) fn resolve(config: &Config) -> Result<Self> {
        let settings = Self::unchecked(config);
        // The bounds come first: what the orders add up must have a sum.
        if let Some((name, what)) = settings.out_of_bound() {
            return Err(
                refuse(config, &[name], what).help(format!("correct {name}, or leave it unset: docs/settings.md"))
            );
        }
        if let Some(order) = settings.orders().iter().find(|order| !order.is_kept()) {
            let (small, small_is, large, large_is) = (order.small, order.small_is, order.large, order.large_is);
            let what = format!("{small} is {small_is:?}, but must be {} {large}, {large_is:?}", order.words());
            return Err(
                refuse(config, &order.names(), what).help("leave the other times unset: they follow from lease")
            );
        }
        if let Some(fault) = fault_of_schema(&config.schema) {
            let what = format!("schema {:?} cannot be used: {fault}", config.schema);
            return Err(refuse(config, &["schema"], what).help("choose another schema"));
        }
        Ok(settings)
    }

    /// The orders between settings.
    pub(super) fn orders(&self) -> Vec<Order> {
        let order =
            |or_equal| move |small, small_is, large, large_is| Order { small, small_is, or_equal, large, large_is };
        let (below, at_most) = (order(false), order(true));
        let ms = Duration::from_millis;
        let aborted = self.self_fence + self.stop_grace() + ms(20);
        let reconnecting = self.ping_interval + self.reconnect_backoff_max;
        let runs_on = self.stated().runs_on();
        vec![
            below(
                "ping_interval + ping_timeout",
                self.ping_interval + self.ping_timeout,
                "self_fence",
                self.self_fence,
            ),
            below("self_fence", self.self_fence, "lease", self.lease),
            below(
                "self_fence + 0.05 × lease + 20ms (until what does not stop is aborted)",
                aborted,
                "lease",
                self.lease,
            ),
            below("ping_interval + reconnect_backoff_max", reconnecting, "self_fence", self.self_fence),
            below("watch_slice + 50ms", self.watch_slice + ms(50), "statement_timeout", self.statement_timeout),
            below(
                "1.1 × sweep_interval",
                self.longest_sweep(),
                "lease (the sweep keeps the control session alive)",
                self.lease,
            ),
            at_most("self_fence + 0.1 × lease", runs_on, "settle", self.settle),
            at_most("self_fence + 0.1 × lease", runs_on, "reconnect_grace", self.reconnect_grace),
            at_most("hold_probe_interval", self.hold_probe_interval, "0.1 × lease", self.lease / 10),
        ]
    }

    /// The settings that the pod's row in the roster states.
    pub(crate) fn stated(&self) -> Stated {
        Stated { lease: self.lease, self_fence: self.self_fence }
    }

    /// The longest delay between two sweeps of a pod. Every living pod checks for orphans within this time.
    pub(crate) fn longest_sweep(&self) -> Duration {
        self.sweep_interval.mul_f64(1.0 + SWEEP_JITTER)
    }

    /// The next sweep's delay: the interval, jittered by a tenth. `unit` is a random number of `[0, 1)`.
    pub(crate) fn jittered_sweep(&self, unit: f64) -> Duration {
        self.sweep_interval.mul_f64(1.0 - SWEEP_JITTER + 2.0 * SWEEP_JITTER * unit)
    }

    /// How long a run may go on after it was told to stop at `self_fence`, before its task is aborted.
    pub(crate) fn stop_grace(&self) -> Duration {
        self.lease / 20
    }

    /// The server's keepalive settings: whole seconds, so a fraction of the lease is cut off.
    #[must_use]
    pub fn keepalives(&self) -> Keepalives {
        let seconds = self.lease.as_secs().max(2);
        let count = if seconds >= 4 { 3 } else { 1 };
        let interval = (seconds / 5).max(1);
        Keepalives { idle: seconds - interval * count, interval, count }
    }

    /// The time limits of the connections.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            lease: self.lease,
            statement: self.statement_timeout,
            idle_in_transaction: IDLE_IN_TRANSACTION,
            keepalives: self.keepalives(),
            pool: self.pool_size,
            dedicated: DEDICATED_SESSIONS,
        }
    }

    /// The bounds that follow from these settings.
    #[must_use]
    pub fn worst_case(&self) -> WorstCase {
        let answer = self.ping_timeout;
        let killed = self.longest_sweep() + self.hold_probe_interval + answer * 2;
        let many = self.longest_sweep() + self.settle + self.hold_probe_interval + answer * 2;
        WorstCase {
            process_killed: killed,
            host_lost: self.lease + killed,
            frozen: self.lease + killed,
            runtime_blocked: self.stall_after + self.ping_interval + killed,
            stalled: self.beat_interval * (self.stall_cycles + 2) + answer * 2,
            connection_broken: self.longest_sweep() + self.reconnect_grace + self.hold_probe_interval + answer * 2,
            many_lost: many,
            database_restarted: self.reconnect_backoff_max + many,
            burier_frozen_adds: IDLE_IN_TRANSACTION * 2,
            orphan_claimed: self.orphan_claimed(1),
            silent_pod_stops: self.self_fence,
            outage_tolerated: self.self_fence.saturating_sub(self.ping_interval + self.reconnect_backoff_max),
        }
    }

    /// How long it takes at most until a killed process is buried, if its death is pushed and each answer of the
    /// database comes within `answer`. So this is the bound on a busy database. An answer comes late, for example,
    /// where commits wait for those of others or for a standby.
    ///
    /// Five answers and the wait for the second lock: one that is under way when the process dies, the one that brings
    /// the lock, the one to the question whether the server accepts connections, the probe, and the burial. A roster of
    /// more than 62 rows takes one more answer for each 64 rows.
    ///
    /// It holds if no other pod was lost within lease / 10, and the predecessor in the ring of pods has been up for
    /// `settle`, has its watch session, and knows the pod. Otherwise [`WorstCase`] has the bounds.
    #[must_use]
    pub fn pushed(&self, answer: Duration) -> Duration {
        answer.saturating_mul(5).saturating_add(WITNESS_WAIT)
    }

    /// How long it takes at most, in a fleet of so many pods, until a pod with a handler and room claims a run whose
    /// owner has left the roster and of which no event tells any more. That is the case if the transaction that names
    /// the owner commits after the passes that followed the event.
    ///
    /// Up to 17 pods: a sweep, and two statements. In a larger fleet, a pod looks for orphans with an owner only at
    /// every ⌈(pods − 1) / 16⌉th sweep or so, and the bound is one and a half times as long, and one more sweep.
    #[must_use]
    pub fn orphan_claimed(&self, pods: usize) -> Duration {
        let peers = pods.saturating_sub(1);
        let passes = if neighbours::are_all(peers) {
            self.longest_sweep()
        } else {
            neighbours::rarer(self.sweep_interval, peers).saturating_mul(3) / 2 + self.longest_sweep()
        };
        passes.saturating_add(self.ping_timeout * 2)
    }
}

/// Why this cannot be the schema's name.
fn fault_of_schema(schema: &str) -> Option<String> {
    if schema.is_empty() {
        Some("it is empty".to_owned())
    } else if schema.len() > SCHEMA_MAX_BYTES {
        Some(format!("it has {} bytes, and {SCHEMA_MAX_BYTES} is the most", schema.len()))
    } else if schema.chars().any(char::is_control) {
        Some("it has a control character".to_owned())
    } else if schema.starts_with("pg_") || schema == "information_schema" || schema == "$user" {
        Some("the name is the server's own".to_owned())
    } else {
        None
    }
}

/// An error about the settings `names`, with the variables that set them.
fn refuse(config: &Config, names: &[&str], mut what: String) -> Error {
    let variables: BTreeSet<&str> = names.iter().filter_map(|name| config.variable_of(name)).collect();
    if !variables.is_empty() {
        let variables = variables.into_iter().collect::<Vec<_>>().join(" and ");
        what.push_str(&format!(" (set by environment variable {variables})"));
    }
    Error::new(ErrorKind::Config, what).state("nothing was started")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DECLARED;

    /// The longest of all times but the lease and the `keep_*`: the server takes its time-outs in milliseconds of 31
    /// bits, which are 24.8 days. Up to it no sum or product of settings comes near to what a `Duration` can hold.
    const TIME_MAX: Duration = Duration::from_secs(24 * 86400);
    const STALL_CYCLES_MAX: u32 = 1_000_000;

    const fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn config() -> Config {
        Config::new("postgres://h/d")
    }

    #[test]
    fn at_ten_seconds_the_documented_defaults_hold() {
        let s = config().validate().expect("valid");
        assert_eq!((s.ping_interval, s.ping_timeout), (secs(2), secs(2)));
        assert_eq!((s.self_fence, s.settle, s.reconnect_grace), (secs(8), secs(10), secs(10)));
        assert_eq!(
            (s.reconnect_backoff_max, s.hold_probe_interval),
            (Duration::from_millis(500), Duration::from_millis(250))
        );
        assert_eq!(s.sweep_interval.as_millis(), 3333);
        assert_eq!((s.acquire_timeout, s.beat_interval), (secs(20), secs(10)));
        assert_eq!(s.worst_case().outage_tolerated, Duration::from_millis(5500));
        assert_eq!(s.worst_case().frozen, secs(10) + s.worst_case().process_killed);
        assert_eq!(s.pushed(Duration::from_millis(30)), Duration::from_millis(175));
        // Two hundred pods: each looks for orphans with an owner at every thirteenth sweep, or half as often again.
        for (pods, sweeps) in [(0, 1.1), (1, 1.1), (17, 1.1), (18, 3.0 + 1.1), (200, 13.0 * 1.5 + 1.1)] {
            let claimed = s.sweep_interval.mul_f64(sweeps) + secs(4);
            assert_eq!(s.orphan_claimed(pods).as_millis(), claimed.as_millis(), "{pods} pods");
        }
        assert_eq!(s.worst_case().orphan_claimed, s.orphan_claimed(17));
    }

    #[test]
    fn every_lease_from_2s_to_1h_is_valid_and_its_keepalives_sum_to_it() {
        for lease in (2..=3600).map(secs) {
            let s = config().lease(lease).validate().expect("valid");
            let k = s.keepalives();
            assert_eq!(k.idle + k.interval * k.count, lease.as_secs(), "{lease:?} {k:?}");
            assert!(k.idle >= 1 && k.interval >= 1 && k.count >= 1, "{lease:?} {k:?}");
        }
    }

    #[test]
    fn each_broken_order_is_refused_with_both_values() {
        type Break = fn(&mut Config);
        let cases: &[(Break, &[&str])] = &[
            (|c| c.lease = Duration::from_millis(1999), &["lease is 1.999s", "from 2 s to 1 h"]),
            (|c| c.lease = secs(3601), &["3601s", "1 h"]),
            (|c| c.ping_interval = Some(secs(6)), &["ping_interval + ping_timeout is 8s", "self_fence, 8s"]),
            (|c| c.self_fence = Some(secs(10)), &["self_fence is 10s", "lease, 10s"]),
            (
                |c| c.self_fence = Some(Duration::from_millis(9600)),
                &["self_fence + 0.05 × lease", "10.12s", "lease, 10s"],
            ),
            (|c| c.settle = Some(secs(8)), &["9s", "settle, 8s"]),
            (|c| c.reconnect_grace = Some(secs(8)), &["9s", "reconnect_grace, 8s"]),
            (|c| c.hold_probe_interval = Some(secs(2)), &["hold_probe_interval is 2s", "1s"]),
            (|c| c.sweep_interval = Some(secs(10)), &["11s", "10s"]),
            (|c| c.watch_slice = Some(secs(6)), &["watch_slice + 50ms is 6.05s", "statement_timeout, 5s"]),
            (|c| c.watch_slice = Some(Duration::ZERO), &["watch_slice", "10 ms"]),
            (|c| c.reconnect_backoff_max = Some(Duration::from_millis(1)), &["20 ms", "1ms"]),
            (|c| c.reconnect_backoff_max = Some(secs(7)), &["9s", "8s"]),
            (|c| c.capacity = 0, &["capacity is 0", "1"]),
            (|c| _ = c.capacity_of.insert("big".into(), 0), &["capacity_of \"big\" is 0", "1"]),
            (|c| c.max_crashes = 1_000_001, &["max_crashes is 1000001", "at most 1000000"]),
            (|c| c.stall_cycles = 0, &["stall_cycles is 0", "1"]),
            (|c| c.pool_size = 0, &["pool_size is 0", "1"]),
            (|c| c.keep_runs = secs(3599), &["keep_runs is 3599s", "0 or from 1 h to 1000 years"]),
            (|c| c.keep_events = Duration::MAX, &["keep_events", "1000 years"]),
            (|c| c.prune_interval = Duration::ZERO, &["prune_interval", "10 ms"]),
            (|c| c.result_max_bytes = 1 << 28, &["result_max_bytes is 268435456", "128 MiB"]),
            (|c| c.stderr_max_bytes = usize::MAX, &["stderr_max_bytes", "128 MiB"]),
            (|c| c.acquire_timeout = Some(Duration::MAX), &["acquire_timeout", "24 days"]),
            (|c| c.ping_interval = Some(Duration::MAX), &["ping_interval", "24 days"]),
            (|c| c.checkpoint_max_bytes = usize::MAX, &["checkpoint_max_bytes", "128 MiB"]),
            (|c| c.input_max_bytes = 1 << 28, &["input_max_bytes", "128 MiB"]),
            (|c| c.schema = String::new(), &["schema", "empty"]),
            (|c| c.schema = "s".repeat(49), &["49", "48"]),
            (|c| c.schema = "pg_x".into(), &["pg_x", "server's own"]),
        ];
        for (i, (change, words)) in cases.iter().enumerate() {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Config);
            for word in *words {
                assert!(error.to_string().contains(word), "case {i}: {error} has no {word:?}");
            }
        }
    }

    /// Whatever a file, the environment or a caller says, each setting alone is accepted with bounds that can be
    /// computed, or refused by its name: no sum or product overflows.
    #[test]
    fn no_setting_is_so_extreme_that_it_panics() {
        type Set = (&'static str, fn(&mut Config, Duration));
        let times: &[Set] = &[
            ("lease", |c, t| c.lease = t),
            ("ping_interval", |c, t| c.ping_interval = Some(t)),
            ("ping_timeout", |c, t| c.ping_timeout = Some(t)),
            ("self_fence", |c, t| c.self_fence = Some(t)),
            ("settle", |c, t| c.settle = Some(t)),
            ("reconnect_grace", |c, t| c.reconnect_grace = Some(t)),
            ("reconnect_backoff_max", |c, t| c.reconnect_backoff_max = Some(t)),
            ("hold_probe_interval", |c, t| c.hold_probe_interval = Some(t)),
            ("sweep_interval", |c, t| c.sweep_interval = Some(t)),
            ("watch_slice", |c, t| c.watch_slice = Some(t)),
            ("beat_interval", |c, t| c.beat_interval = Some(t)),
            ("stall_after", |c, t| c.stall_after = Some(t)),
            ("acquire_timeout", |c, t| c.acquire_timeout = Some(t)),
            ("connect_timeout", |c, t| c.connect_timeout = Some(t)),
            ("statement_timeout", |c, t| c.statement_timeout = Some(t)),
            ("claim_delay", |c, t| c.claim_delay = t),
            ("move_rest", |c, t| c.move_rest = t),
            ("keep_runs", |c, t| c.keep_runs = t),
            ("keep_failed_runs", |c, t| c.keep_failed_runs = t),
            ("keep_events", |c, t| c.keep_events = t),
            ("prune_interval", |c, t| c.prune_interval = t),
            ("sample_interval", |c, t| c.sample_interval = t),
            ("keep_samples", |c, t| c.keep_samples = t),
            ("roll_up_interval", |c, t| c.roll_up_interval = t),
            ("worker_report_interval", |c, t| c.worker_report_interval = t),
            ("worker_monitor_interval", |c, t| c.worker_monitor_interval = t),
        ];
        let extremes =
            [Duration::ZERO, Duration::from_nanos(1), TIME_MAX, TIME_MAX + secs(1), secs(u64::MAX), Duration::MAX];
        let (mut accepted, mut refused) = (0, 0);
        for (name, set) in times {
            for extreme in extremes {
                let mut config = config();
                set(&mut config, extreme);
                match config.validate() {
                    Ok(settings) => {
                        accepted += 1;
                        let worst = settings.worst_case();
                        assert!(worst.many_lost >= worst.process_killed, "{name} {extreme:?}");
                        assert!(settings.jittered_sweep(1.0) <= settings.longest_sweep());
                    }
                    Err(error) => {
                        refused += 1;
                        // The last two are beyond every bound, and the message says whose.
                        if extreme > KEEP_MAX {
                            assert!(error.to_string().contains(name), "{name} {extreme:?}: {error}");
                        }
                    }
                }
                assert!(extreme <= KEEP_MAX || config.validate().is_err(), "{name} {extreme:?} was accepted");
            }
        }
        assert!(accepted > 10 && refused > 40, "{accepted} accepted, {refused} refused");
        type SetMost = (&'static str, fn(&mut Config));
        let counts: &[SetMost] = &[
            ("stall_cycles", |c| c.stall_cycles = u32::MAX),
            ("capacity", |c| c.capacity = usize::MAX),
            ("capacity_of", |c| _ = c.capacity_of.insert("k".into(), usize::MAX)),
            ("max_crashes", |c| c.max_crashes = u32::MAX),
            ("moves_at_once", |c| c.moves_at_once = usize::MAX),
            ("pool_size", |c| c.pool_size = usize::MAX),
            ("worker_stale_reports", |c| c.worker_stale_reports = u32::MAX),
            ("worker_spec_max_bytes", |c| c.worker_spec_max_bytes = usize::MAX),
            ("worker_probes_at_once", |c| c.worker_probes_at_once = usize::MAX),
            ("result_max_bytes", |c| c.result_max_bytes = usize::MAX),
            ("stderr_max_bytes", |c| c.stderr_max_bytes = usize::MAX),
            ("checkpoint_max_bytes", |c| c.checkpoint_max_bytes = usize::MAX),
            ("input_max_bytes", |c| c.input_max_bytes = usize::MAX),
        ];
        for (name, set) in counts {
            let mut config = config();
            set(&mut config);
            let error = config.validate().expect_err(name).to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
        let tried: BTreeSet<_> =
            times.iter().map(|(name, _)| *name).chain(counts.iter().map(|(name, _)| *name)).collect();
        let bounded = DECLARED.iter().filter(|setting| setting.bound.is_some()).map(|setting| setting.name).collect();
        assert_eq!(tried, bounded, "each setting with a bound is tried");
        let all = config().with(|c| {
            (c.beat_interval, c.stall_cycles) = (Some(TIME_MAX), STALL_CYCLES_MAX);
            (c.settle, c.reconnect_grace, c.stall_after) = (Some(TIME_MAX), Some(TIME_MAX), Some(TIME_MAX));
            (c.acquire_timeout, c.statement_timeout, c.claim_delay) = (Some(TIME_MAX), Some(TIME_MAX), TIME_MAX);
        });
        assert!(all.worst_case().expect("accepted").stalled > TIME_MAX);
    }
}
