//! What the database says of runs and pods.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::project::Project;

#[derive(Debug, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) run_id: String,
    pub(crate) state: String,
    pub(crate) fence: i64,
    pub(crate) checkpoint: Option<Value>,
    pub(crate) result: Option<Value>,
    pub(crate) attempts: Vec<Attempt>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) attempt: i64,
    pub(crate) incarnation: String,
    pub(crate) fence: i64,
    /// How it ended; `None` while it goes on.
    pub(crate) reason: Option<String>,
}

/// How an incarnation ended.
#[derive(Debug, PartialEq, Deserialize)]
pub(crate) struct Session {
    pub(crate) reason: Option<String>,
    pub(crate) buried_by: Option<String>,
}

impl RunRecord {
    /// How many chunks its last checkpoint holds.
    pub(crate) fn done(&self) -> i64 {
        self.checkpoint.as_ref().and_then(|checkpoint| checkpoint["done"].as_i64()).unwrap_or(0)
    }

    /// The incarnation that works on it.
    pub(crate) fn worker(&self) -> Option<&str> {
        self.attempts.last().filter(|attempt| attempt.reason.is_none()).map(|attempt| attempt.incarnation.as_str())
    }
}

/// These runs, in the order of the ids. Each id must be there.
pub(crate) async fn runs(project: &Project, ids: &[&str]) -> Vec<RunRecord> {
    let rows = project
        .query(&format!(
            "SELECT pg_catalog.to_jsonb(r) || pg_catalog.jsonb_build_object('attempts',
                    (SELECT pg_catalog.jsonb_agg(a ORDER BY a.attempt)
                       FROM studio_run_attempts AS a WHERE a.run_id = r.run_id))
               FROM pg_catalog.unnest('{{{}}}'::uuid[]) WITH ORDINALITY AS due (run_id, place)
               JOIN studio_runs AS r USING (run_id) ORDER BY due.place",
            ids.join(",")
        ))
        .await;
    let runs: Vec<RunRecord> = rows.into_iter().map(record).collect();
    let found: Vec<_> = runs.iter().map(|run| run.run_id.as_str()).collect();
    assert_eq!(found, ids, "a run that was started is not in the table");
    runs
}

/// The history of one incarnation.
pub(crate) async fn session(project: &Project, incarnation: &str) -> Session {
    let sql = format!(
        "SELECT pg_catalog.to_jsonb(s) FROM studio_pod_sessions AS s WHERE s.incarnation = '{incarnation}'::uuid"
    );
    let mut rows = project.query(&sql).await;
    assert_eq!(rows.len(), 1, "the history of incarnation {incarnation}: {rows:?}");
    record(rows.remove(0))
}

fn record<T: DeserializeOwned>(row: Value) -> T {
    serde_json::from_value(row.clone()).unwrap_or_else(|e| panic!("{e}: {row}"))
}
