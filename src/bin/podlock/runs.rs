//! `podlock runs`: list and describe runs, cancel one, restart one, or release a quarantined one.

use podlock::operator::{AttemptRow, OwnerRow, Released, RunDetail, RunFilter, RunRow};
use podlock::{Cancelled, RunId};
use serde_json::json;

use crate::failure::{Failure, note};
use crate::global::Global;
use crate::output::{self, Format, List, OutputArgs, PAGE, TABLE_LIMIT, Tabular, brief_text, or_dash, seconds};

/// How many characters of an error a list shows, so that a row stays on one line of a wide terminal. `describe` and
/// `-o json` show more.
const ERROR_WIDTH: usize = 60;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Runs, newest first
    List {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// All about one run: input, checkpoint, output, attempts
    Describe {
        /// The run's id
        run: RunId,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// All about the run of a kind and key: the one that is running, else the newest that has ended
    Latest {
        /// The run's kind
        kind: String,
        /// Its key
        key: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Start a new run with the kind, key and input of one that has ended
    Restart {
        /// The ended run's id
        run: RunId,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Cancel a run, whichever pod owns it
    Cancel {
        /// The run's id
        run: RunId,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give a quarantined run another chance: it is running again, and its crashes are forgotten
    Release {
        /// The run's id
        run: RunId,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FilterArgs {
    /// Only runs in this state
    #[arg(long, value_parser = ["running", "succeeded", "failed", "cancelled", "quarantined"])]
    state: Option<String>,
    /// Only runs of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only runs with this key
    #[arg(long)]
    key: Option<String>,
    /// Only runs whose last owner bore this name
    #[arg(long, value_name = "POD")]
    owner: Option<String>,
    /// Only running runs that nobody in the roster owns
    #[arg(long)]
    orphans: bool,
    /// Only orphans of a kind that no pod takes now: none has a handler for it, or each that has drains or is cordoned
    #[arg(long)]
    unclaimable: bool,
    /// At most so many, the newest [default: 100 in a table, else all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
}

impl FilterArgs {
    fn filter(&self) -> RunFilter {
        let mut filter = RunFilter::new();
        if let Some(state) = &self.state {
            filter = filter.state(state);
        }
        if let Some(kind) = &self.kind {
            filter = filter.kind(kind);
        }
        if let Some(key) = &self.key {
            filter = filter.key(key);
        }
        if let Some(owner) = &self.owner {
            filter = filter.owner(owner);
        }
        if self.orphans {
            filter = filter.orphans();
        }
        if self.unclaimable { filter.unclaimable() } else { filter }
    }
}

pub(crate) async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { filter, output } => list(global, &filter, output.format).await,
        Verb::Describe { run, output } => {
            let detail = global.operator().await?.run(run).await?.ok_or_else(|| no_such(run))?;
            Ok(output::object(output.format, &detail, describe)?)
        }
        Verb::Latest { kind, key, output } => {
            let detail = global.operator().await?.latest(&kind, &key).await?;
            let detail =
                detail.ok_or_else(|| Failure::Failed(format!("there is no run of kind {kind:?} and key {key:?}")))?;
            Ok(output::object(output.format, &detail, describe)?)
        }
        Verb::Restart { run, output } => {
            let new = global.operator().await?.restart(run).await?;
            let answer = json!({ "run_id": new, "restart_of": run });
            Ok(output::object(output.format, &answer, |out, _| {
                use std::io::Write as _;
                writeln!(out, "run {new} is started with what run {run} was started with")
            })?)
        }
        Verb::Cancel { run, output } => {
            let state = match global.operator().await?.cancel(run).await? {
                Cancelled::NotFound => return Err(no_such(run)),
                Cancelled::AlreadyEnded { state } => {
                    return Err(Failure::Failed(format!(
                        "run {run} was not cancelled: it has ended already, as {state}"
                    )));
                }
                _ => "cancelled",
            };
            let answer = json!({ "run_id": run, "state": state });
            Ok(output::object(output.format, &answer, |out, _| {
                use std::io::Write as _;
                writeln!(out, "run {run} is cancelled")
            })?)
        }
        Verb::Release { run, output } => {
            let state = match global.operator().await?.release(run).await? {
                Released::NotFound => return Err(no_such(run)),
                Released::NotQuarantined { state } => {
                    return Err(Failure::Failed(format!("run {run} was not released: it is {state}, not quarantined")));
                }
                _ => "running",
            };
            let answer = json!({ "run_id": run, "state": state });
            Ok(output::object(output.format, &answer, |out, _| {
                use std::io::Write as _;
                writeln!(out, "run {run} is released: any pod with a handler and room takes it up")
            })?)
        }
    }
}

/// Fetches page by page, so that a long list costs no memory. A table is the exception.
async fn list(global: &Global, filter: &FilterArgs, format: Format) -> Result<(), Failure> {
    let operator = global.operator().await?;
    let most = filter.limit.or((format == Format::Table).then_some(TABLE_LIMIT));
    let mut left = most;
    let mut last: Option<RunRow> = None;
    let mut list = List::new(format);
    loop {
        let page = left.map_or(PAGE, |left| left.min(PAGE));
        if page == 0 {
            break;
        }
        let mut wanted = filter.filter().limit(page);
        if let Some(last) = &last {
            wanted = wanted.after(last);
        }
        let mut rows = operator.runs(wanted).await?;
        for row in &rows {
            list.push(row)?;
        }
        let got = i64::try_from(rows.len()).unwrap_or(PAGE);
        if got < page {
            break;
        }
        left = left.map(|left| left - got);
        last = rows.pop();
    }
    if filter.limit.is_none() && most.is_some_and(|most| i64::try_from(list.len()).is_ok_and(|shown| shown >= most)) {
        note(&format!("only the newest {} are shown; --limit N shows more", list.len()));
    }
    Ok(list.finish("there is no run, or none that was asked for")?)
}

fn no_such(run: RunId) -> Failure {
    Failure::Failed(format!("there is no run {run}; `podlock runs list` shows those that there are"))
}

fn describe(out: &mut impl std::io::Write, run: &RunDetail) -> std::io::Result<()> {
    let row = &run.row;
    output::facts(
        out,
        &[
            ("run_id", row.run_id.to_string()),
            ("kind", row.kind.clone()),
            ("key", or_dash(row.key.as_ref())),
            ("state", row.state.clone()),
            ("owner_pod", or_dash(row.owner_pod.as_ref())),
            ("owner_incarnation", or_dash(row.owner_incarnation)),
            ("fence", row.fence.to_string()),
            ("attempt", row.attempt.to_string()),
            ("crashes", row.crashes.to_string()),
            ("created_at", output::millis(row.created_at)),
            ("finished_at", or_dash(row.finished_at.map(output::millis))),
            ("movable", row.movable.to_string()),
            ("traceparent", or_dash(run.traceparent.as_ref())),
            ("input", run.input.to_string()),
            ("checkpoint", or_dash(run.checkpoint.as_ref())),
            ("result", or_dash(run.output.result.as_ref())),
            ("error", or_dash(run.output.error.as_ref())),
            ("exit_code", or_dash(run.output.exit_code)),
            ("stdout", stream(&run.output.stdout)),
            ("stderr", stream(&run.output.stderr)),
            ("parse_error", or_dash(run.output.parse_error.as_ref())),
        ],
    )?;
    if !row.died_with.is_empty() {
        writeln!(out, "\nDied with it:")?;
        output::table_of::<OwnerRow>(out, &row.died_with)?;
    }
    writeln!(out, "\nAttempts:")?;
    output::table_of::<AttemptRow>(out, &run.attempts)
}

/// The beginning of a stream, which may be long. `-o json` shows all of it.
fn stream(text: &str) -> String {
    const MOST: usize = 1000;
    match text.char_indices().nth(MOST) {
        _ if text.is_empty() => "-".to_owned(),
        Some((end, _)) => format!("{}… ({} bytes in all; -o json shows them)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

impl Tabular for OwnerRow {
    const COLUMNS: &'static [&'static str] = &["pod_id", "incarnation", "reason", "ended_at"];
    const NUMBERS: &'static [&'static str] = &[];

    fn cells(&self) -> Vec<String> {
        let ended_at = output::millis(self.ended_at);
        vec![self.pod_id.clone(), self.incarnation.to_string(), self.reason.clone(), ended_at]
    }
}

impl Tabular for RunRow {
    const COLUMNS: &'static [&'static str] = &[
        "run_id",
        "kind",
        "key",
        "state",
        "owner_pod",
        "fence",
        "attempt",
        "crashes",
        "created_at",
        "finished_at",
        "died_with",
        "error",
    ];
    const NUMBERS: &'static [&'static str] = &["fence", "attempt", "crashes"];

    fn cells(&self) -> Vec<String> {
        let died_with: Vec<&str> = self.died_with.iter().map(|owner| owner.pod_id.as_str()).collect();
        vec![
            self.run_id.to_string(),
            self.kind.clone(),
            or_dash(self.key.as_ref()),
            self.state.clone(),
            or_dash(self.owner_pod.as_ref()),
            self.fence.to_string(),
            self.attempt.to_string(),
            self.crashes.to_string(),
            seconds(self.created_at),
            or_dash(self.finished_at.map(seconds)),
            or_dash((!died_with.is_empty()).then(|| died_with.join(", "))),
            or_dash(self.error.as_deref().map(|error| brief_text(error, ERROR_WIDTH))),
        ]
    }
}
