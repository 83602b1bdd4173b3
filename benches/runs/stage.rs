//! The server of one kind of disk, its databases, and the pods of this process on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use podlock::{Config, Outcome, Pod, Run};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_postgres::{Client, NoTls};

use crate::counts::Counts;
use crate::{Fsync, Result, WARM_UP, connect};

/// The kind of all runs here.
pub(crate) const KIND: &str = "work";
/// More runs than any phase has at once.
pub(crate) const CAPACITY: usize = 30_000;

/// So many runs have ended before, so that the server plans as it does for a service that has run for a while. It plans
/// badly for tables that are empty when a connection first uses them.
const ENDED: usize = 20_000;

/// How many files of the write-ahead log, of 16 MB each, are used before the first phase: as many as `min_wal_size`
/// keeps.
const LOG_FILES: usize = 120;

/// For how long the commits of one connection are counted.
const COMMITS: Duration = Duration::from_millis(500);

/// A server that counts statements.
pub(crate) struct Stage {
    server: Server,
    admin: Client,
    pub(crate) fsync: Fsync,
    pub(crate) facts: String,
}

impl Stage {
    pub(crate) async fn start(fsync: Fsync) -> Result<Self> {
        let builder = Server::builder()
            .setting("fsync", if fsync == Fsync::Off { "off" } else { "on" })
            // The server sleeps for so many microseconds before each flush. Other commits can join the flush meanwhile,
            // as they can while a slow disk writes.
            .setting("commit_delay", if fsync == Fsync::Slow { "1000" } else { "0" })
            .setting("commit_siblings", "0")
            .setting("shared_buffers", "256MB")
            .setting("max_wal_size", "4GB")
            .setting("min_wal_size", "2GB")
            .setting("shared_preload_libraries", "pg_stat_statements")
            .setting("pg_stat_statements.track", "top")
            // `alone` reads whole statements there.
            .setting("track_activity_query_size", "32kB");
        let server = tokio::task::spawn_blocking(|| builder.start()).await??;
        let admin = connect(&server.url("postgres")).await?;
        admin.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
        let sql = "SELECT 'PostgreSQL ' || current_setting('server_version') || ', fsync ' || current_setting('fsync') \
                   || ', synchronous_commit ' || current_setting('synchronous_commit')";
        let facts: String = admin.query_one(sql, &[]).await?.get(0);
        let facts = format!("{facts}, one connection commits {:.0} times a second", commits(&admin).await?);
        let stage = Self { server, admin, fsync, facts };
        stage.fill().await?;
        stage.use_log_files().await?;
        Ok(stage)
    }

    /// A new database with our tables and [`ENDED`] runs, in which no pod lives.
    pub(crate) async fn database(&self, name: &str) -> Result<String> {
        self.admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE filled")).await?;
        Ok(self.server.url(name))
    }

    /// Makes the template of all databases.
    async fn fill(&self) -> Result<()> {
        self.admin.batch_execute("CREATE DATABASE filled").await?;
        let url = self.server.url("filled");
        podlock::migrate::up(&Config::new(&url)).await?;
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        let driver = tokio::spawn(connection);
        let fill = format!(
            "INSERT INTO studio_runs (run_id, kind, state, finished_at, result)
             SELECT gen_random_uuid(), '{KIND}', 'succeeded', now(), 'null' FROM generate_series(1, {ENDED});
             INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence, ended_at, reason)
             SELECT run_id, 1, 'former', gen_random_uuid(), 0, now(), 'succeeded' FROM studio_runs"
        );
        client.batch_execute(&fill).await?;
        client.batch_execute("VACUUM (ANALYZE) studio_runs, studio_run_attempts").await?;
        drop(client);
        // The server copies a template only while nobody is connected to it.
        driver.await??;
        Ok(())
    }

    /// Makes the server use its files of the write-ahead log again. It makes a new one in 20 to 30 ms, in which nothing
    /// commits, and a server that has run for a while makes none.
    pub(crate) async fn recycle_log_files(&self) -> Result<()> {
        // A checkpoint renames files that are older than itself.
        Ok(self.admin.batch_execute("CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT").await?)
    }

    /// Uses [`LOG_FILES`] files of the write-ahead log, so that [`Stage::recycle_log_files`] has files to rename.
    async fn use_log_files(&self) -> Result<()> {
        for _ in 0..LOG_FILES {
            self.admin.batch_execute("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()").await?;
        }
        Ok(())
    }

    pub(crate) async fn reset_counts(&self) -> Result<()> {
        self.admin.query("SELECT pg_stat_statements_reset()", &[]).await?;
        Ok(())
    }

    /// What the database has done since the counts were reset.
    pub(crate) async fn counts(&self, database: &str) -> Result<Counts> {
        Counts::read(&self.admin, database).await
    }

    /// Measures a load that is under way: it counts in `done`, and ends when `stop` is true.
    pub(crate) async fn watch(&self, database: &str, time: Duration, load: &Load) -> Result<Measured> {
        tokio::time::sleep(WARM_UP).await;
        self.reset_counts().await?;
        let (from, began) = (load.done.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(time).await;
        let (runs, took) = (load.done.load(Ordering::Relaxed) - from, began.elapsed());
        let mut counts = self.counts(database).await?;
        // A start of many runs returns one row.
        counts.starts.rows = runs as f64;
        load.stop.store(true, Ordering::Relaxed);
        Ok(Measured { rate: runs as f64 / took.as_secs_f64(), runs: runs as f64, counts })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        tokio::task::spawn_blocking(move || drop(self.server)).await?;
        Ok(())
    }
}

