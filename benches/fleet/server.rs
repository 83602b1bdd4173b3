//! What the server did: statements by `pg_stat_statements`, WAL, blocks, connections, and the processor time of its
//! processes by `/proc`.

use std::fs;
use std::time::Instant;

use podlock::throwaway::Server as Postgres;
use tokio_postgres::Client;

use crate::{Result, connect};

/// The database that the fleet and the bystander use. The counting is done from another.
pub(crate) const DATABASE: &str = "fleet";

/// How many ticks of processor time a second has in `/proc` on Linux.
const TICKS_A_SECOND: f64 = 100.0;

/// A server with room for `connections`.
pub(crate) async fn start(connections: usize) -> Result<Postgres> {
    let server = tokio::task::spawn_blocking(move || {
        Postgres::builder()
            .setting("max_connections", connections.to_string())
            .setting("shared_preload_libraries", "pg_stat_statements")
            .setting("pg_stat_statements.track", "top")
            .setting("fsync", "on")
            .start()
    })
    .await??;
    let client = connect(&server.url("postgres")).await?;
    client.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
    client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await?;
    Ok(server)
}

/// What was counted up to a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    statements: f64,
    wal: f64,
    blocks: f64,
    /// Seconds of processor time, of the server and of the hosts.
    server_cpu: f64,
    hosts_cpu: f64,
    pub(crate) connections: i64,
}

/// What happened between two readings, a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) statements: f64,
    pub(crate) wal: f64,
    pub(crate) blocks: f64,
    /// Seconds of processor time a second: the number of busy cores.
    pub(crate) server_cpu: f64,
    pub(crate) hosts_cpu: f64,
}

/// Reads the counters. After a restart of the server they begin again: see [`reset`].
pub(crate) async fn read(client: &Client, postgres: &Postgres, hosts: &[u32]) -> Result<Reading> {
    const SQL: &str = "SELECT (SELECT COALESCE(sum(s.calls), 0)::float8 FROM pg_stat_statements s \
                                 JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = $1 AND s.toplevel), \
                              pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8, \
                              (SELECT (b.blks_hit + b.blks_read)::float8 FROM pg_stat_database b \
                                WHERE b.datname = $1), \
                              (SELECT count(*) FROM pg_stat_activity a WHERE a.datname = $1)";
    let row = client.query_one(SQL, &[&DATABASE]).await?;
    let postmaster = postgres.postmaster_pid().ok_or("the server has ended")?;
    Ok(Reading {
        at: Instant::now(),
        statements: row.get(0),
        wal: row.get(1),
        blocks: row.get(2),
        connections: row.get(3),
        server_cpu: cpu_of_the_family(postmaster)?,
        hosts_cpu: hosts.iter().filter_map(|pid| ticks(*pid)).map(|t| t.own).sum::<f64>() / TICKS_A_SECOND,
    })
}

impl Rate {
    pub(crate) fn between(before: &Reading, after: &Reading) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        let a_second = |of: fn(&Reading) -> f64| (of(after) - of(before)).max(0.0) / seconds;
        Self {
            statements: a_second(|r| r.statements),
            wal: a_second(|r| r.wal),
            blocks: a_second(|r| r.blocks),
            server_cpu: a_second(|r| r.server_cpu),
            hosts_cpu: a_second(|r| r.hosts_cpu),
        }
    }
}

/// Forgets what was counted.
pub(crate) async fn reset(client: &Client) -> Result<()> {
    client.execute("SELECT pg_stat_statements_reset()", &[]).await?;
    Ok(())
}

/// The statements that took most of the server's time since [`reset`]: milliseconds, calls, and the text's beginning.
pub(crate) async fn dearest(client: &Client) -> Result<Vec<(f64, i64, String)>> {
    const SQL: &str = "SELECT s.total_exec_time + s.total_plan_time, s.calls, s.query FROM pg_stat_statements s \
                         JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = $1 AND s.toplevel \
                        ORDER BY 1 DESC LIMIT 12";
    let rows = client.query(SQL, &[&DATABASE]).await?;
    let beginning = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(100).collect();
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), beginning(row.get(2)))).collect())
}

struct Ticks {
    parent: u32,
    own: f64,
    children: f64,
}

/// The processor time of the postmaster and its children in seconds, those that have ended included.
fn cpu_of_the_family(postmaster: u32) -> Result<f64> {
    let own = ticks(postmaster).ok_or("the server has ended")?;
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let children = pids.filter_map(ticks).filter(|t| t.parent == postmaster).map(|t| t.own).sum::<f64>();
    Ok((own.own + own.children + children) / TICKS_A_SECOND)
}

/// `None`: the process has ended.
fn ticks(pid: u32) -> Option<Ticks> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks. State and parent follow it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let at = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Ticks { parent: fields.get(1)?.parse().ok()?, own: at(11)? + at(12)?, children: at(13)? + at(14)? })
}
