//! The schema's versions, brought up to date by refinery under a lock of ours.
//!
//! refinery takes no lock, so fifty pods that boot at once would trip over each other. The lock is tried for, never
//! waited for: a waiting statement holds a snapshot, and `CREATE INDEX CONCURRENTLY` in a migration would wait for it.

use std::sync::Arc;
use std::time::Duration;

use refinery::{Migration, Runner};
use serde::Serialize;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::dial::Dialer;
use super::errors;
use super::schema::Schema;
use super::session::{Opener, Role, Session};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};

mod embedded {
    refinery::embed_migrations!("migrations");
}

const HISTORY_TABLE: &str = "studio_schema_history";
/// How long another's migration is waited for, and how long one statement of ours may take.
const LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(50);

/// One version of the schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Version {
    /// Its number; the first is 1.
    pub version: i32,
    /// Its name.
    pub name: String,
    /// Whether the database has it.
    pub applied: bool,
}

/// Brings the schema of `config` up to date, creating it if need be. Safe when many do it at once.
///
/// Returns the versions that this call applied; none if another was faster or nothing was due.
///
/// # Errors
///
/// As connecting; [`ErrorKind::Forbidden`] if the role may not create the schema or its tables;
/// [`ErrorKind::SchemaIncompatible`] if the database is newer than this binary, or an applied version was changed;
/// [`ErrorKind::Timeout`] if another migrates for longer than a minute.
///
/// # Cancel safety
///
/// A dropped call ends its session; each version is applied in one transaction, wholly or not at all.
pub async fn up(config: &Config) -> Result<Vec<Version>> {
    let mut session = open(config).await?;
    let applied = up_on(&mut session).await;
    session.close().await;
    applied
}

/// Every version that this binary knows, and whether the database has it.
///
/// # Errors
///
/// As connecting.
///
/// # Cancel safety
///
/// Reads only.
pub async fn status(config: &Config) -> Result<Vec<Version>> {
    let session = open(config).await?;
    let at = applied_version(&session).await?.unwrap_or(0);
    session.close().await;
    Ok(known().iter().map(|m| version_of(m, m.version() <= at)).collect())
}

/// The whole schema as one SQL script, for those who run it by hand with `psql`. Pods then find it up to date.
#[must_use]
pub fn sql(schema: &str) -> String {
    let quoted = Schema::new(schema).quoted().to_owned();
    let mut script = format!(
        "BEGIN;\nCREATE SCHEMA IF NOT EXISTS {quoted};\nSET LOCAL search_path = {quoted}, pg_temp;\n\
         CREATE TABLE {HISTORY_TABLE} (version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255));\n"
    );
    for migration in known() {
        script.push_str(&format!(
            "\n{}\nINSERT INTO {HISTORY_TABLE} (version, name, applied_on, checksum) VALUES ({}, '{}', \
             pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '{}');\n",
            migration.sql().unwrap_or_default().trim_end(),
            migration.version(),
            migration.name(),
            migration.checksum()
        ));
    }
    script.push_str("COMMIT;\n");
    script
}

/// [`up`] on a session that is open.
pub(crate) async fn up_on(session: &mut Session) -> Result<Vec<Version>> {
    if is_current(session).await? {
        return Ok(Vec::new());
    }
    lock(session).await?;
    let applied = apply(session).await;
    // Closing the session would do it too, but not before the next pod's first try.
    let unlocked = session
        .query(
            "giving the migration lock back",
            "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended($1, 3))",
            &[(&session.schema().name().to_owned(), Type::TEXT)],
        )
        .await;
    let applied = applied?;
    unlocked?;
    Ok(applied)
}

/// For a pod that was told not to migrate: the schema must be there and at the version of this binary.
pub(crate) async fn require_current(session: &Session) -> Result<()> {
    if is_current(session).await? {
        return Ok(());
    }
    let schema = session.schema().name();
    Err(Error::new(ErrorKind::SchemaMissing, format!("schema {schema:?} has no tables of podlock, or older ones"))
        .left("nothing was registered")
        .todo("run `podlock migrate up`, or let the pod migrate itself"))
}

async fn open(config: &Config) -> Result<Session> {
    let settings = Arc::new(config.validate()?);
    let dialer = Dialer::new(config, &settings)?;
    Opener { dialer, settings, schema: Schema::new(&config.schema), pod: None }.open(Role::Migrate).await
}

async fn is_current(session: &Session) -> Result<bool> {
    let latest = known().iter().map(Migration::version).max().unwrap_or(0);
    match applied_version(session).await? {
        None => Ok(false),
        Some(at) if at > latest => Err(Error::new(
            ErrorKind::SchemaIncompatible,
            format!("schema {:?} is at version {at}, and this binary knows {latest}", session.schema().name()),
        )
        .left("nothing was changed")
        .todo("run a newer version of the service")),
        Some(at) => Ok(at == latest),
    }
}

