//! How long a start, a checkpoint and an end take, alone and under a load that is a share of the peak rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podlock::{NewRun, Pod, Run};
use serde_json::json;

use crate::alone::{self, Alone};
use crate::pace;
use crate::report::{Report, Spread, Table};
use crate::stage::{KIND, Stage, checkpoint, config};
use crate::{Args, Fsync, Result, SOON, WARM_UP};

const WRITES: [&str; 3] = ["start", "checkpoint", "end"];
const SHARES: [f64; 4] = [0.01, 0.1, 0.5, 1.0];
/// The p99 at this share of the peak is at most so many times that of a lone write by hand.
const GOAL: (f64, f64) = (0.5, 3.0);
/// A trivial run has two writes, and a run here has three.
const WRITES_A_RUN: f64 = 2.0 / 3.0;

/// What the runs of one rate measured.
#[derive(Default)]
struct Samples {
    took: std::sync::Mutex<[Vec<f64>; 3]>,
    /// Starts that have not returned, and runs that have not ended.
    under_way: AtomicUsize,
    refused: AtomicUsize,
}

impl Samples {
    fn add(&self, write: usize, from: Instant) {
        if let Ok(mut took) = self.took.lock() {
            took[write].push(from.elapsed().as_secs_f64() * 1e3);
        }
    }

    fn take(&self) -> [Vec<f64>; 3] {
        self.took.lock().map(|mut took| std::mem::take(&mut *took)).unwrap_or_default()
    }
}

pub(crate) async fn measure(stage: &Stage, args: &Args, peak: f64, report: &mut Report) -> Result<()> {
    let alone = alone::measure(stage, args).await?;
    let samples = Arc::new(Samples::default());
    let pod = pod(&stage.database("latency").await?, &samples).await?;
    let head = ["", "write", "n", "median ms", "p99 ms", "max ms", "× p99 of the lone statement"];
    let mut table = Table::new(&format!("latency; the peak is {:.0} writes a second", peak * 2.0), &head);
    rows(&mut table, "the lone statement by hand", &alone.by_hand, &alone);
    rows(&mut table, "alone", &alone.podlock, &alone);
    for (nth, write) in WRITES.iter().enumerate() {
        let ratio = alone.podlock[nth].median / alone.by_hand[nth].median;
        report.note(format!("a lone {write}: {ratio:.2} × the median of its statement by hand"));
        if stage.fsync == Fsync::On {
            let what = format!("a lone {write}, as a multiple of its statement by hand: × that before groups");
            report.goal(&what, ratio / alone::UNGROUPED[nth], alone::GOAL, false);
        }
    }
    for share in SHARES {
        let rate = peak * share * WRITES_A_RUN;
        load(&pod, &samples, rate, WARM_UP).await?;
        samples.take();
        samples.refused.store(0, Ordering::Relaxed);
        load(&pod, &samples, rate, args.time()).await?;
        let spreads = samples.take().map(Spread::of);
        let refused = samples.refused.swap(0, Ordering::Relaxed);
        if refused > 0 {
            report.note(format!("at {:.0} % of the peak {refused} starts were refused", share * 100.0));
        }
        println!("latency at {:.0} %: start {}", share * 100.0, spreads[0].ms());
        rows(&mut table, &format!("at {:.0} % of the peak", share * 100.0), &spreads, &alone);
        if share == GOAL.0 {
            for (write, (ours, theirs)) in WRITES.iter().zip(spreads.iter().zip(&alone.by_hand)) {
                let what = format!("a {write} at half the peak: × the p99 of a lone statement");
                report.goal(&what, ours.p99 / theirs.p99, GOAL.1, false);
            }
        }
    }
    pod.shutdown(SOON).await?;
    report.table(table);
    Ok(())
}

fn rows(table: &mut Table, what: &str, spreads: &[Spread; 3], alone: &Alone) {
    for (nth, (write, spread)) in WRITES.iter().zip(spreads).enumerate() {
        table.row(vec![
            what.to_owned(),
            (*write).to_owned(),
            spread.n.to_string(),
            format!("{:.2}", spread.median),
            format!("{:.2}", spread.p99),
            format!("{:.1}", spread.max),
            format!("{:.2}", spread.p99 / alone.by_hand[nth].p99),
        ]);
    }
}

async fn pod(url: &str, samples: &Arc<Samples>) -> Result<Pod> {
    let samples = Arc::clone(samples);
    let handler = move |run: Run| {
        let samples = Arc::clone(&samples);
        async move {
            let began = Instant::now();
            run.checkpoint(checkpoint(0)).await?;
            samples.add(1, began);
            let began = Instant::now();
            let ended = run.finish(json!(null)).await?;
            samples.add(2, began);
            samples.under_way.fetch_sub(1, Ordering::Relaxed);
            Ok(ended)
        }
    };
    Ok(Pod::builder(config(url, "latency")).handler(KIND, handler).start().await?)
}

/// Starts runs at a rate, and waits until all have ended. The time of a start counts from when it was due.
async fn load(pod: &Pod, samples: &Arc<Samples>, rate: f64, time: Duration) -> Result<()> {
    let (runtime, pod, shared) = (tokio::runtime::Handle::current(), pod.clone(), Arc::clone(samples));
    let each = move |due| {
        let (pod, samples) = (pod.clone(), Arc::clone(&shared));
        samples.under_way.fetch_add(2, Ordering::Relaxed);
        runtime.spawn(async move {
            match pod.start(NewRun::new(KIND).input(json!(1))).await {
                Ok(_) => {
                    samples.add(0, due);
                    samples.under_way.fetch_sub(1, Ordering::Relaxed);
                }
                Err(e) => {
                    if samples.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        eprintln!("bench-runs: a start was refused: {e}");
                    }
                    samples.under_way.fetch_sub(2, Ordering::Relaxed);
                }
            }
        });
    };
    if !time.is_zero() {
        pace::at_rate(rate, time, each).await;
    }
    let until = Instant::now() + SOON;
    while samples.under_way.load(Ordering::Relaxed) > 0 {
        if Instant::now() > until {
            return Err(format!("runs have not ended {SOON:?} after the last was started").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
