//! `podlock workers`: what the pods have registered, as the store has it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use podlock::operator::{WorkerFilter, WorkerRow};
use podlock::workers::{Health, Liveness};
use podlock::{Operator, Timestamp, WorkerId};
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, note};
use crate::global::Global;
use crate::output::{self, Format, List, OutputArgs, PAGE, TABLE_LIMIT, Tabular, brief, or_dash, seconds};
use crate::pods::every;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// The workers of the pods in the roster, by pod
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many [default: 100 in a table, else all]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
        limit: Option<i64>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// All about one worker
    Describe {
        /// The worker's id
        worker: WorkerId,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// The workers as they change, until interrupted
    ///
    /// On a terminal the table is redrawn; elsewhere, and with -o jsonl, each change is a line.
    Watch {
        #[command(flatten)]
        filter: FilterArgs,
        /// How often to look
        #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = every)]
        every: Duration,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FilterArgs {
    /// Only workers of this pod
    #[arg(long)]
    pod: Option<String>,
    /// Only workers of this health
    #[arg(long, value_parser = Health::ALL.map(Health::as_str))]
    health: Option<String>,
    /// Only workers whose owner reports them (active), or does not (inactive)
    #[arg(long, value_parser = Liveness::ALL.map(Liveness::as_str))]
    liveness: Option<String>,
}

impl FilterArgs {
    /// Whether a worker can cease to match although it is there.
    fn is_of_state(&self) -> bool {
        self.health.is_some() || self.liveness.is_some()
    }

    fn filter(&self) -> WorkerFilter {
        let mut filter = WorkerFilter::new();
        if let Some(pod) = &self.pod {
            filter = filter.pod(pod);
        }
        if let Some(health) = self.health.as_deref().and_then(Health::parse) {
            filter = filter.health(health);
        }
        if let Some(liveness) = self.liveness.as_deref().and_then(Liveness::parse) {
            filter = filter.liveness(liveness);
        }
        filter
    }
}

pub(crate) async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { filter, limit, output } => list(&global.operator().await?, &filter, limit, output.format).await,
        Verb::Describe { worker, output } => {
            let row = global.operator().await?.worker(worker).await?.ok_or_else(|| {
                Failure::Failed(format!(
                    "there is no worker {worker} of a pod in the roster; `podlock workers list` shows those that there are"
                ))
            })?;
            Ok(output::object(output.format, &row, describe)?)
        }
        Verb::Watch { filter, every, output } => {
            let format = output.endless("workers watch")?;
            watch(&global.operator().await?, &filter, every, format).await
        }
    }
}

async fn list(operator: &Operator, filter: &FilterArgs, limit: Option<i64>, format: Format) -> Result<(), Failure> {
    let most = limit.or((format == Format::Table).then_some(TABLE_LIMIT));
    let mut list = List::new(format);
    each(operator, filter, most, |row| list.push(&row)).await?;
    if limit.is_none() && most.is_some_and(|most| i64::try_from(list.len()).is_ok_and(|shown| shown >= most)) {
        note(&format!("only the first {} are shown; --limit N shows more", list.len()));
    }
    Ok(list.finish("there is no worker, or none that was asked for")?)
}

/// Passes the workers to `show`, page by page.
async fn each(
    operator: &Operator,
    filter: &FilterArgs,
    most: Option<i64>,
    mut show: impl FnMut(WorkerRow) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let mut left = most;
    let mut wanted = filter.filter();
    loop {
        let page = left.map_or(PAGE, |left| left.min(PAGE));
        if page == 0 {
            return Ok(());
        }
        let rows = operator.workers(wanted.limit(page)).await?;
        let got = i64::try_from(rows.len()).unwrap_or(PAGE);
        let Some(last) = rows.last().filter(|_| got == page) else {
            return Ok(rows.into_iter().try_for_each(show)?);
        };
        wanted = filter.filter().after(last);
        left = left.map(|left| left - got);
        rows.into_iter().try_for_each(&mut show)?;
    }
}

/// By pod and URL, so that a table is in the order of the list.
type Seen = BTreeMap<(String, String, WorkerId), WorkerRow>;

