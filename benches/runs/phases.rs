//! The rates: callers that each start a run, wait until it has ended, and start the next.

use std::sync::Arc;

use podlock::{NewRun, Pod};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::floors::{Floor, Shape, Sizes};
use crate::other::{Other, Says};
use crate::report::{Report, Spread, Table};
use crate::stage::{Board, KIND, Load, Measured, Stage, input, pod};
use crate::{Args, Fsync, Result, SOON};

/// At least so many times the rate of the writes by hand, one by one, with `fsync` on.
const GOAL_ONE: f64 = 10.0;
/// At least so many times the rate of the writes by hand in statements of the same sizes.
const GOAL_GROUPS: f64 = 0.5;

/// Returns the highest rate.
pub(crate) async fn trivial(stage: &Stage, args: &Args, report: &mut Report) -> Result<f64> {
    let shape = Shape { is_submitted: false, checkpoints: 0 };
    let what = "trivial runs, start to end";
    owned(stage, args, ("trivial", what), shape, &args.callers, report).await
}

pub(crate) async fn checkpoints(stage: &Stage, args: &Args, report: &mut Report) -> Result<()> {
    let shape = Shape { is_submitted: false, checkpoints: 10 };
    let callers: Vec<_> = args.callers.iter().copied().filter(|callers| *callers != 8).collect();
    let what = "runs with ten checkpoints each";
    owned(stage, args, ("checkpoints", what), shape, &callers, report).await?;
    Ok(())
}

/// The highest rate of trivial runs, if it was not measured.
pub(crate) async fn peak(stage: &Stage, args: &Args) -> Result<f64> {
    let callers = args.callers.iter().copied().max().unwrap_or(1);
    let board = Board::new(callers);
    let pod = pod(&stage.database("peak").await?, &board).await?;
    let measured = run(stage, args, "peak", &pod, &board, callers, 0).await?;
    pod.shutdown(SOON).await?;
    Ok(measured.rate)
}

async fn owned(
    stage: &Stage,
    args: &Args,
    (name, what): (&str, &str),
    shape: Shape,
    callers: &[usize],
    report: &mut Report,
) -> Result<f64> {
    let floor = Floor::new(stage, &format!("{name}_floor"), shape).await?;
    let board = Board::new(callers.iter().copied().max().unwrap_or(1));
    let pod = pod(&stage.database(name).await?, &board).await?;
    // Before and after the others: the machine may be busier at one time than at another.
    let mut one = floor.one_by_one(args).await?;
    let mut rows = Vec::new();
    for callers in callers {
        let measured = run(stage, args, name, &pod, &board, *callers, shape.checkpoints).await?;
        let groups = floor.in_groups(args, Sizes::of(&measured.counts)).await?;
        println!("{what}, {callers} callers: {:.0} runs a second; in groups by hand {:.0}", measured.rate, groups.rate);
        rows.push((*callers, measured, groups));
    }
    let again = floor.one_by_one(args).await?;
    one.rate = f64::midpoint(one.rate, again.rate);
    pod.shutdown(SOON).await?;
    top(&rows, report);
    report.table(rates(what, &one, &rows));
    judge(stage, what, &one, &rows, report);
    Ok(rows.iter().map(|(_, measured, _)| measured.rate).fold(0.0, f64::max))
}

async fn run(
    stage: &Stage,
    args: &Args,
    name: &str,
    pod: &Pod,
    board: &Arc<Board>,
    callers: usize,
    checkpoints: usize,
) -> Result<Measured> {
    let (load, mut tasks) = (Arc::new(Load::default()), JoinSet::new());
    for caller in 0..callers {
        let (pod, board, load) = (pod.clone(), Arc::clone(board), Arc::clone(&load));
        tasks.spawn(async move {
            while load.goes_on() {
                pod.start(NewRun::new(KIND).input(input(caller, checkpoints))).await?;
                board.told(caller).await;
                load.add(1);
            }
            Result::<()>::Ok(())
        });
    }
    let measured = stage.watch(name, args.time(), &load).await?;
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(measured)
}

