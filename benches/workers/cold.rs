//! Cold start: a pod comes to a fleet whose workers are all there, and imports them. Each such pod is a process of its own,
//! so its memory can be told from that of the others.
//!
//! The floor: one `SELECT *` of the same table over a connection that is open, and the rows decoded.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Instant;

use podlock::{Config, Pod};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::Command;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fleet::{Fleet, shows};
use crate::report::{Report, Spread};
use crate::{Args, Result, SOON, connect};

const GOAL_MS: f64 = 1000.0;

/// What a newcomer says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Came {
    /// From the first use of the registry until all workers are listed.
    import_ms: f64,
    /// From the start of the pod until then.
    start_ms: f64,
    /// How much more memory the process has afterwards, in bytes.
    grew: i64,
    /// The bytes of all specs as JSON text.
    specs: usize,
}

pub(crate) async fn measure(fleet: &Fleet, args: &Args, report: &mut Report) -> Result<()> {
    report.note(format!(
        "registered by three pods and shown by each of them after {:.0} ms",
        fleet.filled.as_secs_f64() * 1e3
    ));
    let client = connect(&fleet.url).await?;
    let (mut floors, mut came) = (Vec::new(), Vec::new());
    for n in 0..args.newcomers {
        floors.push(floor(&client, args.workers).await?);
        came.push(bring(fleet, n, args.workers).await?);
    }
    let of = |f: fn(&Came) -> f64| Spread::of(came.iter().map(f).collect());
    let (import, start, floor) = (of(|c| c.import_ms), of(|c| c.start_ms), Spread::of(floors));
    let show = |s: &Spread| format!("median {:.0} ms, max {:.0} ms", s.median, s.max);
    let goal = (format!("< {GOAL_MS:.0} ms"), import.median < GOAL_MS);
    report.row("a: cold start, until all are listed", import.n, show(&import), &show(&floor), Some(goal));
    report.row("a: with the start of the pod", start.n, show(&start), "", None);
    report.note(format!("a: {:.1} times the floor", import.median / floor.median));

    let workers = args.workers as f64;
    let each = of(|c| c.grew as f64);
    let specs = came.first().map_or(0.0, |c| c.specs as f64 / workers);
    report.row(
        "e: memory of a worker",
        each.n,
        format!("median {:.0} B, max {:.0} B", each.median / workers, each.max / workers),
        &format!("{specs:.0} B"),
        None,
    );
    report.note(
        "e: growth of the resident memory of such a process by the import, and what the allocator keeps of the answers; \
         floor: the spec as JSON text"
            .to_owned(),
    );
    Ok(())
}

async fn bring(fleet: &Fleet, n: usize, expects: usize) -> Result<Came> {
    let mut command = Command::new(std::env::current_exe()?);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("PODLOCK_") {
            command.env_remove(variable);
        }
    }
    let args = ["newcomer", "--name", &format!("new-{n}"), "--expects", &expects.to_string()].map(str::to_owned);
    let child = command.args(args).env_remove("POD_NAME").env("DATABASE_URL", &fleet.url);
    let output = child.stderr(Stdio::inherit()).kill_on_drop(true).output();
    let output = tokio::time::timeout(SOON, output).await.map_err(|_| "a newcomer does not end")??;
    if !output.status.success() {
        return Err(format!("a newcomer ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Plays a newcomer.
pub(crate) async fn newcomer(url: &str, name: &str, expects: usize) -> Result<()> {
    let began = Instant::now();
    let pod = Pod::builder(Config::new(url).name(name)).start().await?;
    let before = resident()?;
    let used = Instant::now();
    shows(&pod, expects).await?;
    let (import_ms, start_ms) = (used.elapsed().as_secs_f64() * 1e3, began.elapsed().as_secs_f64() * 1e3);
    pod.workers().ready().await;
    let came = Came { import_ms, start_ms, grew: resident()? - before, specs: pod.workers().bytes() };
    pod.shutdown(SOON).await?;
    std::io::stdout().write_all(serde_json::to_string(&came)?.as_bytes())?;
    Ok(())
}

/// The resident memory of this process, in bytes.
fn resident() -> Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<i64>()? * 1024)
}

async fn floor(client: &Client, expects: usize) -> Result<f64> {
    let began = Instant::now();
    let rows = client.query("SELECT * FROM studio_workers", &[]).await?;
    let decoded: Vec<(Uuid, String, String, Uuid, Value)> = rows
        .iter()
        .map(|row| {
            (row.get("worker_id"), row.get("url"), row.get("health"), row.get("owner_incarnation"), row.get("spec"))
        })
        .collect();
    let took = began.elapsed().as_secs_f64() * 1e3;
    if decoded.len() != expects {
        return Err(format!("the table has {} workers, not {expects}", decoded.len()).into());
    }
    Ok(took)
}
