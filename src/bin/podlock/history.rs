//! `podlock history` and `podlock score`: the pods' past, and how far each can be trusted.

use std::time::SystemTime;

use clap::builder::RangedI64ValueParser;
use podlock::operator::{Liveness, ReliabilityFilter, ReliabilityRow, RolledUp, Sample, SessionRow};
use podlock::{Operator, Timestamp};
use serde::Serialize;

use crate::failure::{Failure, note};
use crate::global::Global;
use crate::output::{self, Format, List, OutputArgs, PAGE, TABLE_LIMIT, Tabular, brief, or_dash, printable, seconds};

/// How many samples and sessions of one pod are shown, unless the user says more.
const SHOWN: i64 = 20;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    /// The pod's name
    #[arg(required = true, value_name = "POD")]
    pod: Option<String>,
    /// At most so many sessions, and so many samples
    #[arg(long, value_name = "N", default_value_t = SHOWN, value_parser = limit())]
    limit: i64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make the hourly rows and the scores now, as a pod does every few minutes
    RollUp {
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ScoreArgs {
    /// Only pods with at least this score, 0 to 1
    #[arg(long, value_name = "SCORE", value_parser = share)]
    min_score: Option<f64>,
    /// Only pods with at most this score, 0 to 1
    #[arg(long, value_name = "SCORE", value_parser = share)]
    max_score: Option<f64>,
    /// Only pods with at least this uptime in percent, 0 to 100
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    min_uptime: Option<f64>,
    /// Only pods of whose sessions at least this share lasted four hours, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    min_stays_4h: Option<f64>,
    /// At most so many [default: 100 in a table, else all]
    #[arg(long, value_name = "N", value_parser = limit())]
    limit: Option<i64>,
    #[command(flatten)]
    output: OutputArgs,
}

fn limit() -> RangedI64ValueParser<i64> {
    clap::value_parser!(i64).range(1..)
}

fn share(text: &str) -> Result<f64, String> {
    within(text, 1.0)
}

fn percent(text: &str) -> Result<f64, String> {
    within(text, 100.0)
}

fn within(text: &str, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (0.0..=most).contains(&number) { Ok(number) } else { Err(format!("it must be from 0 to {most}")) }
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let operator = global.operator().await?;
    match (args.verb, args.pod) {
        (Some(Verb::RollUp { output }), _) => {
            let done = operator.roll_up().await?;
            let facts = |out: &mut _, done: &RolledUp| {
                let numbers = [
                    ("hours written", done.hours),
                    ("old hours deleted", done.old_hours),
                    ("scores written", done.scores),
                    ("old scores deleted", done.old_scores),
                ];
                output::facts(out, &numbers.map(|(name, number)| (name, number.to_string())))
            };
            Ok(output::object(output.format, &done, facts)?)
        }
        (None, Some(pod)) => of_pod(&operator, &pod, args.limit, args.output.format).await,
        // clap requires one of the two.
        (None, None) => Err(Failure::Usage("name a pod, or say roll-up".to_owned())),
    }
}

/// All that the history has of one pod.
#[derive(Debug, Serialize)]
struct PodHistory {
    #[serde(flatten)]
    liveness: Liveness,
    /// Newest first.
    sessions: Vec<SessionRow>,
    /// Newest first.
    samples: Vec<Sample>,
}

async fn of_pod(operator: &Operator, pod: &str, limit: i64, format: Format) -> Result<(), Failure> {
    let liveness = operator.liveness(pod).await?.ok_or_else(|| {
        Failure::Failed(format!(
            "nothing is known of a pod named {pod:?}; `podlock score` shows those that have a past"
        ))
    })?;
    let sessions = operator.pod_sessions(pod, limit, None).await?;
    let samples = operator.heartbeats(pod, None, None, limit).await?;
    let history = PodHistory { liveness, sessions, samples };
    Ok(output::object(format, &history, describe)?)
}

fn describe(out: &mut impl std::io::Write, history: &PodHistory) -> std::io::Result<()> {
    let PodHistory { liveness, sessions, samples } = history;
    let features = &liveness.features;
    let state = if liveness.in_roster { liveness.state.clone() } else { "gone: it is not in the roster".to_owned() };
    output::facts(
        out,
        &[
            ("pod_id", liveness.pod_id.clone()),
            ("state", state),
            ("since", or_dash(liveness.since.map(seconds))),
            (
                "last_end",
                liveness.last_end.as_ref().map_or_else(|| "-".to_owned(), |end| end_in_words(end.ended_at, sessions)),
            ),
            ("score", or_dash(features.score.map(hundredths))),
            ("scored_as", or_dash(features.scored_as.as_ref())),
            ("uptime_pct", or_dash(features.uptime_pct.map(hundredths))),
            ("mtbf", or_dash(features.mtbf_seconds.map(long))),
            ("stays 4 h, 8 h", format!("{}, {}", of_hundred(features.p_stays_4h), of_hundred(features.p_stays_8h))),
            ("sessions", or_dash(features.sessions_count)),
            ("ends by reason", or_dash(features.disconnect_reasons.as_ref().map(brief))),
            ("window", or_dash(features.window_days.map(|days| format!("{days} days")))),
            ("rolled up at", or_dash(features.updated_at.map(seconds))),
        ],
    )?;
    writeln!(out, "\nSessions:")?;
    output::table_of(out, &sessions.iter().map(Ended).collect::<Vec<_>>())?;
    writeln!(out, "\nSamples:")?;
    output::table_of(out, samples)
}

/// When and how the last session ended.
fn end_in_words(at: Timestamp, sessions: &[SessionRow]) -> String {
    let session = sessions.iter().find(|session| session.ended_at == Some(at));
    let how = session.map_or(String::new(), |session| format!(", {}", session.end_in_words()));
    format!("{}{how}", seconds(at))
}

/// A session in the history of its pod.
struct Ended<'a>(&'a SessionRow);

