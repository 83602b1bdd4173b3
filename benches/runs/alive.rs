//! Many runs that are alive at once on one pod, and wait: what a run takes of memory, what the pod does meanwhile, how
//! long a clean stop takes, and until another pod has them all. Both pods are processes of their own.

use std::time::Duration;

use crate::counts::{Counts, gist};
use crate::other::{Other, Says, now};
use crate::report::{Report, Table};
use crate::stage::Stage;
use crate::{Args, Result};

const DATABASE: &str = "alive";
/// So many runs start first, so that the memory of connections and of the first tasks is not counted.
const FIRST: usize = 300;
/// More statements a second than this are beyond the pod's own: those vary by as much.
const GOAL_STATEMENTS: f64 = 0.5;
/// How long a pod is left alone before its idle time is measured.
const SETTLE: Duration = Duration::from_secs(2);

/// What happens while nothing is asked of the pod.
struct Idle {
    counts: Counts,
    seconds: f64,
    /// Milliseconds a second.
    processor: f64,
}

pub(crate) async fn measure(stage: &Stage, args: &Args, report: &mut Report) -> Result<()> {
    let url = stage.database(DATABASE).await?;
    let (runs, time) = (args.alive, args.time() * 8);
    let expects = runs.to_string();
    let holder = |name| ["holder", "--name", name, "--expects", &expects].map(str::to_owned);
    let start = async |name| {
        let part: [String; 5] = holder(name);
        Other::start(&part.each_ref().map(String::as_str), &url, Some).await
    };
    let mut first = start("first").await?;
    let none = idle(stage, &first, time).await?;
    first.tell(&format!("start {}", FIRST.min(runs))).await?;
    started(&mut first).await?;
    stage.reset_counts().await?;
    let rest = runs.saturating_sub(FIRST);
    first.tell(&format!("start {rest}")).await?;
    let (ms, bytes) = started(&mut first).await?;
    let mut starts = stage.counts(DATABASE).await?;
    // A start of many runs returns one row.
    starts.starts.rows = rest as f64;
    let all = idle(stage, &first, time).await?;

    let mut second = start("second").await?;
    tokio::time::sleep(SETTLE).await;
    stage.reset_counts().await?;
    let began = now();
    let drained = first.drain().await?;
    let Says::Begun { at } = second.next("the last claim").await? else {
        return Err("a pod that claims says something else".into());
    };
    let moved = stage.counts(DATABASE).await?;
    let Says::Drained { ms: drain, yielded, aborted } = drained else { return Err("no drain".into()) };

    let mut table = Table::new(&format!("{runs} runs that are alive at once on one pod"), &["", ""]);
    let mut row = |what: &str, value: String| table.row(vec![what.to_owned(), value]);
    let rate = rest as f64 / ms * 1e3;
    row("started, 256 at once", format!("{rate:.0} a second, {:.1} a statement", starts.starts.group()));
    row("resident memory a run", format!("{:.0} bytes", bytes / rest as f64));
    row("statements a second, idle: without runs, with them", pair(&none, &all, |i| i.counts.calls / i.seconds));
    row("server ms a second, idle", pair(&none, &all, |i| i.counts.ms / i.seconds));
    row("pod's processor ms a second, idle", pair(&none, &all, |i| i.processor));
    row("clean stop", format!("{drain:.0} ms; {yielded} yielded, {aborted} aborted"));
    row("… runs a statement of the yields", format!("{:.1}", moved.yields.group()));
    let claimed = at.saturating_sub(began) as f64 / 1e6;
    row("another pod has begun them all", format!("{claimed:.0} ms after the stop began"));
    row("… runs a statement of the claims", format!("{:.1}", moved.claims.group()));
    more(&none.counts, &all.counts, report);
    report.table(table);
    let more = all.counts.calls / all.seconds - none.counts.calls / none.seconds;
    report.goal(&format!("{runs} idle runs: statements a second beyond the pod's own"), more, GOAL_STATEMENTS, false);
    second.end().await
}

/// How long the starts took, and how much the process grew.
async fn started(pod: &mut Other) -> Result<(f64, f64)> {
    loop {
        match pod.next("the starts").await? {
            Says::Started { ms, before, after } => return Ok((ms, after - before)),
            Says::Begun { .. } => {}
            says => return Err(format!("a pod that starts runs says {says:?}").into()),
        }
    }
}

async fn idle(stage: &Stage, pod: &Other, time: Duration) -> Result<Idle> {
    tokio::time::sleep(SETTLE).await;
    stage.reset_counts().await?;
    let before = pod.processor_ms()?;
    tokio::time::sleep(time).await;
    let (counts, seconds) = (stage.counts(DATABASE).await?, time.as_secs_f64());
    Ok(Idle { counts, seconds, processor: (pod.processor_ms()? - before) / seconds })
}

fn pair(none: &Idle, all: &Idle, of: impl Fn(&Idle) -> f64) -> String {
    format!("{:.2}, {:.2}", of(none), of(all))
}

/// Which statements are made more often, or take longer.
fn more(none: &Counts, all: &Counts, report: &mut Report) {
    for statement in &all.statements {
        let before = none.statements.iter().find(|before| before.text == statement.text);
        let (calls, ms) = before.map_or((0.0, 0.0), |before| (before.calls, before.ms));
        if statement.calls - calls > 2.0 || statement.ms - ms > 20.0 {
            let (more, longer) = (statement.calls - calls, statement.ms - ms);
            report.note(format!("{more:+.0} calls, {longer:+.1} ms: {}", gist(&statement.text)));
        }
    }
}
