//! Makes `docs/settings.md` from the declaration of the settings and the template `page.md`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::declared::DECLARED;
use super::{Config, KEEP_MAX, KEEP_MIN, OnDetach, OnStall, RECONNECT_BACKOFF_MIN};
use crate::pages;
use crate::protocol::patience::LEASE_MAX;

const TEMPLATE: &str = include_str!("page.md");

/// `docs/name.md` in code becomes a link to that page.
fn with_links(line: &str) -> String {
    let mut parts = line.split("`docs/");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (page, rest) = part.split_once('`').unwrap();
        write!(text, "[{page}]({page}){rest}").unwrap();
    }
    text
}

fn document() -> String {
    let mut names: Vec<&str> = DECLARED.iter().map(|setting| setting.group).collect();
    names.dedup();
    let (mut groups, mut settings, mut orders) = (String::new(), String::new(), String::new());
    for group in names {
        let of_group = || DECLARED.iter().filter(|setting| setting.group == group);
        let links: Vec<_> = of_group().map(|s| format!("[`{0}`](#{0})", s.name)).collect();
        writeln!(groups, "| [{group}](#{}) | {} |", group.to_lowercase(), links.join(", ")).unwrap();
        let between = if settings.is_empty() { "" } else { "\n" };
        writeln!(settings, "{between}## {group}").unwrap();
        for setting in of_group() {
            let bound = setting.bound.map_or_else(String::new, |bound| format!(" Bound: {bound}."));
            writeln!(settings, "\n### {}\n", setting.name).unwrap();
            writeln!(settings, "Default: {}.{bound} Environment: `{}`.\n", setting.default, setting.variable).unwrap();
            for line in setting.text.lines() {
                writeln!(settings, "{}", with_links(line.trim())).unwrap();
            }
        }
    }
    for order in Config::new("host=h").validate().unwrap().orders() {
        writeln!(orders, "| {} | {} | {} |", order.small, order.words(), order.large).unwrap();
    }
    pages::filled(TEMPLATE, &[("groups", &groups), ("settings", &settings), ("orders", &orders)])
}

#[test]
fn the_page_on_settings_says_what_the_code_does() {
    pages::renew_or_compare("docs/settings.md", &document());
}

#[test]
fn each_setting_is_on_the_page_once_and_with_all_that_is_declared() {
    let page = document();
    for setting in DECLARED {
        let sections: Vec<_> =
            page.split("\n### ").filter(|section| section.lines().next() == Some(setting.name)).collect();
        let [section] = sections[..] else { panic!("{} has {} sections", setting.name, sections.len()) };
        for word in [setting.default, setting.variable, setting.bound.unwrap_or_default()] {
            assert!(section.contains(word), "{} has no {word:?}: {section}", setting.name);
        }
        let first = setting.text.lines().next().unwrap().trim();
        assert!(!first.is_empty() && section.contains(&with_links(first)), "{}: {section}", setting.name);
    }
}

