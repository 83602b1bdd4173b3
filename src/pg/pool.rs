//! The shared pool, which runs and operators use. It never holds a session lock.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult, TimeoutType};
use deadpool_postgres::{ClientWrapper, Runtime};
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, SimpleQueryMessage, Statement};

use super::conninfo::Target;
use super::dial::Dialer;
use super::errors;
use super::limits::Limits;
use super::schema::Schema;
use super::session::CONFIRM_COMMITS;
use super::txn::{BY_INDEX, commit_patience};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::meters;

/// Statements that each new connection of the pool runs before its first use. They must leave the connection as it
/// was.
pub(crate) type WarmUp = for<'a> fn(&'a ClientWrapper, &'a Schema) -> BoxFuture<'a, Result<(), tokio_postgres::Error>>;

/// Whether a statement may still be sent, asked when its connection is there.
pub(crate) type MaySend = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// A statement that takes longer shows that the plans of its connection may be bad: 1 s. Shorter: more statements that
/// only waited count as well. Longer: a plan that is bad by now is used for longer.
const SLOW: Duration = Duration::from_secs(1);
/// A connection that is older is closed after such a statement: 60 s. Its plans were each made once for all arguments,
/// perhaps when the tables were empty, and the next connection makes its own. Shorter: pods connect again and again to
/// a server on which every statement is slow. Longer: a bad plan is used for longer.
const PLANS_KEPT: Duration = Duration::from_secs(60);

/// An argument of a statement that is made when the connection is there.
pub(crate) type Late = Box<dyn ToSql + Sync + Send>;

/// The pool with its schema and its time limits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    pool: managed::Pool<Manager>,
    /// A permit for each connection that work in the background may hold: half of the pool.
    share: Arc<Semaphore>,
    /// Whether this view gets its connections within the share.
    in_share: bool,
    /// Asked before each statement of this view.
    may_send: Option<MaySend>,
    schema: Schema,
    limit: Duration,
    /// How long getting a connection may take: waiting for a free one, connecting, setting it up.
    get_limit: Duration,
    place: String,
}

