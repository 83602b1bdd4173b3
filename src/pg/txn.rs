//! Runs statements and transactions on a session.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::errors::within;
use super::reply::Reply;
use super::schema::Schema;
use crate::error::{Error, ErrorKind, Result};

pub(super) const BACKEND_PID: &str = "SELECT pg_catalog.pg_backend_pid()";
/// How much longer than the COMMIT a statement that is sent with it may take.
const AFTERTHOUGHT: Duration = Duration::from_millis(100);
/// Begins a transaction that waits only 20 ms for a lock, for example of a table that is being altered, or of a row. It
/// must end in ROLLBACK: no time-out as short as this may be in force at a COMMIT, see [`commit_patience`].
pub(crate) const BEGIN_IMPATIENTLY: &str = "BEGIN; SET LOCAL lock_timeout = '20ms'";
/// Begins a transaction whose statements read tables by their indexes, wherever an index serves.
///
/// A connection keeps one plan for all runs of a statement. If the plan is made while a table is empty or small, the
/// planner prefers to read the whole table, and goes on doing so until the server has analysed the table again. In this
/// minute the table can grow by a million rows. So a statement whose work must be proportional to what it finds runs
/// after this, each time: the server may make the plan again at any time. This helps only where one table is read by
/// one index. It says nothing about how tables are joined.
pub(crate) const BY_INDEX: &str = "BEGIN; SET LOCAL enable_seqscan = off";
/// A parameter with its type, so that a statement takes one round trip and no name is looked up.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A statement that a session keeps prepared, with the types of its parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    pub(crate) template: &'static str,
    pub(crate) types: &'static [Type],
}

/// A statement and its parameters, to be sent together with others.
pub(crate) type Call<'a> = (&'a str, &'a [Param<'a>]);

/// How long we wait for a last statement and its COMMIT, on connections whose statements are limited to `limit`.
///
/// At COMMIT, a transaction that sent a notification waits for a lock of the whole cluster (`AccessExclusiveLock` on
/// database 0). It waits behind the commits of all others that sent one. With a slow disk, or a synchronous standby
/// that does not answer, the wait takes as long as their commits. These time-outs could cancel that wait:
///
/// | time-out | in force at COMMIT |
/// | --- | --- |
/// | `lock_timeout` of a connection of ours | yes. It is `statement_timeout` of the settings: seconds. The server then undoes the transaction and answers 55P03, so the caller knows that nothing was done, and tries again |
/// | `lock_timeout` of a slice, of the witness, of a warm-up: milliseconds | no. `studio_lock`, `studio_watch` and `studio_fence_check` put back what they found; [`BEGIN_IMPATIENTLY`], with which connections are warmed up, ends in ROLLBACK |
/// | `statement_timeout` | no: the server stops its clock before it commits (measured on PostgreSQL 15) |
/// | `idle_in_transaction_session_timeout` | no: the COMMIT is sent together with the last statement |
/// | our own patience, this function | longer than the server's, so that the answer is the server's and the outcome known. It is for servers that do not answer |
///
/// A burial and a slice of the watch are tried again at once (`pod::watcher`), a sweep at its next probe, a
/// registration up to ten times, and a return with back-off. A stall is recorded at the next probe. Calls of runs and
/// operators through the pool fail with the error, and nothing was done; the publisher of workers tries again. The
/// migrations' time-outs are a minute, and they notify nobody.
pub(crate) fn commit_patience(limit: Duration) -> Duration {
    limit * 2 + limit / 4
}

/// A session's client, and everything else that is needed to run a statement on it.
#[derive(Clone, Copy)]
pub(super) struct Statements<'a> {
    pub(super) client: &'a Client,
    pub(super) schema: &'a Schema,
    pub(super) prepared: &'a HashMap<&'static str, Statement>,
}

impl Statements<'_> {
    /// Runs one statement, the prepared one if there is one.
    pub(super) async fn run(&self, (template, params): Call<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
        let Some(statement) = self.prepared.get(template) else {
            return self.client.query_typed(&self.schema.sql(template), params).await;
        };
        let values: Vec<_> = params.iter().map(|(value, _)| *value).collect();
        self.client.query(statement, &values).await
    }
}

