//! What three pods cost while nothing happens: top-level statements by `pg_stat_statements`, row writes by the tables'
//! own counters, and what the server logs at WARNING or above, lock waits included.

use std::time::Duration;

use podlock::Config;
use podlock::throwaway::Server as Postgres;

use crate::kills::ready;
use crate::process::{Ear, Process};
use crate::{Result, connect};

const PODS: [&str; 3] = ["idle-1", "idle-2", "idle-3"];

/// What was counted.
pub(crate) struct Idle {
    pub(crate) pods: usize,
    pub(crate) lasted: Duration,
    pub(crate) lease: Duration,
    /// A second and pod.
    pub(crate) statements: f64,
    pub(crate) row_writes: f64,
    /// The statements behind it: calls a second and pod, and the text's beginning.
    pub(crate) by_statement: Vec<(f64, String)>,
    /// Lines of the server's log at WARNING or above, and of waits for a lock.
    pub(crate) logged: Vec<String>,
}

pub(crate) async fn measure(lasts: Duration) -> Result<Idle> {
    let postgres = tokio::task::spawn_blocking(|| {
        Postgres::builder()
            .setting("shared_preload_libraries", "pg_stat_statements")
            .setting("pg_stat_statements.track", "top")
            .setting("log_lock_waits", "on")
            .start()
    })
    .await??;
    // The counting goes on from another database, and is not counted.
    let outside = connect(&postgres.url("postgres")).await?;
    outside.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
    outside.batch_execute("CREATE DATABASE idle").await?;
    let url = postgres.url("idle");
    let (mut ear, mut pods) = (Ear::new(), Vec::new());
    let config = Config::new(&url);
    let settings = config.validate()?;
    let lease = humantime::format_duration(settings.lease).to_string();
    for name in PODS {
        let pod = Process::start(
            &["pod", "--name", name, "--schema", "public", "--lease", &lease, "--runs", "0"],
            &url,
            &ear,
        )?;
        ready(&mut ear, &pod).await?;
        pods.push(pod);
    }
    // Until everybody is settled, and the fleet has come to rest.
    tokio::time::sleep(settings.settle + settings.lease).await;

    let inside = connect(&url).await?;
    let writes_before = row_writes(&inside).await?;
    let log_before = postgres.log_text()?.len();
    outside.execute("SELECT pg_stat_statements_reset()", &[]).await?;
    tokio::time::sleep(lasts).await;
    let rows = outside
        .query(
            "SELECT s.query, s.calls FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid \
             WHERE d.datname = 'idle' AND s.toplevel ORDER BY s.calls DESC",
            &[],
        )
        .await?;
    let logged = postgres.log_text()?.split_off(log_before);
    let writes = row_writes(&inside).await? - writes_before;

    let a_second_and_pod = |count: i64| count as f64 / lasts.as_secs_f64() / PODS.len() as f64;
    let by_statement: Vec<(f64, String)> =
        rows.iter().map(|row| (a_second_and_pod(row.get(1)), beginning(row.get(0)))).collect();
    drop((outside, inside));
    for pod in pods {
        pod.kill()?;
        pod.reap().await?;
    }
    tokio::task::spawn_blocking(move || drop(postgres)).await?;
    Ok(Idle {
        pods: PODS.len(),
        lasted: lasts,
        lease: settings.lease,
        statements: by_statement.iter().map(|(calls, _)| calls).sum(),
        row_writes: a_second_and_pod(writes),
        by_statement,
        logged: logged.lines().filter(|line| is_loud(line)).map(str::to_owned).collect(),
    })
}

/// How many rows were ever written to this database's own tables. The server's processes report theirs within a
/// second or so of having written.
async fn row_writes(client: &tokio_postgres::Client) -> Result<i64> {
    const SQL: &str =
        "SELECT COALESCE(pg_catalog.sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables";
    Ok(client.query_one(SQL, &[]).await?.get(0))
}

fn is_loud(line: &str) -> bool {
    [" WARNING:  ", " ERROR:  ", " FATAL:  ", " PANIC:  ", " still waiting for "].iter().any(|mark| line.contains(mark))
}

fn beginning(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(84).collect()
}
