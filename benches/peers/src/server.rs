//! The private server, a database for each system and round, and what the server counted there.

use std::time::{Duration, Instant};

use podlock::throwaway::Server as Postgres;
use tokio_postgres::{Client, NoTls};

use crate::Result;
use crate::child::SOON;
use crate::system::System;

/// How often a database is asked whether a job has not ended yet.
const POLL: Duration = Duration::from_millis(5);

pub(crate) struct Server {
    // Above the server, and so closed before it stops.
    admin: Client,
    postgres: Postgres,
}

/// What the server counted for a database.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) statements: f64,
    pub(crate) commits: f64,
}

impl Server {
    /// A server whose settings are the defaults, but for the counting of statements and room for connections.
    pub(crate) async fn start(fsync: bool) -> Result<Self> {
        let postgres = tokio::task::spawn_blocking(move || {
            Postgres::builder()
                .setting("max_connections", "100")
                .setting("shared_buffers", "128MB")
                .setting("shared_preload_libraries", "pg_stat_statements")
                .setting("pg_stat_statements.track", "top")
                .setting("fsync", if fsync { "on" } else { "off" })
                .setting("full_page_writes", if fsync { "on" } else { "off" })
                .start()
        })
        .await??;
        let admin = connect(&postgres.url("postgres")).await?;
        admin.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
        Ok(Self { postgres, admin })
    }

    pub(crate) async fn version(&self) -> Result<String> {
        Ok(self.admin.query_one("SHOW server_version", &[]).await?.get(0))
    }

    /// An empty database.
    pub(crate) async fn database(&self, name: &str) -> Result<Database> {
        self.admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        Ok(Database { name: name.to_owned(), url: self.postgres.url(name) })
    }

    /// Removes it.
    pub(crate) async fn drop(&self, database: Database) -> Result<()> {
        self.until_alone(&database).await?;
        Ok(self.admin.batch_execute(&format!("DROP DATABASE {}", database.name)).await?)
    }

    /// Waits until nobody is connected to a database.
    async fn until_alone(&self, database: &Database) -> Result<()> {
        const LEFT: &str =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
        let began = Instant::now();
        while self.admin.query_one(LEFT, &[&database.name]).await?.get::<_, i64>(0) > 0 {
            if began.elapsed() > SOON {
                return Err(format!("{}: a connection is left after {SOON:?}", database.name).into());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Writes what earlier phases left to write, so that a later one does not pay for it.
    pub(crate) async fn rest(&self) -> Result<()> {
        Ok(self.admin.batch_execute("CHECKPOINT").await?)
    }

    /// What was counted up to now. A backend reports its commits when it ends, so this waits until none is left.
    pub(crate) async fn counted(&self, database: &Database) -> Result<Counted> {
        const SQL: &str = "SELECT (SELECT coalesce(sum(s.calls), 0)::float8 FROM pg_stat_statements s \
                                     JOIN pg_database d ON d.oid = s.dbid \
                                    WHERE d.datname = $1 AND s.query NOT LIKE '%bench_peers_poll%'), \
                                  (SELECT xact_commit::float8 FROM pg_stat_database WHERE datname = $1)";
        self.until_alone(database).await?;
        let row = self.admin.query_one(SQL, &[&database.name]).await?;
        Ok(Counted { statements: row.get(0), commits: row.get(1) })
    }
}

/// The database of a system, in one round.
pub(crate) struct Database {
    name: String,
    pub(crate) url: String,
}

impl Database {
    /// Waits until no job is left, and says when that was, and how often it asked.
    pub(crate) async fn wait_for_the_end(&self, system: System) -> Result<(Instant, u32)> {
        let client = connect(&self.url).await?;
        let statement = client.prepare(&system.any_left()).await?;
        let (began, mut asked) = (Instant::now(), 0);
        loop {
            let unfinished: bool = client.query_one(&statement, &[]).await?.get(0);
            asked += 1;
            if !unfinished {
                return Ok((Instant::now(), asked));
            }
            if began.elapsed() > SOON {
                return Err(format!("{system}: jobs are left after {SOON:?}").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// How many jobs have not ended yet.
    pub(crate) async fn left(&self, system: System) -> Result<u64> {
        let count: i64 = connect(&self.url).await?.query_one(&system.left(), &[]).await?.get(0);
        Ok(u64::try_from(count)?)
    }

    /// An error if the system keeps its jobs, and not so many of them have ended well.
    pub(crate) async fn check(&self, system: System, jobs: u64) -> Result<()> {
        let Some(sql) = system.succeeded() else { return Ok(()) };
        let count: i64 = connect(&self.url).await?.query_one(sql, &[]).await?.get(0);
        if u64::try_from(count)? == jobs { Ok(()) } else { Err(format!("{count} of {jobs} jobs ended well").into()) }
    }
}

/// A plain connection, whose driver ends with the runtime.
async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            eprintln!("bench-peers: a connection ended: {e}");
        }
    });
    Ok(client)
}
