//! Sets up the demo, and clears it all away, whatever happened.

use podlock::throwaway::{Server, ThrowawayError};
use podlock::{Config, Operator};
use tokio::task::JoinHandle;

use super::fleet::Fleet;
use crate::failure::{Failure, note};

/// The database and the pods.
pub(super) struct Stage {
    given_url: Option<String>,
    /// A server that is starting. The demo must wait for it before it can shut it down.
    starting: Option<JoinHandle<Result<Server, ThrowawayError>>>,
    server: Option<Server>,
    schema: String,
    /// Set once there may be a schema to drop.
    to_drop: Option<Config>,
    pub(super) fleet: Fleet,
}

impl Stage {
    pub(super) fn new(given_url: Option<String>) -> Self {
        let schema = format!("podlock_demo_{:08x}", fastrand::u32(..));
        Self { given_url, starting: None, server: None, schema, to_drop: None, fleet: Fleet::new() }
    }

    /// Whether the database was given by the user.
    pub(super) fn is_given(&self) -> bool {
        self.given_url.is_some()
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// Starts a server if no URL was given. Returns the database's URL.
    pub(super) async fn database(&mut self) -> Result<String, Failure> {
        if let Some(url) = &self.given_url {
            return Ok(url.clone());
        }
        let starting = self.starting.insert(tokio::task::spawn_blocking(|| Server::builder().start()));
        let server = starting.await;
        self.starting = None;
        let server = server.map_err(|e| Failure::Lines(format!("starting PostgreSQL: {e}")))?;
        let server = server.map_err(|e| Failure::Lines(e.to_string()))?;
        let url = server.url("postgres");
        self.server = Some(server);
        Ok(url)
    }

    /// From here on, the schema is dropped at the end, unless the database is gone anyway.
    pub(super) fn will_fill(&mut self, config: &Config) {
        if self.is_given() {
            self.to_drop = Some(config.clone());
        }
    }

    /// Ends every process and removes every trace. Reports what it could not remove.
    pub(super) async fn clear(self) {
        self.fleet.end().await;
        if let Some(config) = self.to_drop
            && let Err(error) = drop_schema(&config, &self.schema).await
        {
            note(&format!("schema {} was left behind: {error}", self.schema));
        }
        let server = match (self.server, self.starting) {
            (Some(server), _) => Some(server),
            (None, Some(starting)) => starting.await.ok().and_then(Result::ok),
            (None, None) => None,
        };
        // Blocks until the server is down and its directory is gone.
        let _ = tokio::task::spawn_blocking(move || drop(server)).await;
    }
}

async fn drop_schema(config: &Config, schema: &str) -> podlock::Result<()> {
    match Operator::connect(config).await {
        Ok(operator) => operator.drop_schema(schema).await,
        // Nothing was created yet.
        Err(error) if error.kind() == podlock::ErrorKind::SchemaMissing => Ok(()),
        Err(error) => Err(error),
    }
}
