//! The processes of the systems that are written in Rust: the worker, the producer, and what makes the tables. The
//! peers in Python have scripts that do the same, in `python/`.

mod apalis;
mod graphile;
mod podlock;

use std::future::Future;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, ValueEnum};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use crate::Result;
use crate::system::{Setting, System};

/// How many connections each process may have for its statements: podlock's default.
const CONNECTIONS: u32 = 4;
/// How many jobs one call puts into a queue, where a system has such a call.
const BATCH: u64 = 1_000;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Makes the tables.
    Install,
    /// Puts the jobs into the queue, one a call.
    Enqueue,
    /// Puts them into the queue by the system's call for many.
    #[value(name = "enqueue_batches")]
    EnqueueBatches,
    /// Works them: a job returns at once.
    Work,
    /// Works a job that does not return.
    Hold,
    /// Starts the jobs and works them in one process.
    Start,
}

impl Part {
    /// The word of the command line, which the scripts know as well.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Enqueue => "enqueue",
            Self::EnqueueBatches => "enqueue_batches",
            Self::Work => "work",
            Self::Hold => "hold",
            Self::Start => "start",
        }
    }
}

/// The command line of such a process.
#[derive(Clone, Args)]
pub(crate) struct Task {
    system: System,
    part: Part,
    setting: Setting,
    url: String,
    jobs: u64,
    producers: usize,
}

/// What the jobs of a worker do. Each system calls them in its own way, so this is one for the process.
static WORK: OnceLock<Work> = OnceLock::new();

struct Work {
    hold: bool,
    jobs: u64,
    handled: AtomicU64,
}

pub(crate) async fn play(task: Task) -> Result<()> {
    let work = Work { hold: task.part == Part::Hold, jobs: task.jobs, handled: AtomicU64::new(0) };
    WORK.set(work).map_err(|_| "a process has one part")?;
    match task.system {
        System::Podlock | System::PodlockStart => podlock::play(&task).await,
        System::Graphile => graphile::play(&task).await,
        System::Apalis => apalis::play(&task).await,
        System::Procrastinate | System::Pgqueuer => Err("this peer is played by a script".into()),
    }
}

/// The job.
async fn job() {
    let Some(work) = WORK.get() else { return };
    if work.hold {
        say("began");
        std::future::pending::<()>().await;
    }
    if work.handled.fetch_add(1, Ordering::Relaxed) + 1 == work.jobs {
        say("handled");
    }
}

/// Tells the benchmark what has been reached. `println` flushes at the end of the line.
fn say(word: &str) {
    println!("{word}");
}

/// What the benchmark tells this process, one line at a time.
struct Orders(UnboundedReceiver<String>);

impl Orders {
    /// Says that this process is ready, and waits until it may begin.
    async fn ready() -> Result<Self> {
        let (sender, mut lines) = unbounded_channel();
        // A thread of its own: a process that fails ends without waiting for a line, as it would in tokio's stdin.
        std::thread::spawn(move || {
            for line in std::io::stdin().lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        say("ready");
        lines.recv().await;
        Ok(Self(lines))
    }

    /// Waits until this process is to end.
    async fn end(mut self) -> Result<()> {
        while self.0.recv().await.is_some() {}
        Ok(())
    }
}

/// A pool as large as podlock's.
async fn pool(url: &str) -> Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await?)
}

/// Calls `enqueue` for the numbers of all jobs, from so many tasks at a time.
async fn one_by_one<F, Fut>(task: &Task, enqueue: F) -> Result<()>
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    let (next, jobs) = (Arc::new(AtomicU64::new(0)), task.jobs);
    let mut producers = JoinSet::new();
    for _ in 0..task.producers {
        let (next, enqueue) = (Arc::clone(&next), enqueue.clone());
        producers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs {
                    return Ok::<_, crate::Error>(());
                }
                enqueue(number).await?;
            }
        });
    }
    while let Some(ended) = producers.join_next().await {
        ended??;
    }
    Ok(())
}

/// The numbers of all jobs, in batches.
fn batches(jobs: u64) -> impl Iterator<Item = Vec<u64>> {
    (0..jobs).step_by(BATCH as usize).map(move |first| (first..jobs.min(first + BATCH)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_each_job_once() {
        let all: Vec<Vec<u64>> = batches(2_500).collect();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        assert_eq!(all.concat(), (0..2_500).collect::<Vec<_>>());
        assert_eq!(batches(0).count(), 0);
    }
}
