//! Writes that wait for one another go together.

mod answers;
mod losses;
mod waits;

use std::pin::Pin;

use podlock::{Pod, Run};
use serde_json::{Value, json};
use tokio_postgres::Transaction;

use super::stage::{Act, SOON, Stage, act};
use crate::support::eventually;
use crate::support::sql::Client;

/// More than there are statements at a time.
const MANY: usize = 100;
/// So few transactions show that writes were grouped: alone, each makes one. How many groups there are depends on how
/// many writes have come when a worker takes them.
const FEW: usize = MANY / 5;
/// The beginnings of the statements that make the writes of several runs.
const GROUP_OF_WRITES: &str = "WITH writes AS%";
const GROUP_OF_STARTS: &str = "WITH patience AS%";

fn roomy(c: &mut podlock::Config) {
    c.capacity = 1000;
}

/// Lets nobody write a run until it is opened. Writes that begin meanwhile are grouped: the first ones hold all slots.
struct Gate<'a>(Transaction<'a>);

impl<'a> Gate<'a> {
    async fn close(client: &'a mut Client) -> Self {
        let gate = client.transaction().await.unwrap();
        Self::close_in(gate).await
    }

    /// The transaction keeps the locks that it has so far when the gate is opened.
    async fn close_in(txn: Transaction<'a>) -> Self {
        txn.batch_execute("SAVEPOINT gate; LOCK TABLE studio_runs IN EXCLUSIVE MODE").await.unwrap();
        Self(txn)
    }

    async fn open(self) -> Transaction<'a> {
        self.0.batch_execute("ROLLBACK TO gate").await.unwrap();
        self.0
    }
}

/// Waits until a statement of a pod's pool waits for a lock: one, or several.
async fn is_blocked(client: &Client, statement: &str) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name LIKE 'podlock/%/pool' AND wait_event_type = 'Lock' AND query LIKE $1";
    eventually(SOON, &format!("a statement like {statement:?} waits for a lock"), || async {
        if client.scalar::<i64>(sql, &[&statement]).await > 0 { Ok(()) } else { Err("none waits".to_owned()) }
    })
    .await;
}

/// Attempts of so many runs of a pod.
async fn acts(stage: &Stage, pod: &Pod, count: usize) -> Vec<Act> {
    for started in pod.start_many((0..count).map(|_| act())).await {
        started.unwrap();
    }
    stage.acts(count).await
}

async fn checkpoint_of(client: &Client, run: &Run) -> Value {
    let sql = "SELECT COALESCE(checkpoint, 'null') FROM studio_runs WHERE run_id = $1";
    client.scalar(sql, &[&run.id().as_uuid()]).await
}

/// In how many transactions the rows of the runs were last written.
async fn transactions(client: &Client) -> usize {
    let count: i64 = client.scalar("SELECT count(DISTINCT xmin::text) FROM studio_runs", &[]).await;
    usize::try_from(count).unwrap()
}

/// Checkpoints of runs that the transaction locks: they hold every slot for a moment, and what begins meanwhile is
/// grouped.
async fn occupy<'a>(
    txn: &Transaction<'_>,
    acts: &'a [Act],
) -> Vec<Pin<Box<dyn Future<Output = podlock::Result<()>> + 'a>>> {
    for act in acts {
        let lock = "SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE";
        txn.execute(lock, &[&act.run.id().as_uuid()]).await.unwrap();
    }
    let mut waiting = Vec::new();
    for act in acts {
        let mut saving: Pin<Box<dyn Future<Output = _>>> = Box::pin(act.run.checkpoint(json!("locked")));
        assert!(futures_util::poll!(&mut saving).is_pending());
        waiting.push(saving);
    }
    waiting
}
