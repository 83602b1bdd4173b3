//! `podlock pods`: the roster, beside the locks that are really held.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::time::Duration;

use podlock::operator::{AttemptRow, Condition, PodDetail, PodFilter, PodRow, SessionRow};
use podlock::{Operator, Timestamp};
use serde::Serialize;

use crate::failure::{Failure, note};
use crate::global::Global;
use crate::output::{self, Format, List, OutputArgs, Tabular, brief, or_dash, seconds};

/// How many pods that left are shown below the roster: the last deploy of a small fleet. `podlock events` shows all.
const LEFT_SHOWN: usize = 5;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// The pods of the roster, and whether each really holds its lock
    List {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// All about the pods that bear or bore a name
    Describe {
        /// The pod's name
        pod: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// The roster as it changes, until interrupted
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
    /// Only pods in this state
    #[arg(long, value_parser = ["active", "draining"])]
    state: Option<String>,
    /// Only pods whose lock is really held (true), or is not (false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    alive: Option<bool>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
}

impl FilterArgs {
    fn filter(&self) -> PodFilter {
        let mut filter = PodFilter::new();
        if let Some(state) = &self.state {
            filter = filter.state(state);
        }
        if let Some(alive) = self.alive {
            filter = filter.alive(alive);
        }
        if let Some(limit) = self.limit {
            filter = filter.limit(limit);
        }
        filter
    }
}

pub(crate) async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { filter, output } => {
            let pods = global.operator().await?.pods(filter.filter()).await?;
            let mut list = List::new(output.format);
            for pod in &pods {
                list.push(pod)?;
            }
            Ok(list.finish("no pod is in the roster, or none that was asked for")?)
        }
        Verb::Describe { pod, output } => {
            let detail = global.operator().await?.pod(&pod).await?;
            let detail = detail.ok_or_else(|| {
                Failure::Failed(format!("no pod was ever named {pod:?}; `podlock pods list` shows who is there"))
            })?;
            Ok(output::object(output.format, &detail, describe)?)
        }
        Verb::Watch { filter, every, output } => {
            let format = output.endless("pods watch")?;
            watch(&global.operator().await?, &filter, every, format).await
        }
    }
}

/// The shortest interval of a watch. A shorter one costs the server more than a pod does.
const EVERY_MIN: Duration = Duration::from_millis(10);
/// The longest interval of a watch. A longer one is useless, and a clock may not represent the time.
const EVERY_MAX: Duration = Duration::from_secs(86400);

pub(crate) fn every(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if !(EVERY_MIN..=EVERY_MAX).contains(&every) {
        return Err("it must be from 10ms to 1day".to_owned());
    }
    Ok(every)
}