/// A transaction of a session. Dropped, it is rolled back before the session's next statement.
pub(crate) struct Txn<'a> {
    pub(super) on: Statements<'a>,
    pub(super) label: &'static str,
    pub(super) limit: Duration,
    pub(super) open: bool,
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        if self.open {
            // The first poll sends it; nobody needs the answer.
            let _ = self.on.client.batch_execute("ROLLBACK").now_or_never();
        }
    }
}

impl Txn<'_> {
    pub(crate) async fn query(&self, step: &str, template: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        within(&self.step_name(step), self.limit, self.on.run((template, params))).await
    }

    pub(crate) async fn query_one(&self, step: &str, template: &str, params: &[Param<'_>]) -> Result<Row> {
        one(step, self.query(step, template, params).await?)
    }

    /// Sends a last statement together with the COMMIT, so that its locks are never held for a round trip. If the
    /// statement fails, the server rolls back instead.
    pub(crate) async fn commit_with(mut self, step: &str, template: &str, params: &[Param<'_>]) -> Result<()> {
        let step = self.step_name(step);
        let (on, limit) = (self.on, commit_patience(self.limit));
        self.open = false;
        // Polled in this order, so sent in this order.
        let both = async { tokio::try_join!(biased; on.run((template, params)), on.client.batch_execute("COMMIT")) };
        within(&step, limit, both).await.map(drop)
    }

    /// The same as [`Txn::commit_with`], with one more statement in the same round trip. That statement begins after
    /// the commit, in a transaction of its own, which begins with [`BY_INDEX`]. Returns the rows of both. Those of the
    /// second are `None` if it failed or took too long; the commit stands all the same.
    pub(crate) async fn commit_with_then(
        mut self,
        step: &str,
        last: Call<'_>,
        then: Call<'_>,
    ) -> Result<(Vec<Row>, Option<Vec<Row>>)> {
        let step = self.step_name(step);
        let (on, limit) = (self.on, commit_patience(self.limit));
        self.open = false;
        let mut both = pin!(async { tokio::try_join!(biased; on.run(last), on.client.batch_execute("COMMIT")) });
        // Polled in this order, so sent in this order, at the first poll. The connection is idle after them, also if
        // the answer comes too late for this call.
        let then = async {
            let (begun, rows, ended) = tokio::join!(
                biased;
                on.client.batch_execute(BY_INDEX),
                on.run(then),
                on.client.batch_execute("COMMIT")
            );
            begun?;
            let rows = rows?;
            ended?;
            Ok::<_, tokio_postgres::Error>(rows)
        };
        let (mut then, mut answered) = (pin!(then), None);
        // Polled in this order, so sent in this order. This waits only for the first two.
        let committed = poll_fn(|cx| {
            let both = both.as_mut().poll(cx);
            if answered.is_none()
                && let Poll::Ready(rows) = then.as_mut().poll(cx)
            {
                answered = Some(rows);
            }
            both
        });
        let (rows, ()) = within(&step, limit, committed).await?;
        let answered = match answered {
            Some(answered) => answered.ok(),
            None => tokio::time::timeout(AFTERTHOUGHT, then).await.ok().and_then(Result::ok),
        };
        Ok((rows, answered))
    }

    /// Runs a statement without parameters that returns nothing. `@.` is not replaced.
    pub(crate) async fn execute(&self, step: &str, sql: &str) -> Result<()> {
        within(&self.step_name(step), self.limit, self.on.client.batch_execute(sql)).await
    }

    /// The pid that answers. Inside a transaction a pooler's backend is busy.
    pub(super) async fn backend_pid(&self, step: &str) -> Result<i32> {
        self.query_one(step, BACKEND_PID, &[]).await?.at(0)
    }

    pub(crate) async fn rollback(mut self, step: &str) -> Result<()> {
        let step = self.step_name(step);
        self.open = false;
        within(&step, self.limit, self.on.client.batch_execute("ROLLBACK")).await
    }

    fn step_name(&self, step: &str) -> String {
        format!("{step} ({} session)", self.label)
    }
}

/// The one row of an answer.
pub(crate) fn one(step: &str, rows: Vec<Row>) -> Result<Row> {
    let count = rows.len();
    let mut rows = rows.into_iter();
    match (rows.next(), rows.next()) {
        (Some(row), None) => Ok(row),
        _ => Err(Error::new(ErrorKind::Database, format!("{step}: the server sent {count} rows, and one was due"))),
    }
}
