//! A small service as one writes it: it takes stock of directories, file by file, and survives its pods.
//!
//! ```sh
//! export DATABASE_URL=postgres://app@localhost/app            # any PostgreSQL 14 or newer
//! POD_NAME=a cargo run --example worker -- /usr/share &       # starts a run, and serves until SIGTERM or Ctrl-C
//! POD_NAME=b cargo run --example worker                       # kill -9 or SIGTERM the first: this one goes on
//! ```

use std::time::Duration;

use podlock::{Config, ErrorKind, HandlerError, NewRun, Outcome, Pod, Run, StopReason};
use serde_json::json;

const GRACE: Duration = Duration::from_secs(20); // less than the deployment's terminationGracePeriodSeconds
const FILES_A_CHECKPOINT: usize = 16; // the most that is read again after a crash

#[tokio::main]
async fn main() -> Result<(), HandlerError> {
    // podlock logs through `tracing`: without a subscriber nothing of it is seen, warnings included.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Before the pod starts: a SIGTERM or Ctrl-C that comes meanwhile must not end the process as a crash would.
    let builder = Pod::builder(Config::from_env()?).handler("stock", take_stock).stop_on_signals();
    let pod = builder.start().await?;
    if let Err(e) = start_run(&pod).await {
        // On every way out, errors included: a process that just ends was, for its peers, killed.
        pod.shutdown(GRACE).await?;
        return Err(e);
    }
    // SIGTERM, Ctrl-C, `podlock drain` or SELECT public.studio_drain('a'::pg_catalog.text). A second signal ends the
    // process at once.
    let stopped = pod.until_stopped(GRACE).await?;
    let report = stopped.report;
    tracing::info!(cause = %stopped.cause, report.finished, report.yielded, report.aborted, "stopped");
    Ok(())
}

async fn start_run(pod: &Pod) -> Result<(), HandlerError> {
    let Some(directory) = std::env::args().nth(1) else { return Ok(()) };
    // The key admits one running run per directory, however many pods are told to start it.
    match pod.start(NewRun::new("stock").key(&*directory).input(directory.as_str())).await {
        Ok(started) => tracing::info!(run = %started.run_id, "started"),
        Err(e) if e.kind() == ErrorKind::KeyBusy => tracing::info!(run = ?e.run_id(), "runs already: {e}"),
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

/// One attempt at a run. Another pod may have made one before, as far as its checkpoint says.
async fn take_stock(run: Run) -> Result<Outcome, HandlerError> {
    let directory = run.input().as_str().ok_or("the input is the path of a directory")?.to_owned();
    // What blocks must not run on the runtime's own threads: a pod whose runtime stands still counts as dead.
    let paths = tokio::task::spawn_blocking(move || files_below(directory.as_ref())).await??;
    let saved = |field: &str| run.saved().and_then(|s| s[field].as_u64()).unwrap_or(0);
    let (mut files, mut bytes) = (usize::try_from(saved("files"))?, saved("bytes"));
    for path in paths.iter().skip(files) {
        match run.stop_reason() {
            None => {}
            Some(StopReason::Draining) => {
                // Writes are still accepted: save what is done, and give the run to whoever has room.
                run.checkpoint(json!({ "files": files, "bytes": bytes })).await?;
                return Ok(Outcome::Yield);
            }
            Some(reason) => return Err(reason.to_string().into()), // nothing is accepted any more
        }
        bytes += tokio::fs::read(path).await.map_or(0, |text| text.len() as u64); // unreadable: counts as empty
        files += 1;
        if files.is_multiple_of(FILES_A_CHECKPOINT) {
            run.checkpoint(json!({ "files": files, "bytes": bytes })).await?; // refused: the run is another's by now
        }
    }
    Ok(Outcome::Done(json!({ "files": files, "bytes": bytes })))
}

/// In an order that every attempt finds again.
fn files_below(directory: &std::path::Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<_> = entries.iter().map(|e| e.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    Ok(paths)
}