/// Shows the workers again and again. An outage of the database is reported once and waited out.
async fn watch(operator: &Operator, filter: &FilterArgs, every: Duration, format: Format) -> Result<(), Failure> {
    let redraw = format == Format::Table && output::is_terminal();
    let mut before: Option<Seen> = None;
    let mut out_of_reach = false;
    loop {
        let mut now = Seen::new();
        let read = each(operator, filter, None, |row| {
            now.insert((row.owner_pod.clone(), row.url.clone(), row.worker_id), row);
            Ok(())
        });
        match read.await {
            Ok(()) => {
                out_of_reach = false;
                if redraw {
                    draw(&now)?;
                } else {
                    changes(before.as_ref(), &now, filter.is_of_state())
                        .iter()
                        .try_for_each(|change| show(format, change))?;
                }
                before = Some(now);
            }
            Err(Failure::Podlock(error)) if error.is_transient() => {
                if !out_of_reach {
                    note(&format!("{error}; trying again"));
                }
                out_of_reach = true;
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(every).await;
    }
}

fn draw(workers: &Seen) -> std::io::Result<()> {
    let mut screen = b"\x1b[H\x1b[2J".to_vec();
    writeln!(screen, "{} workers, {}\n", workers.len(), seconds(Timestamp::now()))?;
    let workers: Vec<_> = workers.values().cloned().collect();
    output::table_of(&mut screen, &workers)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&screen)?;
    out.flush()
}

/// How a worker changed between two reads.
#[derive(Debug, Serialize)]
struct Change {
    change: &'static str,
    #[serde(flatten)]
    worker: WorkerRow,
}

/// `present` at the first read, then `added`, `changed`, `removed`. A report alone is no change. Under a filter for health
/// or liveness, a worker that does not match any more may still be there: `came` and `left`.
fn changes(before: Option<&Seen>, now: &Seen, of_state: bool) -> Vec<Change> {
    let (added, removed) = if of_state { ("came", "left") } else { ("added", "removed") };
    let of = |change, worker: &WorkerRow| Change { change, worker: worker.clone() };
    let Some(before) = before else {
        return now.values().map(|worker| of("present", worker)).collect();
    };
    let mut changes = Vec::new();
    for (key, old) in before {
        if !now.contains_key(key) {
            changes.push(of(removed, old));
        }
    }
    for (key, new) in now {
        match before.get(key) {
            None => changes.push(of(added, new)),
            Some(old) => {
                let mut but_for_the_report = old.clone();
                but_for_the_report.reported_at = new.reported_at;
                if but_for_the_report != *new {
                    changes.push(of("changed", new));
                }
            }
        }
    }
    changes
}

fn show(format: Format, change: &Change) -> std::io::Result<()> {
    if format == Format::Jsonl {
        return output::json_line(change);
    }
    let Change { change, worker } = change;
    let (pod, url) = (output::printable(&worker.owner_pod), output::printable(&worker.url));
    let at = output::millis(Timestamp::now());
    output::line(&format!("{at}  {change:<8} {url}  {}  {}  of {pod}", worker.health, worker.liveness))
}

fn describe(out: &mut impl std::io::Write, worker: &WorkerRow) -> std::io::Result<()> {
    output::facts(
        out,
        &[
            ("worker_id", worker.worker_id.to_string()),
            ("url", worker.url.clone()),
            ("owner_pod", worker.owner_pod.clone()),
            ("owner_incarnation", worker.owner_incarnation.to_string()),
            ("health", worker.health.clone()),
            ("liveness", worker.liveness.clone()),
            ("reported_at", or_dash(worker.reported_at.map(output::millis))),
            ("spec", worker.spec.to_string()),
            ("health_check", or_dash(worker.health_check.as_ref())),
        ],
    )
}

/// A text of the spec. The store may have specs that this version does not decode.
fn said(spec: &Value, field: &str) -> Option<String> {
    spec.get(field).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

impl Tabular for WorkerRow {
    const COLUMNS: &'static [&'static str] =
        &["worker_id", "url", "health", "liveness", "owner_pod", "kind", "model", "labels", "reported_at"];
    const NUMBERS: &'static [&'static str] = &[];

    fn cells(&self) -> Vec<String> {
        vec![
            self.worker_id.to_string(),
            self.url.clone(),
            self.health.clone(),
            self.liveness.clone(),
            self.owner_pod.clone(),
            or_dash(said(&self.spec, "kind")),
            or_dash(said(&self.spec, "model")),
            or_dash(self.spec.get("labels").map(brief)),
            or_dash(self.reported_at.map(seconds)),
        ]
    }
}
