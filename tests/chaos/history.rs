//! What the database accepted, and what the pods said of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::Client;

use crate::pod::{Mark, now_ns};

/// Makes the triggers that write the history. As a superuser, once podlock's tables are there.
pub(crate) const INSTALL: &str = include_str!("history.sql");

/// For a database that has no tables yet: has the triggers made in the very transaction that makes the tables.
pub(crate) fn install_ahead() -> String {
    format!(
        "CREATE FUNCTION install_history() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $ahead$ BEGIN \
             IF to_regnamespace('chaos') IS NULL AND EXISTS (SELECT FROM pg_event_trigger_ddl_commands() \
                     WHERE object_identity = 'public.studio_run_chunks') THEN \
                 EXECUTE $history${INSTALL}$history$; \
             END IF; \
         END $ahead$; \
         CREATE EVENT TRIGGER install_history ON ddl_command_end WHEN TAG IN ('CREATE TABLE') \
             EXECUTE FUNCTION install_history()"
    )
}

/// One row that a committed transaction wrote. In the order of `seq`, which for the rows of one run, or of one name, is
/// the order of their commits: the trigger runs under the row's lock.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) seq: i64,
    /// When, in nanoseconds of the clock that the pods use. The commit came a moment later.
    pub(crate) at: u64,
    pub(crate) writer: String,
    pub(crate) change: Change,
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Run {
        old: Option<Box<RunRow>>,
        new: Box<RunRow>,
        proof: RunProof,
    },
    Pod {
        old: Option<PodRow>,
        new: Option<PodRow>,
        proof: PodProof,
    },
    Chunk {
        old: Option<ChunkRow>,
        new: Option<ChunkRow>,
        proof: ChunkProof,
    },
    /// Written by its owner's pod, while that owner was not in the roster. No other row of a worker is recorded.
    Worker {
        new: WorkerRow,
    },
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct RunRow {
    pub(crate) run_id: String,
    pub(crate) key: Option<String>,
    pub(crate) state: String,
    pub(crate) owner_pod: Option<String>,
    pub(crate) owner_incarnation: Option<String>,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
    pub(crate) crashes: i32,
    pub(crate) checkpoint: Option<Mark>,
    pub(crate) result: Option<Mark>,
    pub(crate) input: crate::pod::Input,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct PodRow {
    pub(crate) pod_id: String,
    pub(crate) incarnation: String,
    pub(crate) state: String,
    pub(crate) session: i64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct ChunkRow {
    pub(crate) run_id: String,
    pub(crate) generation: i32,
    pub(crate) seq: u64,
    pub(crate) fence: i64,
    pub(crate) body: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct WorkerRow {
    pub(crate) url: String,
    pub(crate) owner_pod: String,
    pub(crate) owner_incarnation: String,
}

/// What the trigger checked when a chunk was stored or deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ChunkProof {
    pub(crate) of_the_owner: bool,
}

/// What the trigger checked at a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RunProof {
    pub(crate) old_owner_in_roster: bool,
}

/// What the trigger checked at a burial, a registration or a return. A check that does not apply is `None`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct PodProof {
    pub(crate) holds_the_dead_pods_lock: Option<bool>,
    pub(crate) holds_the_dead_pods_witness: Option<bool>,
    pub(crate) writer_in_roster: Option<bool>,
    pub(crate) writer_holds_its_lock: Option<bool>,
    pub(crate) writer_drains: Option<bool>,
    pub(crate) holds_its_lock: Option<bool>,
}

/// Everything from the first row on.
pub(crate) async fn load(client: &Client) -> Vec<Record> {
    let sql = "SELECT seq, writer, relation, old, new, proof, \
                      (extract(epoch FROM statement_timestamp() - at) * 1000000)::int8 FROM chaos.history ORDER BY seq";
    let now = now_ns();
    let rows = client.query(sql, &[]).await.expect("the history");
    rows.iter()
        .map(|row| {
            let (old, new): (Option<Value>, Option<Value>) = (row.get(3), row.get(4));
            let proof: Value = row.get(5);
            // The server's wall clock is not ours, but it goes as fast.
            let age = u64::try_from(row.get::<_, i64>(6)).unwrap_or_default() * 1000;
            let change = match row.get::<_, &str>(2) {
                "run" => Change::Run {
                    old: old.map(read),
                    new: read(new.expect("runs are not deleted")),
                    proof: read(proof),
                },
                "chunk" => Change::Chunk { old: old.map(read), new: new.map(read), proof: read(proof) },
                "worker" => Change::Worker { new: read(new.expect("a row")) },
                _ => Change::Pod { old: old.map(read), new: new.map(read), proof: read(proof) },
            };
            Record { seq: row.get(0), at: now.saturating_sub(age), writer: row.get(1), change }
        })
        .collect()
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e} in {value}"))
}

/// What one process said, in its order.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Said {
    pub(crate) t: u64,
    pub(crate) ev: String,
    #[serde(default)]
    pub(crate) op: Option<String>,
    #[serde(default)]
    pub(crate) what: Option<String>,
    #[serde(default)]
    pub(crate) run: Option<String>,
    #[serde(default)]
    pub(crate) attempt: Option<i32>,
    #[serde(default)]
    pub(crate) fence: Option<i64>,
    /// Of a write that is tried: the how-manyth step.
    #[serde(default)]
    pub(crate) n: Option<u64>,
    /// The incarnation that speaks.
    #[serde(default)]
    pub(crate) by: Option<String>,
    #[serde(default)]
    pub(crate) pod: Option<String>,
    #[serde(default)]
    pub(crate) incarnation: Option<String>,
    #[serde(default)]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) text: Option<String>,
    /// Which of the readers speaks.
    #[serde(default)]
    pub(crate) reader: Option<String>,
    /// Whether the pod holds its liveness lock, as far as it knows.
    #[serde(default)]
    pub(crate) attached: Option<bool>,
    /// How many workers the pod has registered.
    #[serde(default)]
    pub(crate) registered: Option<u32>,
    /// How many workers of each incarnation the pod shows.
    #[serde(default)]
    pub(crate) shown: BTreeMap<String, u32>,
}

/// The log of one process of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodLog {
    pub(crate) pod: String,
    pub(crate) said: Vec<Said>,
}