/// How often a second one connection can commit a row.
async fn commits(client: &Client) -> Result<f64> {
    client.batch_execute("CREATE TABLE commits (n integer)").await?;
    let insert = client.prepare("INSERT INTO commits VALUES (1)").await?;
    let (began, mut rows) = (Instant::now(), 0.0);
    while began.elapsed() < COMMITS {
        rows += client.execute(&insert, &[]).await? as f64;
    }
    Ok(rows / began.elapsed().as_secs_f64())
}

/// What all tasks of a load share.
#[derive(Default)]
pub(crate) struct Load {
    /// The runs that have ended.
    pub(crate) done: AtomicU64,
    pub(crate) stop: AtomicBool,
}

impl Load {
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, runs: usize) {
        self.done.fetch_add(runs as u64, Ordering::Relaxed);
    }
}

/// What a load reached.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Runs a second.
    pub(crate) rate: f64,
    pub(crate) runs: f64,
    pub(crate) counts: Counts,
}

/// Tells each caller that its run has ended. A caller has one run at a time.
pub(crate) struct Board(Vec<Notify>);

impl Board {
    pub(crate) fn new(callers: usize) -> Arc<Self> {
        Arc::new(Self((0..callers).map(|_| Notify::new()).collect()))
    }

    pub(crate) fn tell(&self, caller: usize) {
        if let Some(told) = self.0.get(caller) {
            told.notify_one();
        }
    }

    pub(crate) async fn told(&self, caller: usize) {
        if let Some(told) = self.0.get(caller) {
            told.notified().await;
        }
    }
}

/// The input of a run: who waits for it, and how many checkpoints it saves.
pub(crate) fn input(caller: usize, checkpoints: usize) -> Value {
    json!([caller, checkpoints])
}

/// What a run saves. By hand the same is saved.
pub(crate) fn checkpoint(step: usize) -> Value {
    json!({ "step": step })
}

/// Saves the checkpoints, and ends the run. Returns who waits for it.
pub(crate) async fn work(run: &Run) -> Result<(usize, Outcome)> {
    let (caller, checkpoints): (usize, usize) = serde_json::from_value(run.input().clone())?;
    for step in 0..checkpoints {
        run.checkpoint(checkpoint(step)).await?;
    }
    Ok((caller, run.finish(json!(null)).await?))
}

/// The settings of each pod here. The pool has its default: four connections.
pub(crate) fn config(url: &str, name: &str) -> Config {
    Config::new(url).name(name).capacity(CAPACITY)
}

/// A pod of this process that executes runs and tells the board.
pub(crate) async fn pod(url: &str, board: &Arc<Board>) -> Result<Pod> {
    let board = Arc::clone(board);
    let handler = move |run: Run| {
        let board = Arc::clone(&board);
        async move {
            let (caller, ended) = work(&run).await?;
            board.tell(caller);
            Ok(ended)
        }
    };
    Ok(Pod::builder(config(url, "runs")).handler(KIND, handler).start().await?)
}