/// Runs that a pod of this process submits, and a pod of another process executes.
pub(crate) async fn submits(stage: &Stage, args: &Args, report: &mut Report) -> Result<()> {
    let what = "runs that another pod executes, submit to end";
    let shape = Shape { is_submitted: true, checkpoints: 0 };
    let floor = Floor::new(stage, "submits_floor", shape).await?;
    let callers: Vec<_> = args.callers.iter().copied().filter(|callers| *callers != 8).collect();
    let board = Board::new(callers.iter().copied().max().unwrap_or(1));
    let url = stage.database("submits").await?;
    let front = Pod::builder(crate::stage::config(&url, "front")).start().await?;
    let told = Arc::clone(&board);
    let worker = Other::start(&["worker"], &url, move |says| match says {
        Says::Ended { caller } => {
            told.tell(caller);
            None
        }
        other => Some(other),
    })
    .await?;
    let mut one = floor.one_by_one(args).await?;
    let mut rows = Vec::new();
    for callers in callers {
        let (measured, times) = submit(stage, args, &front, &board, callers).await?;
        let groups = floor.in_groups(args, Sizes::of(&measured.counts)).await?;
        println!("{what}, {callers} callers: {:.0} runs a second; in groups by hand {:.0}", measured.rate, groups.rate);
        report.note(format!("{callers} callers: from submit to end {}", times.ms()));
        rows.push((callers, measured, groups));
    }
    let again = floor.one_by_one(args).await?;
    one.rate = f64::midpoint(one.rate, again.rate);
    worker.end().await?;
    front.shutdown(SOON).await?;
    top(&rows, report);
    report.table(rates(what, &one, &rows));
    judge(stage, what, &one, &rows, report);
    Ok(())
}

async fn submit(
    stage: &Stage,
    args: &Args,
    front: &Pod,
    board: &Arc<Board>,
    callers: usize,
) -> Result<(Measured, Spread)> {
    let (load, mut tasks) = (Arc::new(Load::default()), JoinSet::new());
    let times = Arc::new(Mutex::new(Vec::new()));
    for caller in 0..callers {
        let (front, board, load, times) = (front.clone(), Arc::clone(board), Arc::clone(&load), Arc::clone(&times));
        tasks.spawn(async move {
            while load.goes_on() {
                let began = Instant::now();
                front.submit(NewRun::new(KIND).input(input(caller, 0))).await?;
                board.told(caller).await;
                load.add(1);
                times.lock().await.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Result::<()>::Ok(())
        });
    }
    let measured = stage.watch("submits", args.time(), &load).await?;
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let times = std::mem::take(&mut *times.lock().await);
    Ok((measured, Spread::of(times)))
}

type Row = (usize, Measured, Measured);

fn rates(what: &str, one: &Measured, rows: &[Row]) -> Table {
    let mut table = Table::new(
        what,
        &[
            "callers",
            "runs a second",
            "one by one by hand",
            "ratio",
            "in groups by hand",
            "ratio",
            "runs a statement: start, claim, checkpoint, end",
            "statements a run",
            "server µs a run",
            "in groups by hand",
        ],
    );
    for (callers, measured, groups) in rows {
        let counts = &measured.counts;
        let sizes = [&counts.starts, &counts.claims, &counts.checkpoints, &counts.ends];
        let sizes =
            sizes.map(|writes| if writes.calls > 0.0 { format!("{:.1}", writes.group()) } else { "-".to_owned() });
        let micros = |m: &Measured| format!("{:.0}", m.counts.ms * 1e3 / m.runs);
        table.row(vec![
            callers.to_string(),
            format!("{:.0}", measured.rate),
            format!("{:.0}", one.rate),
            format!("{:.2}", measured.rate / one.rate),
            format!("{:.0}", groups.rate),
            format!("{:.2}", measured.rate / groups.rate),
            sizes.join(", "),
            format!("{:.2}", counts.calls / measured.runs),
            micros(measured),
            micros(groups),
        ]);
    }
    table
}

/// Where the server's time goes at the peak.
fn top(rows: &[Row], report: &mut Report) {
    let Some((callers, measured, groups)) = rows.iter().max_by(|a, b| a.1.rate.total_cmp(&b.1.rate)) else { return };
    for (whose, measured) in [("the pod's", measured), ("by hand in groups", groups)] {
        report.note(format!("{callers} callers, the server's time, {whose}:"));
        for line in measured.counts.top(measured.runs) {
            report.note(format!("  {line}"));
        }
    }
}

/// The goals are for the rate at the peak, and for the ratio to groups at each number of callers that makes groups.
fn judge(stage: &Stage, what: &str, one: &Measured, rows: &[Row], report: &mut Report) {
    let Some((callers, measured, groups)) = rows.iter().max_by(|a, b| a.1.rate.total_cmp(&b.1.rate)) else { return };
    let ratio = measured.rate / one.rate;
    if stage.fsync != Fsync::Off {
        report.goal(&format!("{what}, {callers} callers: × one by one by hand"), ratio, GOAL_ONE, true);
    }
    let ratio = measured.rate / groups.rate;
    report.goal(&format!("{what}, {callers} callers: × in groups by hand"), ratio, GOAL_GROUPS, true);
}
