//! The worst day: real pods as processes on a real PostgreSQL, real faults, and a checker that reads the whole history.
//!
//! Each scenario starts pods, gives them runs, does one thing to them or to their database, waits until every run has
//! ended, and has the laws checked (`checker`) on what the database accepted (`history.sql`) and on what the pods said
//! of it. `nemesis` mixes the faults at random.
//!
//! This program is its own test runner, because it is also the pods that it tests, and because a scenario that needs
//! root or a program that is missing is skipped with its reason, and counted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod checker;
mod clock;
mod disk;
mod faults;
mod history;
#[path = "../common/inherited.rs"]
mod inherited;
mod nemesis;
mod network;
mod own_server;
mod page;
#[path = "../common/patience.rs"]
mod patience;
mod patroni;
mod pgbouncer;
mod pod;
mod ports;
mod process;
mod replicas;
mod scenario;
mod standby;
mod workers;
mod world;

use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::Arguments;

use crate::scenario::Scenario;

/// Scenarios at a time for each core. Most of a scenario is a wait for a lease to end, so several share a core; more
/// than a core carries disturb each other, and what they measure.
const FOR_EACH_CORE: usize = 2;
/// Each scenario has up to fifty processes and a server.
const AT_MOST: usize = 8;

fn main() -> ExitCode {
    if std::env::var_os(process::AS_POD).is_some() {
        pod::main();
    }
    inherited::reset();
    let mut arguments = Arguments::from_args();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let at_a_time = (FOR_EACH_CORE * cores).min(AT_MOST);
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(at_a_time).min(at_a_time));
    if let Some((seed, time)) = asked_for() {
        return libtest_mimic::run(&arguments, vec![nemesis::of(seed, time).trial()]).exit_code();
    }
    let scenarios: Vec<_> = faults::scenarios().into_iter().chain(nemesis::scenarios()).collect();
    let entries = page::entries(&scenarios);
    let mut trials = checker::trials();
    trials.extend(scenarios.into_iter().map(Scenario::trial));
    let renewing = std::env::var_os("PODLOCK_RENEW_DOCS").is_some();
    if !renewing {
        trials.push(page::trial(&entries));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if renewing && !conclusion.has_failed() {
        if conclusion.num_ignored + conclusion.num_filtered_out > 0 {
            eprintln!("docs/faults.md is as it was: it is made of all faults, and some were left out");
            return ExitCode::FAILURE;
        }
        page::renew(&entries);
    }
    conclusion.exit_code()
}

/// The seed and the duration that `make chaos` sets in the environment, to run the nemesis alone.
fn asked_for() -> Option<(u64, Duration)> {
    let number = |name| {
        std::env::var(name).ok().map(|text: String| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
    };
    let minutes = number("CHAOS_MINUTES")?;
    Some((number("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000)), Duration::from_secs(minutes * 60)))
}