impl Tabular for Ended<'_> {
    const COLUMNS: &'static [&'static str] =
        &["began_at", "ended_at", "lasted", "reason", "cause", "exit", "buried_by", "runs_served", "counters"];
    const NUMBERS: &'static [&'static str] = &["runs_served"];

    fn cells(&self) -> Vec<String> {
        let Self(row) = self;
        let until = row.ended_at.unwrap_or_else(Timestamp::now);
        let exit = row.exit_signal.map(|signal| format!("signal {signal}"));
        let counters = row.counters.as_object().is_some_and(|counters| !counters.is_empty());
        vec![
            seconds(row.began_at),
            or_dash(row.ended_at.map(seconds)),
            lasted(row.began_at, until),
            or_dash(row.reason.as_ref()),
            or_dash(row.cause.as_ref()),
            or_dash(exit.or(row.exit_code.map(|code| code.to_string()))),
            or_dash(row.buried_by.as_deref().map(printable)),
            row.runs_served.to_string(),
            or_dash(counters.then(|| brief(&row.counters))),
        ]
    }
}

impl Tabular for Sample {
    const COLUMNS: &'static [&'static str] =
        &["sampled_at", "status", "health", "cpu", "memory", "left", "runs", "lag", "gauges"];
    const NUMBERS: &'static [&'static str] = &["cpu", "memory", "left", "runs", "lag"];

    fn cells(&self) -> Vec<String> {
        let percent = |share: Option<f32>| or_dash(share.map(|share| format!("{:.0} %", share * 100.0)));
        vec![
            seconds(self.sampled_at),
            self.status.clone(),
            self.health.clone(),
            percent(self.cpu_usage),
            percent(self.memory_pressure),
            or_dash(self.memory_available.map(|bytes| format!("{} MiB", bytes / (1 << 20)))),
            self.running_runs.to_string(),
            or_dash(self.runtime_lag_ms.map(|ms| format!("{ms:.1} ms"))),
            or_dash(self.gauges.as_ref().map(brief)),
        ]
    }
}

