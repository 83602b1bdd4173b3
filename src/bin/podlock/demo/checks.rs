//! Checks that every run finished exactly once, by asking the database and not the pods.

use podlock::Operator;
use podlock::operator::RunDetail;
use serde::{Deserialize, Serialize};

use super::Args;
use super::board::Board;
use crate::failure::Failure;

/// A condition that must hold, and its counterexamples.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) what: String,
    pub(super) ok: bool,
    pub(super) faults: Vec<String>,
}

/// The result of a `demo` run.
#[derive(Deserialize)]
struct Made {
    chunks: u32,
    segments: Vec<Segment>,
}

#[derive(Deserialize)]
struct Segment {
    from: u32,
    to: u32,
    attempt: i32,
    fence: i64,
}

pub(super) async fn check(operator: &Operator, board: &Board, args: &Args) -> Result<Vec<Check>, Failure> {
    let mut runs = Vec::with_capacity(board.runs.len());
    for (i, run) in board.runs.iter().enumerate() {
        let detail = operator.run(run.id).await?;
        let detail = detail.ok_or_else(|| Failure::Failed(format!("run {} is not in the database", run.id)))?;
        runs.push((i + 1, detail));
    }
    let all = runs.len();
    let chunks = args.chunks;
    Ok(vec![
        judge(
            format!("{all} of {all} runs succeeded, each ended by exactly one of its attempts"),
            &runs,
            succeeded_once,
        ),
        judge("every run's attempts are numbered without a gap, under fences that only rise".to_owned(), &runs, rising),
        judge(
            format!(
                "{} of {} chunks were made: none is missing, none was made twice",
                all as u64 * u64::from(chunks),
                all as u64 * u64::from(chunks)
            ),
            &runs,
            |run| whole(run, chunks),
        ),
    ])
}

fn judge(what: String, runs: &[(usize, RunDetail)], fault: impl Fn(&RunDetail) -> Option<String>) -> Check {
    let faults =
        runs.iter().filter_map(|(n, run)| fault(run).map(|fault| format!("#{n} ({}): {fault}", run.row.run_id)));
    let faults: Vec<_> = faults.collect();
    Check { what, ok: faults.is_empty(), faults }
}

fn succeeded_once(run: &RunDetail) -> Option<String> {
    let reasons: Vec<_> = run.attempts.iter().map(|attempt| attempt.reason.as_deref().unwrap_or("none")).collect();
    let successes = reasons.iter().filter(|reason| **reason == "succeeded").count();
    let fine = run.row.state == "succeeded" && successes == 1 && reasons.last() == Some(&"succeeded");
    (!fine).then(|| format!("it is {}, and its attempts ended as {}", run.row.state, reasons.join(", ")))
}

fn rising(run: &RunDetail) -> Option<String> {
    let numbers: Vec<_> = run.attempts.iter().map(|attempt| attempt.attempt).collect();
    let fences: Vec<_> = run.attempts.iter().map(|attempt| attempt.fence.get()).collect();
    let contiguous = numbers.iter().zip(1..).all(|(number, due)| *number == due) && !numbers.is_empty();
    let fine = contiguous && fences.is_sorted_by(|a, b| a < b) && fences.last() == Some(&run.row.fence.get());
    (!fine).then(|| format!("its attempts are {numbers:?} under fences {fences:?}"))
}

/// Checks that each chunk was accepted once, from the attempt that the log of attempts names. A late write of an old
/// owner would show as a segment of its attempt after a segment of a newer attempt.
fn whole(run: &RunDetail, chunks: u32) -> Option<String> {
    let result = run.output.result.clone().unwrap_or_default();
    let Ok(made) = serde_json::from_value::<Made>(result.clone()) else {
        return Some(format!("its result is {result}"));
    };
    let mut due = 1;
    let mut newest = 0;
    for segment in &made.segments {
        let known = run.attempts.iter().any(|a| a.attempt == segment.attempt && a.fence.get() == segment.fence);
        if segment.from != due || segment.to < segment.from || segment.attempt <= newest || !known {
            return Some(format!("its segments do not join: {result}"));
        }
        due = segment.to + 1;
        newest = segment.attempt;
    }
    (made.chunks != chunks || due != chunks + 1).then(|| format!("its result is {result}"))
}
