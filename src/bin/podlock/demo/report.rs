//! The results of a demo, in words and as JSON.

use std::time::Duration;

use serde::Serialize;

use super::board::{Board, ms};
use super::checks::Check;
use super::screen::{Screen, Tone};
use super::{Args, Fate};
use crate::failure::Failure;

/// How many runs the report lists. With the figures and checks around them, the report fits on one screen.
const ROWS: usize = 16;

/// The figures of one demo, as `-o json` prints them. Times are in milliseconds from just before the signal.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    kill: &'static str,
    pods: u8,
    runs: u16,
    struck: String,
    /// When the server announced the burial.
    noticed_ms: Option<f64>,
    noticed_by: Option<String>,
    reason: Option<String>,
    draining_ms: Option<f64>,
    process_ended_ms: Option<f64>,
    back_ms: Option<f64>,
    told_to_stop: usize,
    late_writes_refused: usize,
    /// Each run that continued on another pod.
    moved: Vec<MovedRun>,
    executing_ms: Spread,
    checks: Vec<Check>,
    pub(super) ok: bool,
}

#[derive(Debug, Serialize)]
struct MovedRun {
    run: usize,
    run_id: podlock::RunId,
    to: String,
    attempt: i32,
    fence: i64,
    from_chunk: u32,
    executing_ms: f64,
}

#[derive(Debug, Default, Serialize)]
struct Spread {
    least: Option<f64>,
    median: Option<f64>,
    most: Option<f64>,
}

impl Report {
    pub(super) fn new(board: &Board, args: &Args, checks: Vec<Check>) -> Self {
        let strike = board.strike.as_ref();
        let buried = strike.and_then(|strike| strike.heard("buried"));
        let moved: Vec<_> = board
            .moved()
            .map(|(run, view, moved)| MovedRun {
                run,
                run_id: view.id,
                to: board.pods[moved.to].name.clone(),
                attempt: moved.attempt,
                fence: moved.fence,
                from_chunk: moved.from,
                executing_ms: millis(moved.after),
            })
            .collect();
        Self {
            kill: match args.kill {
                Fate::Kill => "kill",
                Fate::Term => "term",
                Fate::Stop => "stop",
            },
            pods: args.pods,
            runs: args.runs,
            struck: strike.map_or_else(String::new, |strike| board.pods[strike.pod].name.clone()),
            noticed_ms: buried.map(|heard| millis(heard.after)),
            noticed_by: buried.map(|heard| heard.by.clone()),
            reason: buried.and_then(|heard| heard.reason.clone()),
            draining_ms: strike.and_then(|s| s.heard("draining")).map(|heard| millis(heard.after)),
            process_ended_ms: strike.and_then(|s| s.ended).map(millis),
            back_ms: strike.and_then(|s| s.back).map(|(_, after)| millis(after)),
            told_to_stop: strike.map_or(0, |s| s.told_to_stop),
            late_writes_refused: strike.map_or(0, |s| s.refused),
            executing_ms: Spread::of(moved.iter().map(|moved| moved.executing_ms)),
            moved,
            ok: checks.iter().all(|check| check.ok),
            checks,
        }
    }
}

impl Spread {
    fn of(times: impl Iterator<Item = f64>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_by(f64::total_cmp);
        Self { least: times.first().copied(), median: times.get(times.len() / 2).copied(), most: times.last().copied() }
    }
}

/// Prints the results.
pub(super) fn tell(screen: &mut Screen, board: &Board, report: &Report) -> Result<(), Failure> {
    let signal = match report.kill {
        "kill" => "kill",
        "term" => "SIGTERM",
        _ => "freeze",
    };
    let heading =
        screen.paint(Tone::Strong, &format!("What happened to {}, in milliseconds after the signal:", report.struck));
    screen.say(&format!("\n{heading}\n"))?;
    if let Some(time) = report.draining_ms {
        screen.say(&fact(&format!("{signal} → draining"), time, "by its own word"))?;
    }
    if let Some(time) = report.noticed_ms {
        let by = report.noticed_by.as_deref().unwrap_or("a peer");
        let reason = report.reason.as_deref().unwrap_or("?");
        let word = if reason == "shutdown" { "buried" } else { "noticed" };
        screen.say(&fact(&format!("{signal} → {word}"), time, &format!("{by} buried it (reason: {reason})")))?;
    }
    let Spread { least, median, most } = &report.executing_ms;
    if let (Some(least), Some(median), Some(most)) = (least, median, most) {
        let spread = format!("median of {} runs; least {least:.1}, most {most:.1}", report.moved.len());
        screen.say(&fact(&format!("{signal} → executing again"), *median, &spread))?;
    }
    if let Some(time) = report.back_ms {
        screen.say(&fact(&format!("{signal} → back"), time, "as a new incarnation, after it was woken"))?;
    }
    moved(screen, report)?;
    screen.say("")?;
    for check in &report.checks {
        let mark = if check.ok { screen.paint(Tone::Good, "✓") } else { screen.paint(Tone::Bad, "✗ NOT TRUE:") };
        screen.say(&format!("  {mark} {}", check.what))?;
        for fault in &check.faults {
            screen.say(&format!("      {fault}"))?;
        }
    }
    let verdict = if report.ok {
        screen.paint(Tone::Good, &format!("Every run finished once: {} of {}.", board.runs.len(), board.runs.len()))
    } else {
        screen.paint(Tone::Bad, "Not every run finished exactly once.")
    };
    Ok(screen.say(&format!("\n{verdict}"))?)
}

fn moved(screen: &mut Screen, report: &Report) -> Result<(), Failure> {
    if report.moved.is_empty() {
        return Ok(());
    }
    let head = "    run   went on at  attempt  fence  from chunk  after";
    let head = screen.paint(Tone::Faint, head);
    screen.say(&format!("\n{head}"))?;
    for moved in report.moved.iter().take(ROWS) {
        let number = format!("#{}", moved.run);
        screen.say(&format!(
            "    {number:<5} {:<10} {:>8}  {:>5}  {:>10}  {}",
            moved.to,
            moved.attempt,
            moved.fence,
            moved.from_chunk,
            ms(Duration::from_secs_f64(moved.executing_ms / 1000.0))
        ))?;
    }
    if report.moved.len() > ROWS {
        screen.say(&format!("    … and {} more", report.moved.len() - ROWS))?;
    }
    Ok(())
}

fn fact(name: &str, time: f64, more: &str) -> String {
    format!("    {name:<26} {time:>8.1} ms   {more}")
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
