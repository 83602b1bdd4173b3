//! The shared pool: what runs and operators write and read through. It never holds a session lock.

use std::future::Future;
use std::ops::Deref;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio_postgres::Row;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::types::ToSql;

use super::dial::Dialer;
use super::schema::Schema;
use super::{errors, tls};
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};

/// The pool with its schema and its time limits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
    schema: Schema,
    limit: Duration,
    /// How long a connection may take to come: waiting for a place, connecting, setting it up.
    get_limit: Duration,
    place: String,
}

impl Database {
    /// Makes the pool. Connects to nothing yet.
    pub(crate) fn new(dialer: &Dialer, settings: &Settings, schema: Schema, application: &str) -> Result<Self> {
        let mut config = dialer.config().clone();
        config.application_name(application).connect_timeout(settings.connect_timeout).tcp_user_timeout(settings.lease);
        // As the dedicated sessions: of several hosts, the primary. The driver takes a role whose default is read-only
        // for a standby, so a single host is not asked.
        if dialer.config().get_hosts().len().max(dialer.config().get_hostaddrs().len()) > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config.keepalives(true).keepalives_idle(Duration::from_secs((settings.lease.as_secs() / 2).max(1)));
        let manager =
            Manager::from_config(config, tls::connector(), ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let sets = set_statements(settings);
        let set_up = Hook::async_fn(move |client, _| {
            let sets = sets.clone();
            Box::pin(async move { client.batch_execute(&sets).await.map_err(HookError::Backend) })
        });
        let get_limit = settings.statement_timeout + settings.connect_timeout * 2;
        let pool = Pool::builder(manager)
            .max_size(settings.pool_size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(settings.statement_timeout))
            .create_timeout(Some(settings.connect_timeout))
            .recycle_timeout(Some(settings.connect_timeout))
            .post_create(set_up)
            .build()
            .map_err(|e| Error::new(ErrorKind::Config, format!("making the connection pool: {e}")).caused_by(e))?;
        Ok(Self { pool, schema, limit: settings.statement_timeout, get_limit, place: dialer.describe() })
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Runs one statement on a pooled connection. `@.` in it stands for the schema.
    ///
    /// # Cancel safety
    ///
    /// A dropped write may or may not have happened. The connection of a dropped or timed-out call is thrown away,
    /// since it is still busy.
    pub(crate) async fn query(&self, step: &str, template: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.query_as_it_stands(step, &self.schema.sql(template), params).await
    }

    /// [`Database::query`] for a statement in which nothing is to be replaced.
    pub(crate) async fn query_as_it_stands(
        &self,
        step: &str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let client = self.get(step).await?;
        let rows = self
            .within(step, async {
                let statement = client.prepare_cached(sql).await?;
                client.query(&statement, params).await
            })
            .await;
        // A statement that the server refused leaves the connection idle; anything else leaves it unknown.
        let idle = match &rows {
            Ok(_) => true,
            Err(e) => e.sqlstate().is_some() && e.kind() != ErrorKind::Standby,
        };
        if idle {
            client.give_back();
        }
        rows
    }

    /// [`Database::query`] for a statement that returns at most one row.
    pub(crate) async fn query_opt(
        &self,
        step: &str,
        template: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>> {
        Ok(self.query(step, template, params).await?.into_iter().next())
    }

    /// Ends all pooled connections; calls that wait fail.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    async fn get(&self, step: &str) -> Result<Leased> {
        let Ok(got) = tokio::time::timeout(self.get_limit, self.pool.get()).await else {
            return Err(errors::timed_out(&format!("{step}: connecting to {}", self.place), self.get_limit));
        };
        match got {
            Ok(client) => Ok(Leased { client: Some(client) }),
            Err(PoolError::Backend(e)) if e.is_closed() || errors::is_io(&e) => Err(Error::new(
                ErrorKind::Unreachable,
                format!("{step}: {} cannot be reached: {}", self.place, errors::chain(&e)),
            )
            .todo("see whether the server runs")
            .caused_by(e)),
            Err(PoolError::Backend(e)) => Err(errors::translate(step, e)),
            Err(PoolError::Timeout(kind)) => {
                let what = match kind {
                    deadpool_postgres::TimeoutType::Wait => "no connection of the pool came free in time",
                    deadpool_postgres::TimeoutType::Create => "connecting took too long",
                    deadpool_postgres::TimeoutType::Recycle => "checking a pooled connection took too long",
                };
                Err(Error::new(ErrorKind::Timeout, format!("{step}: {what} ({})", self.place))
                    .todo("see whether the server is overloaded, or raise pool_size"))
            }
            Err(PoolError::Closed) => {
                Err(Error::new(ErrorKind::Stopped, format!("{step}: the pod has ended and closed its connections")))
            }
            Err(PoolError::PostCreateHook(HookError::Backend(e))) => Err(errors::translate(step, e)),
            Err(e) => Err(Error::new(ErrorKind::Database, format!("{step}: {}", errors::chain(&e))).caused_by(e)),
        }
    }

    async fn within<T>(&self, step: &str, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        // The server's own limit comes first; ours is for a server that does not answer.
        let limit = self.limit + self.limit / 4;
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(e)) => Err(errors::translate(step, e)),
            Err(_) => Err(errors::timed_out(step, limit)),
        }
    }
}

/// A pooled connection that is thrown away unless it is given back.
struct Leased {
    client: Option<Object>,
}

impl Leased {
    fn give_back(mut self) {
        self.client = None;
    }
}

impl Deref for Leased {
    type Target = Object;

    #[expect(clippy::expect_used, reason = "it is taken only by give_back and drop, which consume the value")]
    fn deref(&self) -> &Object {
        self.client.as_ref().expect("the connection is there until it is given back")
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            drop(Object::take(client));
        }
    }
}

fn set_statements(settings: &Settings) -> String {
    let half = (settings.lease / 2).as_millis();
    let limit = settings.statement_timeout.as_millis();
    let keepalives = settings.keepalives();
    format!(
        "SET search_path = pg_catalog, pg_temp; SET default_transaction_isolation = 'read committed'; \
         SET default_transaction_read_only = off; SET client_min_messages = warning; \
         SET standard_conforming_strings = on; SET idle_session_timeout = 0; SET jit = off; \
         SET statement_timeout = {limit}; SET lock_timeout = {limit}; \
         SET idle_in_transaction_session_timeout = {half}; SET tcp_user_timeout = {half}; \
         SET tcp_keepalives_idle = {}; SET tcp_keepalives_interval = {}; SET tcp_keepalives_count = {};",
        keepalives.idle, keepalives.interval, keepalives.count
    )
}