/// What `podlock score` says of a pod.
#[derive(Debug, Serialize)]
struct Score {
    pod_id: String,
    score: f64,
    uptime_pct: Option<f64>,
    mtbf_seconds: Option<f64>,
    p_stays_4h: Option<f64>,
    p_stays_8h: Option<f64>,
    sessions_count: i64,
    last_disconnect_at: Option<Timestamp>,
}

impl From<ReliabilityRow> for Score {
    fn from(row: ReliabilityRow) -> Self {
        Self {
            pod_id: row.pod_id,
            score: row.score,
            uptime_pct: row.uptime_pct,
            mtbf_seconds: row.mtbf_seconds,
            p_stays_4h: row.p_stays_4h,
            p_stays_8h: row.p_stays_8h,
            sessions_count: row.sessions_count,
            last_disconnect_at: row.last_disconnect_at,
        }
    }
}

impl Tabular for Score {
    const COLUMNS: &'static [&'static str] =
        &["pod_id", "score", "uptime_pct", "mtbf", "stays_4h", "stays_8h", "sessions", "last_disconnect_at"];
    const NUMBERS: &'static [&'static str] = &["score", "uptime_pct", "mtbf", "stays_4h", "stays_8h", "sessions"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.pod_id.clone(),
            hundredths(self.score),
            or_dash(self.uptime_pct.map(hundredths)),
            or_dash(self.mtbf_seconds.map(long)),
            of_hundred(self.p_stays_4h),
            of_hundred(self.p_stays_8h),
            self.sessions_count.to_string(),
            or_dash(self.last_disconnect_at.map(seconds)),
        ]
    }
}

pub(crate) async fn score(global: &Global, args: ScoreArgs) -> Result<(), Failure> {
    let operator = global.operator().await?;
    let format = args.output.format;
    let most = args.limit.or((format == Format::Table).then_some(TABLE_LIMIT));
    let mut list = List::new(format);
    let mut filter = args.filter();
    let mut left = most;
    loop {
        let page = left.map_or(PAGE, |left| left.min(PAGE));
        let rows = operator.reliability(filter.limit(page)).await?;
        let got = i64::try_from(rows.len()).unwrap_or(PAGE);
        let next = rows.last().filter(|_| got == page).map(|last| args.filter().after(last));
        rows.into_iter().try_for_each(|row| list.push(&Score::from(row)))?;
        left = left.map(|left| left - got);
        match next {
            Some(next) if left != Some(0) => filter = next,
            _ => break,
        }
    }
    if args.limit.is_none() && most.is_some_and(|most| i64::try_from(list.len()).is_ok_and(|shown| shown >= most)) {
        note(&format!("only the first {} are shown; --limit N shows more", list.len()));
    }
    Ok(list
        .finish("there is no score that matches; pods make scores every few minutes, `podlock history roll-up` now")?)
}

impl ScoreArgs {
    fn filter(&self) -> ReliabilityFilter {
        let mut filter = ReliabilityFilter::new();
        if let Some(score) = self.min_score {
            filter = filter.min_score(score);
        }
        if let Some(score) = self.max_score {
            filter = filter.max_score(score);
        }
        if let Some(percent) = self.min_uptime {
            filter = filter.min_uptime(percent);
        }
        if let Some(share) = self.min_stays_4h {
            filter = filter.min_stays_4h(share);
        }
        filter
    }
}

fn hundredths(number: f64) -> String {
    format!("{number:.2}")
}

fn of_hundred(share: Option<f64>) -> String {
    or_dash(share.map(|share| format!("{:.0} %", share * 100.0)))
}

/// A time of seconds to weeks, in its two largest units.
fn long(seconds: f64) -> String {
    let whole = if seconds.is_finite() && seconds > 0.0 { seconds.round() as u64 } else { 0 };
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{} s", whole % 60),
        (0, 0, _) => format!("{minutes} min {} s", whole % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// How long it was from one time to another. The server made both.
fn lasted(from: Timestamp, to: Timestamp) -> String {
    let (from, to) = (SystemTime::from(from), SystemTime::from(to));
    long(to.duration_since(from).unwrap_or_default().as_secs_f64())
}
