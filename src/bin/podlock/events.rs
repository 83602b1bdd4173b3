//! `podlock events`: the event log of the pods.

use std::time::Duration;

use podlock::Operator;
use podlock::operator::{EventFilter, EventKind, EventRow};

use crate::failure::{Failure, note};
use crate::global::Global;
use crate::output::{self, Format, List, OutputArgs, PAGE, TABLE_LIMIT, Tabular, brief, millis, or_dash};

/// How long to wait before the next try to reach the database. Shorter: many tries at a server that is down. Longer:
/// the first events after an outage are shown late.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print what there is, then go on with what comes, until interrupted
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only events after this position
    #[arg(long, value_name = "IDX")]
    after: Option<i64>,
    /// Only events about this pod
    #[arg(long)]
    pod: Option<String>,
    /// Only events of this kind
    #[arg(long, value_parser = EventKind::ALL.map(EventKind::as_str))]
    kind: Option<String>,
    /// At most so many: the first ones after --after if that is given, else the newest [default: 100 in a table, else
    /// all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    fn filter(&self) -> EventFilter {
        let mut filter = EventFilter::new();
        if let Some(pod) = &self.pod {
            filter = filter.pod(pod);
        }
        if let Some(kind) = &self.kind {
            filter = filter.kind(kind);
        }
        filter
    }
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    if args.follow {
        let format = args.output.endless("events --follow")?;
        return follow(&global.operator().await?, &args, format).await;
    }
    let operator = global.operator().await?;
    let mut list = List::new(args.output.format);
    let table = args.output.format == Format::Table;
    let cut = each(&operator, &args, table, |event| list.push(event)).await?.1;
    if cut {
        note(&format!("only {} are shown; --limit N shows more", list.len()));
    }
    Ok(list.finish("there is no event, or none that was asked for")?)
}

/// Passes the events to `show`, page by page. Returns the position of the last one, and whether a table's own limit may
/// have cut off events.
async fn each(
    operator: &Operator,
    args: &Args,
    table: bool,
    mut show: impl FnMut(&EventRow) -> std::io::Result<()>,
) -> Result<(i64, bool), Failure> {
    let most = args.limit.or(table.then_some(TABLE_LIMIT));
    let mut seen = args.after.unwrap_or(0);
    let mut shown = 0;
    if let (None, Some(most)) = (args.after, most) {
        for event in operator.events(args.filter().limit(most)).await? {
            show(&event)?;
            seen = event.idx;
            shown += 1;
        }
    } else {
        loop {
            let page = most.map_or(PAGE, |most| (most - shown).min(PAGE));
            let events = operator.events(args.filter().after(seen).limit(page)).await?;
            for event in &events {
                show(event)?;
                seen = event.idx;
                shown += 1;
            }
            if i64::try_from(events.len()).unwrap_or(PAGE) < page || Some(shown) == most {
                break;
            }
        }
    }
    Ok((seen, args.limit.is_none() && Some(shown) == most))
}

/// Shows the events so far, then new ones. An outage of the database is reported once and waited out; no event is
/// skipped.
async fn follow(operator: &Operator, args: &Args, format: Format) -> Result<(), Failure> {
    let show = |event: &EventRow| match format {
        Format::Table => output::line(&as_line(event)),
        _ => output::json_line(event),
    };
    let (seen, _) = each(operator, args, format == Format::Table, show).await?;
    let mut coming = operator.follow(args.filter().after(seen)).await?;
    let mut out_of_reach = false;
    loop {
        match coming.next().await {
            Ok(events) => {
                out_of_reach = false;
                events.iter().try_for_each(show)?;
            }
            Err(error) if error.is_transient() => {
                if !out_of_reach {
                    note(&format!("{error}; trying again"));
                }
                out_of_reach = true;
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn as_line(event: &EventRow) -> String {
    let EventRow { idx, at, kind, pod_id, by_pod, .. } = event;
    let (pod, by) = (output::printable(pod_id), output::printable(by_pod));
    let by = if pod_id == by_pod { String::new() } else { format!("  by {by}") };
    format!("{idx:>6}  {}  {kind:<11}  {pod}{by}  {}", millis(*at), output::printable(&detail(event)))
}

/// The details of an event, for people. A snapshot's roster may be long, so only JSON shows it.
fn detail(event: &EventRow) -> String {
    match event.detail["roster"].as_array() {
        Some(roster) if event.kind == "snapshot" => format!("pods={}", roster.len()),
        _ => brief(&event.detail),
    }
}

/// The cause of the pod's end, or of the end of the previous incarnation, whose process has come back.
fn cause(event: &EventRow) -> Option<&str> {
    event.detail["cause"].as_str().filter(|_| matches!(event.kind.as_str(), "buried" | "joined"))
}

impl Tabular for EventRow {
    const COLUMNS: &'static [&'static str] =
        &["idx", "at", "kind", "pod_id", "by_pod", "cause", "incarnation", "detail"];
    const NUMBERS: &'static [&'static str] = &["idx"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.idx.to_string(),
            millis(self.at),
            self.kind.clone(),
            self.pod_id.clone(),
            self.by_pod.clone(),
            or_dash(cause(self)),
            self.incarnation.to_string(),
            detail(self),
        ]
    }
}