impl Database {
    /// Makes the pool. It connects to nothing yet. The connections get the name `application`, unless the connection
    /// string gives another.
    pub(crate) fn new(
        dialer: &Dialer,
        limits: &Limits,
        schema: Schema,
        application: String,
        warm_up: Option<WarmUp>,
    ) -> Result<Self> {
        let manager = Manager {
            dialer: dialer.clone(),
            application: dialer.application_name().map_or(application, ToOwned::to_owned),
            sets: set_statements(limits),
            limit: limits.statement,
            warm_up,
            schema: schema.clone(),
        };
        let connecting = dialer.timeout() + limits.statement;
        let pool = managed::Pool::builder(manager)
            .max_size(limits.pool)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(limits.statement))
            .create_timeout(Some(connecting))
            .recycle_timeout(Some(connecting))
            .build()
            .map_err(|e| Error::new(ErrorKind::Config, format!("making the connection pool: {e}")).caused_by(e))?;
        let get_limit = limits.statement + connecting;
        let share = Arc::new(Semaphore::new(share_of(limits.pool)));
        let place = dialer.describe();
        Ok(Self { pool, share, in_share: false, may_send: None, schema, limit: limits.statement, get_limit, place })
    }

    /// The same pool for work that no run waits for. All such views together hold at most half of its connections, and
    /// one of a pool of one. The others wait for each other, in the order of their calls, before they ask the pool. So
    /// work must not ask for a second connection while it has one.
    pub(crate) fn in_share(&self) -> Self {
        Self { in_share: true, ..self.clone() }
    }

    /// The same pool for statements that may be sent only as long as `may_send` says so. It is asked when the
    /// connection is there, however long that took.
    pub(crate) fn guarded(&self, may_send: MaySend) -> Self {
        Self { may_send: Some(may_send), ..self.clone() }
    }

    /// How many connections the share has.
    #[cfg(feature = "http")]
    pub(crate) fn share_size(&self) -> usize {
        share_of(self.pool.status().max_size)
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// How long a caller waits for a connection, at most.
    pub(crate) fn longest_wait(&self) -> Duration {
        self.get_limit
    }

    /// How many connections the pool has at most.
    pub(crate) fn most_connections(&self) -> usize {
        self.pool.status().max_size
    }

    /// Runs one statement on a pooled connection. `@.` in it stands for the schema.
    ///
    /// # Cancel safety
    ///
    /// A dropped write may or may not have happened. If a call is dropped or times out, its connection is closed,
    /// since it is still busy.
    pub(crate) async fn query(&self, step: &str, template: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.query_as_it_stands(step, &self.schema.sql(template), params).await
    }

    /// The same as [`Database::query`], for a statement in which nothing must be replaced.
    pub(crate) async fn query_as_it_stands(
        &self,
        step: &str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let client = self.get(step).await?;
        let began = Instant::now();
        let asked = self.within(step, async {
            let statement = client.prepare_cached(sql).await?;
            if let Some(Err(refused)) = self.may_send.as_ref().map(|may_send| may_send()) {
                return Ok(Err(refused));
            }
            client.query(&statement, params).await.map(Ok)
        });
        let rows = match asked.await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(refused)) => {
                client.give_back();
                return Err(refused);
            }
            Err(e) => Err(e),
        };
        if leaves_idle(&rows) && keeps_plans(client.age(), began.elapsed()) {
            client.give_back();
        }
        rows
    }

    /// Runs one statement with a time limit of its own, on the server too, and leaves none on the connection. `params`
    /// is called when the statement can be sent, so what it says of the time does not include the wait for a
    /// connection.
    ///
    /// # Cancel safety
    ///
    /// As [`Database::query`].
    pub(crate) async fn query_limited(
        &self,
        step: &str,
        template: &str,
        limit: Duration,
        params: impl FnOnce() -> Vec<Late> + Send,
    ) -> Result<Vec<Row>> {
        let begin = format!("BEGIN; SET LOCAL statement_timeout = {}", limit.as_millis());
        self.query_between(step, &begin, template, commit_patience(limit), params).await
    }

    /// Runs one statement with a plan for these arguments. Other statements keep one plan for all arguments, which
    /// locks each partition of a table, also those that the arguments exclude.
    ///
    /// # Cancel safety
    ///
    /// As [`Database::query`].
    pub(crate) async fn query_replanned(
        &self,
        step: &str,
        template: &str,
        params: impl FnOnce() -> Vec<Late> + Send,
    ) -> Result<Vec<Row>> {
        let begin = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan";
        self.query_between(step, begin, template, commit_patience(self.limit), params).await
    }

    /// Runs one statement that reads tables by their indexes, whatever the tables held when its plan was made
    /// ([`BY_INDEX`]).
    ///
    /// # Cancel safety
    ///
    /// As [`Database::query`].
    pub(crate) async fn query_by_index(
        &self,
        step: &str,
        template: &str,
        params: impl FnOnce() -> Vec<Late> + Send,
    ) -> Result<Vec<Row>> {
        self.query_between(step, BY_INDEX, template, commit_patience(self.limit), params).await
    }

    /// Runs one statement in a transaction that begins with `begin`.
    async fn query_between(
        &self,
        step: &str,
        begin: &str,
        template: &str,
        patience: Duration,
        params: impl FnOnce() -> Vec<Late> + Send,
    ) -> Result<Vec<Row>> {
        let sql = self.schema.sql(template);
        let client = self.get(step).await?;
        let work = async {
            let statement = client.prepare_cached(&sql).await?;
            let params = params();
            let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| &**param as &(dyn ToSql + Sync)).collect();
            // Polled in this order, so sent in this order, in one round trip. All three are answered, also after an
            // error: then the connection is idle, and COMMIT has rolled back.
            let (begun, rows, ended) = tokio::join!(
                biased;
                client.batch_execute(begin),
                client.query(&statement, &params),
                client.batch_execute("COMMIT")
            );
            begun?;
            let rows = rows?;
            ended?;
            Ok(rows)
        };
        let rows = match tokio::time::timeout(patience, work).await {
            Ok(done) => done.map_err(|e| errors::translate(step, e)),
            Err(_) => Err(errors::timed_out(step, patience)),
        };
        if leaves_idle(&rows) {
            client.give_back();
        }
        rows
    }

    /// Prepares a statement that will run several times, with a plan for the current contents of the tables.
    pub(crate) async fn plan(&self, step: &'static str, template: &str, types: &[Type]) -> Result<Planned> {
        let sql = self.schema.sql(template);
        let client = self.get(step).await?;
        let statement = self.within(step, client.prepare_typed(&sql, types)).await?;
        Ok(Planned { db: self.clone(), step, client: Some(client), statement })
    }

    /// The same as [`Database::query`], for a statement that returns at most one row.
    pub(crate) async fn query_opt(
        &self,
        step: &str,
        template: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>> {
        Ok(self.query(step, template, params).await?.into_iter().next())
    }

    /// Closes all pooled connections. Calls that wait for one fail.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    async fn get(&self, step: &str) -> Result<Leased> {
        self.get_any(step).await.map_err(|e| if e.kind() == ErrorKind::Stopped { e } else { e.unconnected() })
    }

    /// Waits until the share of the work in the background has a permit left.
    async fn permit(&self, step: &str) -> Result<Option<OwnedSemaphorePermit>> {
        if !self.in_share {
            return Ok(None);
        }
        match tokio::time::timeout(self.limit, Arc::clone(&self.share).acquire_owned()).await {
            // It is never closed.
            Ok(permit) => Ok(permit.ok()),
            Err(_) => {
                let what = format!("{step}: other work in the background holds its half of the pool ({})", self.place);
                let todo = "see in pg_stat_activity what those statements wait for, or raise pool_size";
                Err(Error::new(ErrorKind::Timeout, what).help(todo))
            }
        }
    }

    async fn get_any(&self, step: &str) -> Result<Leased> {
        let permit = self.permit(step).await?;
        let began = Instant::now();
        // Boxed because the type of opening a connection is deep.
        let get: BoxFuture<'_, _> = Box::pin(self.pool.get());
        let got = tokio::time::timeout(self.get_limit, get).await;
        meters::took(meters::POOL_WAIT, began.elapsed());
        let Ok(got) = got else {
            return Err(errors::timed_out(&format!("{step}: connecting to {}", self.place), self.get_limit));
        };
        match got {
            Ok(client) => Ok(Leased::new(client, permit)),
            Err(PoolError::Backend(e)) => Err(e.during(step)),
            Err(PoolError::Timeout(kind)) => {
                let what = match kind {
                    TimeoutType::Wait => "no connection of the pool came free in time",
                    TimeoutType::Create => "connecting took too long",
                    TimeoutType::Recycle => "checking a pooled connection took too long",
                };
                let todo = "see whether the server or a pooler in between is overloaded or full, or raise pool_size";
                Err(Error::new(ErrorKind::Timeout, format!("{step}: {what} ({})", self.place)).help(todo))
            }
            Err(PoolError::Closed) => {
                Err(Error::new(ErrorKind::Stopped, format!("{step}: the pod has ended and closed its connections")))
            }
            Err(e) => Err(Error::new(ErrorKind::Database, format!("{step}: {e}")).caused_by(e)),
        }
    }

    async fn within<T>(&self, step: &str, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        // The server's own limit is shorter. Ours is for a server that does not answer.
        let limit = self.limit + self.limit / 4;
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(e)) => Err(errors::translate(step, e)),
            Err(_) => Err(errors::timed_out(step, limit)),
        }
    }
}

