//! Plain SQL for tests: what an operator would see.

use std::ops::Deref;
use std::time::Duration;

use podlock::protocol::fold::{self, LogEntry};
use podlock::{Incarnation, PodId, RunId};
use tokio_postgres::NoTls;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::eventually;

/// A connection whose task ends with it.
pub(crate) struct Client {
    client: tokio_postgres::Client,
    task: tokio::task::JoinHandle<()>,
}

impl Deref for Client {
    type Target = tokio_postgres::Client;
    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl std::ops::DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    Client { client, task }
}

/// A connection, and the payloads of the notifications that come to it.
pub(crate) async fn listening(url: &str) -> (Client, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    let (told, heard) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notification(notice) = message {
                // A test that has ended listens no more.
                let _ = told.send(notice.payload().to_owned());
            }
        }
    });
    (Client { client, task }, heard)
}

/// One run as the tables show it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunState {
    pub(crate) state: String,
    pub(crate) owner_pod: Option<String>,
    pub(crate) owner: Option<Uuid>,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
    pub(crate) crashes: i32,
}

impl Client {
    pub(crate) async fn scalar<T: tokio_postgres::types::FromSqlOwned>(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> T {
        self.query_one(sql, params).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    pub(crate) async fn run(&self, run_id: RunId) -> RunState {
        let sql =
            "SELECT state, owner_pod, owner_incarnation, fence, attempt, crashes FROM studio_runs WHERE run_id = $1";
        let row = self.query_one(sql, &[&run_id.as_uuid()]).await.expect("the run");
        RunState {
            state: row.get(0),
            owner_pod: row.get(1),
            owner: row.get(2),
            fence: row.get(3),
            attempt: row.get(4),
            crashes: row.get(5),
        }
    }

    pub(crate) async fn run_in_state(&self, run_id: RunId, state: &str, limit: Duration) -> RunState {
        eventually(limit, &format!("run {run_id} is {state}"), || async {
            let run = self.run(run_id).await;
            if run.state == state { Ok(run) } else { Err(format!("{run:?}")) }
        })
        .await
    }

    pub(crate) async fn run_owned_by(&self, run_id: RunId, incarnation: Incarnation, limit: Duration) -> RunState {
        eventually(limit, &format!("{incarnation} owns run {run_id}"), || async {
            let run = self.run(run_id).await;
            if run.owner == Some(incarnation.as_uuid()) { Ok(run) } else { Err(format!("{run:?}")) }
        })
        .await
    }

    /// Names of the roster.
    pub(crate) async fn roster(&self) -> Vec<String> {
        let rows = self.query("SELECT pod_id FROM studio_pods ORDER BY 1", &[]).await.expect("the roster");
        rows.iter().map(|row| row.get(0)).collect()
    }

    pub(crate) async fn roster_is(&self, names: &[&str], limit: Duration) {
        eventually(limit, &format!("the roster is {names:?}"), || async {
            let roster = self.roster().await;
            if roster == names { Ok(()) } else { Err(format!("{roster:?}")) }
        })
        .await;
    }

    /// How an incarnation ended, once it has.
    pub(crate) async fn session_end(&self, incarnation: Incarnation) -> Option<(String, Option<String>)> {
        let sql = "SELECT reason, buried_by FROM studio_pod_sessions WHERE incarnation = $1 AND ended_at IS NOT NULL";
        let row = self.query_opt(sql, &[&incarnation.as_uuid()]).await.expect("the session");
        row.map(|row| (row.get(0), row.get(1)))
    }

    /// The law of the log: folding it gives the roster.
    pub(crate) async fn assert_fold_is_roster(&self) {
        // One snapshot of both: the log is written in the transactions that write the roster.
        let sql = "SELECT (SELECT coalesce(jsonb_agg(to_jsonb(e) ORDER BY e.idx), '[]') FROM studio_pod_events e), \
                   (SELECT coalesce(jsonb_agg(to_jsonb(p) ORDER BY p.pod_id COLLATE \"C\"), '[]') FROM studio_pods p)";
        let row = self.query_one(sql, &[]).await.expect("log and roster");
        let (log, roster): (serde_json::Value, serde_json::Value) = (row.get(0), row.get(1));
        let uuid = |v: &serde_json::Value| Incarnation::from(v.as_str().unwrap().parse::<Uuid>().unwrap());
        let entries: Vec<LogEntry> = log
            .as_array()
            .unwrap()
            .iter()
            .map(|e| LogEntry {
                idx: e["idx"].as_i64().unwrap(),
                kind: e["kind"].as_str().unwrap().to_owned(),
                pod_id: PodId::new(e["pod_id"].as_str().unwrap()).unwrap(),
                incarnation: uuid(&e["incarnation"]),
                detail: e["detail"].clone(),
            })
            .collect();
        let folded = fold::fold(&entries).unwrap_or_else(|e| panic!("{e}; log: {log:#}"));
        let folded: Vec<_> = folded
            .into_iter()
            .map(|(pod, m)| (pod.to_string(), m.incarnation, m.draining, m.cordoned, m.session))
            .collect();
        let roster: Vec<_> = roster
            .as_array()
            .unwrap()
            .iter()
            .map(|p| {
                let pod = p["pod_id"].as_str().unwrap().to_owned();
                let (draining, cordoned) = (p["state"] == "draining", !p["cordoned_by"].is_null());
                (pod, uuid(&p["incarnation"]), draining, cordoned, p["session"].as_i64().unwrap())
            })
            .collect();
        assert_eq!(folded, roster, "the folded log is not the roster; log: {log:#}");
    }

    /// Ends the backend of one of a pod's sessions: `liveness`, `control`, `watch`.
    pub(crate) async fn terminate(&self, pod: &str, role: &str) -> usize {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name = 'podlock/' || $1 || '/' || $2";
        self.query(sql, &[&pod, &role]).await.expect("terminated").len()
    }

    pub(crate) async fn backend(&self, pod: &str, role: &str) -> Option<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 'podlock/' || $1 || '/' || $2";
        self.query_opt(sql, &[&pod, &role]).await.expect("backends").map(|row| row.get(0))
    }

    /// Waits until all three sessions of a pod are there and both of its locks are held by them.
    pub(crate) async fn armed(&self, pod: &str, limit: Duration) {
        eventually(limit, &format!("pod {pod} is armed"), || async {
            let watch = self.backend(pod, "watch").await;
            let row = self
                .query_opt("SELECT alive, witness FROM studio_pod_status WHERE pod_id = $1", &[&pod])
                .await
                .expect("status")
                .map(|row| (row.get::<_, bool>(0), row.get::<_, bool>(1)));
            if watch.is_some() && row == Some((true, true)) {
                Ok(())
            } else {
                Err(format!("watch {watch:?}, (alive, witness) {row:?}"))
            }
        })
        .await;
    }
}