async fn applied_version(session: &Session) -> Result<Option<i32>> {
    const EXISTS: &str = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
    let table = session.schema().sql(&format!("@.{HISTORY_TABLE}"));
    let step = "reading the schema's version";
    if !session.query_one(step, EXISTS, &[(&table, Type::TEXT)]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let newest = format!("SELECT pg_catalog.max(version) FROM @.{HISTORY_TABLE}");
    Ok(session.query_one(step, &newest, &[]).await?.get(0))
}

async fn lock(session: &Session) -> Result<()> {
    const TRY: &str = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 3))";
    let schema = session.schema().name().to_owned();
    let give_up = Instant::now() + LIMIT;
    loop {
        let row = session.query_one("taking the migration lock", TRY, &[(&schema, Type::TEXT)]).await?;
        if row.get::<_, bool>(0) {
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("another has been migrating schema {schema:?} for {LIMIT:?}"),
            )
            .left("nothing was changed")
            .todo("see pg_stat_activity for podlock/-/migrate"));
        }
        tokio::time::sleep(RETRY.mul_f64(0.5 + fastrand::f64())).await;
    }
}

async fn apply(session: &mut Session) -> Result<Vec<Version>> {
    const CREATE: &str = "SELECT pg_catalog.to_regnamespace($1) IS NOT NULL";
    let quoted = session.schema().quoted().to_owned();
    let exists = session.query_one("looking for the schema", CREATE, &[(&quoted, Type::TEXT)]).await?;
    if !exists.get::<_, bool>(0) {
        session.execute_batch("creating the schema", &format!("CREATE SCHEMA IF NOT EXISTS {quoted}")).await?;
    }
    let limit = LIMIT.as_millis();
    let path =
        format!("SET search_path = {quoted}, pg_temp; SET statement_timeout = {limit}; SET lock_timeout = {limit}");
    session.execute_batch("preparing to migrate", &path).await?;
    let report = match tokio::time::timeout(LIMIT, runner().run_async(session.client_mut())).await {
        Ok(Ok(report)) => report,
        Ok(Err(e)) => return Err(refused(e)),
        Err(_) => {
            return Err(errors::timed_out("migrating", LIMIT).left("the version that was under way is rolled back"));
        }
    };
    session.execute_batch("ending the migration", "SET search_path = pg_catalog, pg_temp").await?;
    let applied: Vec<_> = report.applied_migrations().iter().map(|m| version_of(m, true)).collect();
    for version in &applied {
        tracing::info!(target: "podlock", version = version.version, name = version.name, "schema migrated");
    }
    Ok(applied)
}

fn refused(error: refinery::Error) -> Error {
    let text = errors::chain(&error);
    let divergent =
        matches!(error.kind(), refinery::error::Kind::DivergentVersion(..) | refinery::error::Kind::MissingVersion(..));
    if divergent {
        return Error::new(ErrorKind::SchemaIncompatible, format!("migrating: {text}"))
            .left("nothing was changed")
            .todo("use the binary that made this schema, or another schema")
            .caused_by(error);
    }
    if let Some(code) = sqlstate_of(&error) {
        let forbidden = code == "42501";
        let kind = if forbidden { ErrorKind::Forbidden } else { ErrorKind::Database };
        return Error::new(kind, format!("migrating: {text}"))
            .left("the version that was under way is rolled back")
            .todo("run `podlock migrate up` as a role that may create tables there, or `podlock migrate sql` by hand")
            .with_sqlstate(&code)
            .caused_by(error);
    }
    Error::new(ErrorKind::Database, format!("migrating: {text}"))
        .left("the version that was under way is rolled back")
        .todo("read the server's log, then migrate again")
        .caused_by(error)
}

fn sqlstate_of(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(pg) = e.downcast_ref::<tokio_postgres::Error>() {
            return pg.code().map(|c| c.code().to_owned());
        }
        cause = e.source();
    }
    None
}

fn runner() -> Runner {
    let mut runner = embedded::migrations::runner().set_abort_missing(false);
    runner.set_migration_table_name(HISTORY_TABLE);
    runner
}

fn known() -> Vec<Migration> {
    let mut known = embedded::migrations::runner().get_migrations().clone();
    known.sort_by_key(Migration::version);
    known
}

fn version_of(migration: &Migration, applied: bool) -> Version {
    Version { version: migration.version(), name: migration.name().to_owned(), applied }
}
