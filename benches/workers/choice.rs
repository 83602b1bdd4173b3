//! Choosing: how long `available()` takes, and a choice among the workers that match. It uses no database.
//!
//! The floor: a scan over a list of as many shared entries, which reads two atomics of each and finds the least.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use podlock::workers::{Filter, NewWorker};

use crate::fleet::{Fleet, MODEL};
use crate::report::{Report, Spread};
use crate::{Args, Result};

const GOAL_NS: f64 = 5000.0;
/// How often the first choice after a change of the set is measured.
const FIRSTS: usize = 20;

struct Entry {
    may_choose: AtomicBool,
    in_flight: AtomicU32,
}

pub(crate) fn measure(fleet: &Fleet, args: &Args, report: &mut Report) -> Result<()> {
    let workers = fleet.members[0].pod.workers();
    let filter = Filter::new().kind("llm").model(MODEL);
    let matching = workers.available(&filter).count();
    let n = args.choices;

    let list: Vec<Arc<Entry>> = (0..matching)
        .map(|_| Arc::new(Entry { may_choose: AtomicBool::new(true), in_flight: AtomicU32::new(0) }))
        .collect();
    let scan = each(n / 10, || {
        let free = list.iter().filter(|entry| entry.may_choose.load(Ordering::Acquire));
        black_box(free.min_by_key(|entry| entry.in_flight.load(Ordering::Acquire)));
    });
    let available = each(n, || drop(black_box(workers.available(black_box(&filter)))));
    let chosen = each(n / 10, || drop(black_box(workers.available(black_box(&filter)).least_in_flight())));
    let counted = each(n / 10, || _ = black_box(workers.available(black_box(&filter)).count()));

    let mut firsts = Vec::new();
    for _ in 0..FIRSTS {
        // The set changes, so the lists are made again.
        let id = workers.register(NewWorker::new("http://127.0.0.1:1"))?;
        let began = Instant::now();
        black_box(workers.available(&filter));
        firsts.push(began.elapsed().as_secs_f64() * 1e3);
        workers.remove(id)?;
        black_box(workers.available(&filter));
    }

    let ns = |ns: f64| format!("{ns:.0} ns");
    let goal = (format!("< {GOAL_NS:.0} ns"), available < GOAL_NS);
    report.row(&format!("c: available(), {matching} match"), n as usize, ns(available), &ns(scan), Some(goal));
    report.row("c: available().least_in_flight()", n as usize / 10, ns(chosen), &ns(scan), None);
    report.row("c: available().count()", n as usize / 10, ns(counted), &ns(scan), None);
    let first = Spread::of(firsts);
    report.row("c: first available() after a worker came", FIRSTS, first.ms(), "", None);
    Ok(())
}

/// Nanoseconds of one call.
fn each(n: u32, mut call: impl FnMut()) -> f64 {
    let n = n.max(1);
    for _ in 0..n / 10 {
        call();
    }
    let began = Instant::now();
    for _ in 0..n {
        call();
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(n)
}