/// Shows the roster again and again. An outage of the database is reported once and waited out.
async fn watch(operator: &Operator, filter: &FilterArgs, every: Duration, format: Format) -> Result<(), Failure> {
    let redraw = format == Format::Table && output::is_terminal();
    let mut before: Option<BTreeMap<String, PodRow>> = None;
    let mut left: VecDeque<String> = VecDeque::new();
    let mut out_of_reach = false;
    loop {
        match look(operator, filter, before.as_ref()).await {
            Ok((now, changes)) => {
                out_of_reach = false;
                if redraw {
                    left.extend(changes.iter().filter(|change| change.change == "left").map(line_of));
                    left.drain(..left.len().saturating_sub(LEFT_SHOWN));
                    draw(&now, &left)?;
                } else {
                    changes.iter().try_for_each(|change| show(format, change))?;
                }
                before = Some(now);
            }
            Err(error) if error.is_transient() => {
                if !out_of_reach {
                    note(&format!("{error}; trying again"));
                }
                out_of_reach = true;
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(every).await;
    }
}

/// Reads the roster, its changes since the last read, and how the pods that are gone ended.
async fn look(
    operator: &Operator,
    filter: &FilterArgs,
    before: Option<&BTreeMap<String, PodRow>>,
) -> podlock::Result<(BTreeMap<String, PodRow>, Vec<Change>)> {
    let pods = operator.pods(filter.filter()).await?;
    let now: BTreeMap<_, _> = pods.into_iter().map(|pod| (pod.pod_id.clone(), pod)).collect();
    let mut changes = changes(before, &now);
    for change in changes.iter_mut().filter(|change| change.change == "left") {
        let ended = operator.incarnation(change.pod.incarnation).await?;
        // An incarnation that has not ended is still in the roster, but no longer fits the filter. Its row stays
        // unchanged.
        let Some(ended) = ended.filter(|session| session.ended_at.is_some()) else { continue };
        // The row is from the last read, when the pod was still in the roster.
        "gone".clone_into(&mut change.pod.state);
        (change.pod.alive, change.pod.condition) = (false, Condition::Gone);
        (change.pod.wait_reason, change.pod.wait_left_ms) = (None, None);
        change.ended = Some(ended);
    }
    Ok((now, changes))
}

fn draw(pods: &BTreeMap<String, PodRow>, left: &VecDeque<String>) -> std::io::Result<()> {
    let mut screen = b"\x1b[H\x1b[2J".to_vec();
    writeln!(screen, "{} pods, {}\n", pods.len(), seconds(Timestamp::now()))?;
    let pods: Vec<_> = pods.values().cloned().collect();
    output::table_of(&mut screen, &pods)?;
    if !left.is_empty() {
        writeln!(screen, "\nLeft:")?;
        left.iter().try_for_each(|line| writeln!(screen, "{line}"))?;
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&screen)?;
    out.flush()
}

/// How a pod changed between two reads.
#[derive(Debug, Serialize)]
struct Change {
    change: &'static str,
    #[serde(flatten)]
    pod: PodRow,
    /// How the pod ended, if it left.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<SessionRow>,
}

impl Change {
    fn new(change: &'static str, pod: &PodRow) -> Self {
        Self { change, pod: pod.clone(), ended: None }
    }
}

/// `present` at the first read, then `joined`, `changed`, `left`. A new incarnation counts as `left` and `joined`. A
/// beat alone is no change, and neither is a wait that grows shorter.
fn changes(before: Option<&BTreeMap<String, PodRow>>, now: &BTreeMap<String, PodRow>) -> Vec<Change> {
    let Some(before) = before else {
        return now.values().map(|pod| Change::new("present", pod)).collect();
    };
    let mut changes = Vec::new();
    for (name, old) in before {
        if now.get(name).is_none_or(|new| new.incarnation != old.incarnation) {
            changes.push(Change::new("left", old));
        }
    }
    for (name, new) in now {
        match before.get(name).filter(|old| old.incarnation == new.incarnation) {
            None => changes.push(Change::new("joined", new)),
            Some(old) => {
                let mut but_for_the_time = old.clone();
                but_for_the_time.event_index = new.event_index;
                but_for_the_time.wait_left_ms = new.wait_left_ms;
                if but_for_the_time != *new {
                    changes.push(Change::new("changed", new));
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
    output::line(&line_of(change))
}

/// A change in words, for people: the pod's condition now, or how it ended.
fn line_of(change: &Change) -> String {
    let Change { change, pod, ended } = change;
    let at = output::millis(Timestamp::now());
    let name = output::printable(&pod.pod_id);
    match ended {
        Some(ended) => format!("{at}  {change:<8} {name}  {}", output::printable(&ended.end_in_words())),
        None => {
            let alive = if pod.alive { "alive" } else { "not alive" };
            let condition = output::printable(&pod.condition_in_words());
            format!("{at}  {change:<8} {name}  {}  {alive}  {condition}  {} runs", pod.state, pod.runs)
        }
    }
}

fn describe(out: &mut impl std::io::Write, pod: &PodDetail) -> std::io::Result<()> {
    output::facts(
        out,
        &[
            ("pod_id", pod.pod_id.clone()),
            ("incarnation", pod.incarnation.to_string()),
            ("state", pod.state.clone()),
            ("condition", pod.condition_in_words()),
            ("alive", pod.alive.to_string()),
            ("witness", pod.witness.to_string()),
            ("holder_pid", or_dash(pod.holder_pid)),
            ("client_addr", or_dash(pod.client_addr.as_ref())),
            ("runs", pod.runs.to_string()),
            ("event_index", or_dash(pod.event_index)),
            ("lag", or_dash(pod.lag_ms.map(|ms| format!("{:.1} s", ms as f64 / 1000.0)))),
            ("started_at", seconds(pod.started_at)),
            ("version", or_dash(pod.version.as_ref())),
            ("labels", or_dash(pod.labels.as_ref().map(brief))),
            ("session", or_dash(pod.session)),
            ("drain_requested", or_dash(pod.drain_requested.as_ref())),
            ("cordoned_by", or_dash(pod.cordoned_by.as_ref())),
            ("foreign_lock", or_dash(pod.foreign_lock.as_ref())),
        ],
    )?;
    if !pod.owned.is_empty() {
        writeln!(out, "\nRuns:")?;
        output::table_of(out, &pod.owned)?;
    }
    writeln!(out, "\nIncarnations:")?;
    output::table_of(out, &pod.sessions)?;
    writeln!(out, "\nLast events:")?;
    output::table_of(out, &pod.events)
}

impl Tabular for PodRow {
    const COLUMNS: &'static [&'static str] = &[
        "pod_id",
        "state",
        "condition",
        "alive",
        "holder_pid",
        "client_addr",
        "runs",
        "event_index",
        "started_at",
        "version",
        "labels",
        "incarnation",
    ];
    const NUMBERS: &'static [&'static str] = &["holder_pid", "runs", "event_index"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.pod_id.clone(),
            self.state.clone(),
            self.condition_in_words(),
            self.alive.to_string(),
            or_dash(self.holder_pid),
            or_dash(self.client_addr.as_ref()),
            self.runs.to_string(),
            self.event_index.to_string(),
            seconds(self.started_at),
            self.version.clone(),
            brief(&self.labels),
            self.incarnation.to_string(),
        ]
    }
}

impl Tabular for SessionRow {
    const COLUMNS: &'static [&'static str] = &["incarnation", "began_at", "ended_at", "reason", "cause", "buried_by"];
    const NUMBERS: &'static [&'static str] = &[];

    fn cells(&self) -> Vec<String> {
        vec![
            self.incarnation.to_string(),
            seconds(self.began_at),
            or_dash(self.ended_at.map(seconds)),
            or_dash(self.reason.as_ref()),
            or_dash(self.cause.as_ref()),
            or_dash(self.buried_by.as_ref()),
        ]
    }
}

impl Tabular for AttemptRow {
    const COLUMNS: &'static [&'static str] =
        &["attempt", "pod_id", "fence", "began_at", "ended_at", "reason", "incarnation"];
    const NUMBERS: &'static [&'static str] = &["attempt", "fence"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.attempt.to_string(),
            self.pod_id.clone(),
            self.fence.to_string(),
            output::millis(self.began_at),
            or_dash(self.ended_at.map(output::millis)),
            or_dash(self.reason.as_ref()),
            self.incarnation.to_string(),
        ]
    }
}