/// If the server refused the statement, the connection is idle. After any other error its state is unknown.
fn leaves_idle(rows: &Result<Vec<Row>>) -> bool {
    match rows {
        Ok(_) => true,
        Err(e) => e.sqlstate().is_some_and(errors::leaves_sound) && e.kind() != ErrorKind::Standby,
    }
}

/// A statement with a plan of its own, and its connection. Both return to the pool together.
pub(crate) struct Planned {
    db: Database,
    step: &'static str,
    /// `None` once a call has failed: the connection was closed.
    client: Option<Leased>,
    statement: Statement,
}

impl Planned {
    /// Runs the statement. After an error that leaves the connection's state unknown, the connection is closed.
    ///
    /// # Cancel safety
    ///
    /// As [`Database::query`].
    pub(crate) async fn query(&mut self, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let Some(client) = self.client.take() else {
            return Err(
                Error::new(ErrorKind::SessionLost, format!("{}: its connection has ended", self.step)).unconnected()
            );
        };
        let rows = self.db.within(self.step, client.query(&self.statement, params)).await;
        if leaves_idle(&rows) {
            self.client = Some(client);
        }
        rows
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            client.give_back();
        }
    }
}

/// Opens the pool's connections with the dialler that all connections use.
struct Manager {
    dialer: Dialer,
    application: String,
    sets: String,
    limit: Duration,
    schema: Schema,
    warm_up: Option<WarmUp>,
}

impl managed::Manager for Manager {
    type Type = ClientWrapper;
    type Error = Error;

    async fn create(&self) -> Result<ClientWrapper> {
        let mut attempts = self.dialer.attempts();
        while let Some(target) = attempts.next() {
            if let Some(opened) = attempts.ended(self.open(target).await) {
                return Ok(opened);
            }
        }
        Err(attempts.give_up())
    }

    async fn recycle(&self, client: &mut ClientWrapper, _: &Metrics) -> RecycleResult<Error> {
        if client.is_closed() { Err(RecycleError::message("the connection has ended")) } else { Ok(()) }
    }
}

