//! The floor: the rows that a claim writes, written without asking who is alive, who shares what, or what is poison.

use std::time::{Duration, Instant};

use podlock::Config;

use crate::{BATCH, Result, connect, leave_orphans};

/// Picks a batch that nobody else has locked, gives it an owner and a new fence, and writes its attempts.
const SQL: &str = "WITH picked AS MATERIALIZED (
       SELECT run_id FROM studio_runs
        WHERE state = 'running' AND owner_incarnation = '00000000-0000-0000-0000-0000000000ff'
        ORDER BY created_at, run_id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
     ), claimed AS (
       UPDATE studio_runs r SET owner_pod = $1, owner_incarnation = $3, attempt = r.attempt + 1,
              fence = nextval('studio_fence'), crashes = r.crashes + 1
         FROM picked WHERE r.run_id = picked.run_id
       RETURNING r.run_id, r.kind, r.key, r.fence, r.attempt, r.input, r.checkpoint
     ), closed AS (
       UPDATE studio_run_attempts a SET ended_at = clock_timestamp(), reason = 'lost'
         FROM claimed c WHERE a.run_id = c.run_id AND a.attempt = c.attempt - 1
     ), begun AS (
       INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
       SELECT run_id, attempt, $1, $3, fence FROM claimed
     ) SELECT * FROM claimed";

/// Claims them all over so many connections, and says how long that took.
pub(crate) async fn claim(url: &str, connections: usize, orphans: i64) -> Result<Duration> {
    podlock::migrate::up(&Config::new(url)).await?;
    let admin = connect(url).await?;
    let mut clients = Vec::new();
    for _ in 0..connections {
        let client = connect(url).await?;
        client.batch_execute("SET jit = off").await?;
        let statement = client.prepare(SQL).await?;
        clients.push((client, statement));
    }
    leave_orphans(&admin, orphans).await?;
    let began = Instant::now();
    let mut tasks = Vec::new();
    for (n, (client, statement)) in clients.into_iter().enumerate() {
        tasks.push(tokio::spawn(async move {
            let (pod, incarnation) = (format!("by hand {n}"), uuid::Uuid::now_v7());
            let mut claimed = 0_i64;
            loop {
                let rows = client.query(&statement, &[&pod, &BATCH, &incarnation]).await?;
                claimed += i64::try_from(rows.len()).unwrap_or(0);
                if rows.is_empty() {
                    return Ok::<_, tokio_postgres::Error>(claimed);
                }
            }
        }));
    }
    let mut claimed = 0;
    for task in tasks {
        claimed += task.await??;
    }
    let took = began.elapsed();
    if claimed == orphans { Ok(took) } else { Err(format!("{claimed} of {orphans} were claimed by hand").into()) }
}