/// A name that was read is read for ever (docs/compatibility.md).
#[test]
fn each_variable_bears_the_name_of_its_setting_but_for_two() {
    for setting in DECLARED {
        let expected = match setting.name {
            "database_url" => "DATABASE_URL".to_owned(),
            "pod_name" => "POD_NAME".to_owned(),
            name => format!("PODLOCK_{}", name.to_uppercase()),
        };
        assert_eq!(setting.variable, expected);
    }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn each_variable_sets_its_field() {
    type Holds = fn(&Config) -> bool;
    let all: &[(&str, &str, Holds)] = &[
        ("DATABASE_URL", "host=h", |c| c.database_url() == "host=h"),
        ("POD_NAME", "web-0", |c| c.pod_name.as_deref() == Some("web-0")),
        ("PODLOCK_ENV", "production", |c| c.env.as_deref() == Some("production")),
        ("PODLOCK_SCHEMA", "other", |c| c.schema == "other"),
        ("PODLOCK_VERSION", "1.2", |c| c.version == "1.2"),
        ("PODLOCK_LABELS", "a=b", |c| c.labels.len() == 1 && c.labels["a"] == "b"),
        ("PODLOCK_LEASE", "7s", |c| c.lease == s(7)),
        ("PODLOCK_PING_INTERVAL", "7s", |c| c.ping_interval == Some(s(7))),
        ("PODLOCK_PING_TIMEOUT", "7s", |c| c.ping_timeout == Some(s(7))),
        ("PODLOCK_SELF_FENCE", "7s", |c| c.self_fence == Some(s(7))),
        ("PODLOCK_SETTLE", "7s", |c| c.settle == Some(s(7))),
        ("PODLOCK_RECONNECT_GRACE", "7s", |c| c.reconnect_grace == Some(s(7))),
        ("PODLOCK_RECONNECT_BACKOFF_MAX", "7s", |c| c.reconnect_backoff_max == Some(s(7))),
        ("PODLOCK_HOLD_PROBE_INTERVAL", "7s", |c| c.hold_probe_interval == Some(s(7))),
        ("PODLOCK_SWEEP_INTERVAL", "7s", |c| c.sweep_interval == Some(s(7))),
        ("PODLOCK_WATCH_SLICE", "7s", |c| c.watch_slice == Some(s(7))),
        ("PODLOCK_BEAT_INTERVAL", "7s", |c| c.beat_interval == Some(s(7))),
        ("PODLOCK_STALL_CYCLES", "7", |c| c.stall_cycles == 7),
        ("PODLOCK_ON_STALL", "evict", |c| c.on_stall == OnStall::Evict),
        ("PODLOCK_STALL_AFTER", "7s", |c| c.stall_after == Some(s(7))),
        ("PODLOCK_ACQUIRE_TIMEOUT", "7s", |c| c.acquire_timeout == Some(s(7))),
        ("PODLOCK_CONNECT_TIMEOUT", "7s", |c| c.connect_timeout == Some(s(7))),
        ("PODLOCK_STATEMENT_TIMEOUT", "7s", |c| c.statement_timeout == Some(s(7))),
        ("PODLOCK_CLAIM_DELAY", "7s", |c| c.claim_delay == s(7)),
        ("PODLOCK_PUSH", "false", |c| !c.push),
        ("PODLOCK_MIGRATE", "false", |c| !c.migrate),
        ("PODLOCK_ON_DETACH", "continue", |c| c.on_detach == OnDetach::Continue),
        ("PODLOCK_CAPACITY", "7", |c| c.capacity == 7),
        ("PODLOCK_CAPACITY_OF", "big=7", |c| c.capacity_of.len() == 1 && c.capacity_of["big"] == 7),
        ("PODLOCK_MAX_CRASHES", "7", |c| c.max_crashes == 7),
        ("PODLOCK_MOVES_AT_ONCE", "7", |c| c.moves_at_once == 7),
        ("PODLOCK_MOVE_REST", "7s", |c| c.move_rest == s(7)),
        ("PODLOCK_POOL_SIZE", "7", |c| c.pool_size == 7),
        ("PODLOCK_KEEP_RUNS", "7days", |c| c.keep_runs == s(7 * 86400)),
        ("PODLOCK_KEEP_FAILED_RUNS", "7days", |c| c.keep_failed_runs == s(7 * 86400)),
        ("PODLOCK_KEEP_EVENTS", "7days", |c| c.keep_events == s(7 * 86400)),
        ("PODLOCK_PRUNE_INTERVAL", "7s", |c| c.prune_interval == s(7)),
        ("PODLOCK_SAMPLE_INTERVAL", "7s", |c| c.sample_interval == s(7)),
        ("PODLOCK_KEEP_SAMPLES", "7days", |c| c.keep_samples == s(7 * 86400)),
        ("PODLOCK_ROLL_UP_INTERVAL", "7s", |c| c.roll_up_interval == s(7)),
        ("PODLOCK_SCORE_BY", "node", |c| c.score_by == "node"),
        ("PODLOCK_WORKER_REPORT_INTERVAL", "7s", |c| c.worker_report_interval == s(7)),
        ("PODLOCK_WORKER_STALE_REPORTS", "7", |c| c.worker_stale_reports == 7),
        ("PODLOCK_WORKER_MONITOR_INTERVAL", "7s", |c| c.worker_monitor_interval == s(7)),
        ("PODLOCK_WORKER_SPEC_MAX_BYTES", "7", |c| c.worker_spec_max_bytes == 7),
        ("PODLOCK_WORKER_PROBES_AT_ONCE", "7", |c| c.worker_probes_at_once == 7),
        ("PODLOCK_WORKER_PROBE_IMPORTS", "true", |c| c.worker_probe_imports),
        ("PODLOCK_RESULT_MAX_BYTES", "7", |c| c.result_max_bytes == 7),
        ("PODLOCK_STDERR_MAX_BYTES", "7", |c| c.stderr_max_bytes == 7),
        ("PODLOCK_CHECKPOINT_MAX_BYTES", "7", |c| c.checkpoint_max_bytes == 7),
        ("PODLOCK_INPUT_MAX_BYTES", "7", |c| c.input_max_bytes == 7),
    ];
    let tried: BTreeSet<_> = all.iter().map(|(variable, ..)| *variable).collect();
    assert_eq!(tried, DECLARED.iter().map(|setting| setting.variable).collect(), "each declared one is tried");
    assert_eq!(all.len(), DECLARED.len());
    for (variable, text, holds) in all {
        assert!(!holds(&Config::default()), "{variable}: {text} is the default");
        let config = Config::from_vars([((*variable).to_owned(), (*text).to_owned())]).expect(variable);
        assert!(holds(&config), "{variable}={text}: {config:?}");
        let changed = all.iter().filter(|(_, _, holds)| holds(&config)).count();
        assert_eq!(changed, 1, "{variable} sets its own field alone: {config:?}");
    }
    // What follows PODLOCK_ was always read in any case; the two names of their own never were.
    let of = |variable: &str| Config::from_vars([(variable.to_owned(), "7s".to_owned())]).expect("accepted");
    assert_eq!(of("PODLOCK_Lease").lease, s(7));
    assert_eq!(of("podlock_lease").lease, s(10));
    for variable in ["pod_name", "PODLOCK_POD_NAME", "PODLOCK_DATABASE_URL"] {
        assert_eq!((of(variable).pod_name, of(variable).database_url.expose_secret()), (None, ""), "{variable}");
    }
}

/// Another default needs an entry in the changelog (docs/compatibility.md).
#[test]
fn each_default_has_the_value_that_services_know() {
    let c = Config::default();
    assert_eq!((c.database_url(), c.schema.as_str()), ("", "public"));
    assert_eq!((&c.pod_name, &c.env), (&None, &None));
    assert_eq!((c.version.as_str(), c.labels.len(), c.capacity_of.len()), ("", 0, 0));
    assert_eq!((c.push, c.migrate, c.on_detach, c.on_stall), (true, true, OnDetach::Cancel, OnStall::Report));
    assert_eq!((c.lease, c.claim_delay), (s(10), Duration::ZERO));
    let follow = [
        c.ping_interval,
        c.ping_timeout,
        c.self_fence,
        c.settle,
        c.reconnect_grace,
        c.reconnect_backoff_max,
        c.hold_probe_interval,
        c.sweep_interval,
        c.watch_slice,
        c.beat_interval,
        c.stall_after,
        c.acquire_timeout,
        c.connect_timeout,
        c.statement_timeout,
    ];
    assert_eq!(follow, [None; 14]);
    assert_eq!((c.stall_cycles, c.capacity, c.max_crashes, c.pool_size), (3, 100, 3, 4));
    assert_eq!((c.moves_at_once, c.move_rest), (4, s(600)));
    assert_eq!((c.keep_runs, c.keep_failed_runs), (Duration::ZERO, Duration::ZERO));
    assert_eq!((c.keep_events, c.prune_interval), (s(2_592_000), s(600)));
    assert_eq!((c.sample_interval, c.keep_samples), (s(10), s(28 * 86400)));
    assert_eq!((c.roll_up_interval, c.score_by.as_str()), (s(300), ""));
    assert_eq!((c.result_max_bytes, c.stderr_max_bytes), (16_777_216, 1_048_576));
    assert_eq!((c.checkpoint_max_bytes, c.input_max_bytes), (16_777_216, 16_777_216));
    for ms in [2000, 2500, 3333, 10_000, 12_345, 60_000, 3_600_000] {
        let lease = Duration::from_millis(ms);
        let r = Config::new("host=h").lease(lease).validate().expect("valid");
        assert_eq!((r.lease, r.ping_interval, r.ping_timeout), (lease, lease.mul_f64(0.2), lease.mul_f64(0.2)));
        assert_eq!((r.self_fence, r.settle, r.reconnect_grace), (lease.mul_f64(0.8), lease, lease));
        assert_eq!((r.reconnect_backoff_max, r.hold_probe_interval), (lease.mul_f64(0.05), lease.mul_f64(0.025)));
        assert_eq!((r.sweep_interval, r.watch_slice), ((lease / 3).min(s(5)), lease.mul_f64(0.1)));
        assert_eq!((r.beat_interval, r.stall_after, r.acquire_timeout), (lease, lease, lease.mul_f64(2.0)));
        assert_eq!(r.connect_timeout, (lease / 2).min(s(5)));
        assert_eq!(r.statement_timeout, (lease / 2).max(Duration::from_millis(1500)));
    }
}

/// A constant that other code has is the bound that is declared.
#[test]
fn declared_bounds_are_those_of_the_constants() {
    let tick = Duration::from_nanos(1);
    let is_valid = |change: &dyn Fn(&mut Config)| Config::new("host=h").with(change).validate().is_ok();
    let keeps: [fn(&mut Config, Duration); 4] =
        [|c, t| c.keep_runs = t, |c, t| c.keep_failed_runs = t, |c, t| c.keep_events = t, |c, t| c.keep_samples = t];
    for keep in keeps {
        let keeps = [Duration::ZERO, tick, KEEP_MIN - tick, KEEP_MIN, KEEP_MAX, KEEP_MAX + tick];
        assert_eq!(keeps.map(|t| is_valid(&|c| keep(c, t))), [true, false, false, true, true, false]);
    }
    assert_eq!([LEASE_MAX, LEASE_MAX + tick].map(|t| is_valid(&|c| c.lease = t)), [true, false]);
    let least = RECONNECT_BACKOFF_MIN;
    assert_eq!([least - tick, least].map(|t| is_valid(&|c| c.reconnect_backoff_max = Some(t))), [false, true]);
}