impl Manager {
    async fn open(&self, target: &Target) -> Result<ClientWrapper> {
        let dialled = self.dialer.dial(target, &self.application).await?;
        let connection = dialled.connection;
        let version = major_version(connection.parameter("server_version").unwrap_or_default());
        // The task ends with the wrapper, however the wrapper ends.
        let task = tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(target: "podlock", cause = %chain(&e), "a connection of the pool ended");
            }
        });
        let client = ClientWrapper::new(dialled.client, task);
        let step = format!("setting up a connection to {target}");
        let (sets, timeout, confirm) = (&self.sets, no_transaction_timeout(version), self.schema.sql(CONFIRM_COMMITS));
        let set_up = format!("{sets}{timeout} {confirm}; SELECT pg_catalog.pg_is_in_recovery()");
        let answers = errors::within(&step, self.limit, client.simple_query(&set_up)).await?;
        let is_standby = answers
            .iter()
            .any(|a| matches!(a, SimpleQueryMessage::Row(row) if row.try_get(0).is_ok_and(|is| is == Some("t"))));
        if is_standby {
            return Err(errors::standby(target));
        }
        if let Some(warm_up) = self.warm_up {
            self.warm_up(&step, &client, warm_up).await?;
        }
        Ok(client)
    }

    /// Makes the server parse and plan statements now, so that their first run is as fast as later ones. If the server
    /// refuses one, its first run will show the error.
    async fn warm_up(&self, step: &str, client: &ClientWrapper, warm_up: WarmUp) -> Result<()> {
        match errors::within(step, self.limit, warm_up(client, &self.schema)).await {
            Err(e) if e.sqlstate().is_none() || e.is_session_lost() => Err(e),
            Err(e) => {
                tracing::debug!(
                    target: "podlock", event = "not_warmed_up", error = %e,
                    "the first statements of a connection will be slower"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// A pooled connection. Unless it is given back, it is closed.
struct Leased {
    client: Option<managed::Object<Manager>>,
    /// Returns to the share after the connection has returned to the pool.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Leased {
    fn new(client: managed::Object<Manager>, permit: Option<OwnedSemaphorePermit>) -> Self {
        meters::pool_in_use(1);
        Self { client: Some(client), _permit: permit }
    }

    /// How long ago the connection was opened.
    fn age(&self) -> Duration {
        self.client.as_ref().map_or(Duration::ZERO, |client| managed::Object::metrics(client).age())
    }

    fn give_back(mut self) {
        self.client = None;
    }
}

impl Deref for Leased {
    type Target = ClientWrapper;

    #[expect(clippy::expect_used, reason = "it is taken only by give_back and drop, which consume the value")]
    fn deref(&self) -> &ClientWrapper {
        self.client.as_ref().expect("the connection is there until it is given back")
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        meters::pool_in_use(-1);
        if let Some(client) = self.client.take() {
            drop(managed::Object::take(client));
        }
    }
}

/// Whether a connection of this age stays in the pool after a statement that took so long.
fn keeps_plans(age: Duration, took: Duration) -> bool {
    took < SLOW || age < PLANS_KEPT
}

/// How many connections of a pool of this size work in the background may hold.
fn share_of(pool: usize) -> usize {
    // A semaphore cannot have more permits; no pool has as many connections.
    (pool / 2).clamp(1, Semaphore::MAX_PERMITS)
}

fn major_version(text: &str) -> u32 {
    text.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// From version 17 on, a role may have a `transaction_timeout` of its own.
fn no_transaction_timeout(version: u32) -> &'static str {
    if version >= 17 { " SET transaction_timeout = 0;" } else { "" }
}

/// The settings that each connection makes for itself. Of these, only `lock_timeout` is in force at a COMMIT:
/// `txn::commit_patience`.
fn set_statements(limits: &Limits) -> String {
    let half = (limits.lease / 2).as_millis();
    let limit = limits.statement.as_millis();
    let keepalives = limits.keepalives;
    // The time-out comes first, so that the role's own time-out does not end the statements after it. The server
    // counts it for each statement of a message.
    format!(
        "SET statement_timeout = {limit}; SET search_path = pg_catalog, pg_temp; \
         SET default_transaction_isolation = 'read committed'; \
         SET default_transaction_read_only = off; SET client_min_messages = warning; \
         SET standard_conforming_strings = on; SET idle_session_timeout = 0; SET jit = off; \
         SET plan_cache_mode = force_generic_plan; \
         SET lock_timeout = {limit}; \
         SET idle_in_transaction_session_timeout = {half}; SET tcp_user_timeout = {half}; \
         SET tcp_keepalives_idle = {}; SET tcp_keepalives_interval = {}; SET tcp_keepalives_count = {};",
        keepalives.idle, keepalives.interval, keepalives.count
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a server on which every statement is slow, a connection is opened once a minute and no more often.
    #[test]
    fn an_old_connection_is_replaced_after_a_slow_statement_and_a_young_one_is_not() {
        let (young, old) = (PLANS_KEPT - SLOW, PLANS_KEPT);
        assert!(keeps_plans(young, 9 * SLOW) && keeps_plans(old, SLOW / 2));
        assert!(!keeps_plans(old, SLOW));
    }

    #[test]
    fn background_work_has_at_most_half_of_a_pool_and_one_connection_of_a_pool_of_one() {
        for (pool, share) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (1_000_000, 500_000)] {
            assert_eq!(share_of(pool), share, "of {pool}");
        }
    }
}
