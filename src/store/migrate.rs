//! Applies the schema's versions with refinery, under a lock of podlock's own.
//!
//! refinery takes no lock, so fifty pods that boot at once would disturb each other. The lock is tried again and
//! again, and never waited for. A waiting statement holds a snapshot, and `CREATE INDEX CONCURRENTLY` in a migration
//! would wait for that snapshot.
//!
//! Old and new binaries run side by side during a rollout. So a binary works with a schema that is newer than it
//! knows, unless the schema forbids that (`studio_schema_compat`).
//!
//! The short statements here name the schema of everything that they call. After a migration that failed, the
//! session's `search_path` still names the schema of the tables.

use std::time::Duration;

use refinery_core::{Migration, Runner, Target};
use serde::Serialize;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::connections;
use super::creators;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::pg::errors;
use crate::pg::pooler;
use crate::pg::reply::Reply;
use crate::pg::schema::{Schema, quote_identifier};
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::store::role::Role;

/// Makes the table of the files in `migrations/`: their names without `.sql`, and their texts.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        const FILES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/", $name, ".sql")))),*];
    };
}
files!(
    "V1__spine",
    "V2__compatibility",
    "V3__stalled",
    "V4__write_order",
    "V5__streams",
    "V6__poison_and_shares",
    "V7__outputs",
    "V8__retention",
    "V9__guards",
    "V10__commit_timeouts",
    "V11__required_sources",
    "V12__causes",
    "V13__conditions",
    "V14__retention_passes_over",
    "V15__failed_runs",
    "V16__bounds_of_runs",
    "V17__bounds_of_attempts",
    "V18__bounds_of_pods",
    "V19__bounds_of_old_rows",
    "V20__runs_of_a_key",
    "V21__evicted_once",
    "V22__notices",
    "V23__names_pinned",
    "V24__log_order",
    "V25__unequal_settings",
    "V26__keys_of_slashed_schemas",
    "V27__foreign_locks",
    "V28__comments",
    "V29__pod_channels",
    "V30__cordon_and_move",
    "V31__stream_readers",
    "V32__workers",
    "V33__quiet_watch",
    "V34__samples",
    "V35__sessions",
    "V36__reliability",
    "V37__backlog",
    "V38__webhooks",
);

const HISTORY_TABLE: &str = "studio_schema_history";
/// How long this waits for another session's migration, and how long one of our statements may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a migration waits for a lock at a time. While it waits, every later session that wants the same table
/// waits behind it.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
/// The SQLSTATE of a lock that was not granted in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";
const RETRY: Duration = Duration::from_millis(50);
/// From this version on, migrations are templates: [`Schema::migration`]. Earlier ones find their names by
/// `search_path`.
pub(super) const TEMPLATES_FROM: i32 = 23;

/// One version of the schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Version {
    /// The version's number. The first is 1.
    pub version: i32,
    /// The version's name.
    pub name: String,
    /// Whether the database has it.
    pub applied: bool,
    /// Whether this binary knows the version. A version that it does not know was applied by a newer binary.
    pub known: bool,
}

/// How a starting pod treats the schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Whether the pod brings the schema up to date.
    apply: bool,
    /// The newest version that the pod knows.
    knows: i32,
}

impl Policy {
    pub(crate) fn of(config: &Config) -> Self {
        let newest = newest();
        Self { apply: config.migrate, knows: config.schema_knows.map_or(newest, |v| v.min(newest)) }
    }
}

/// How the database's schema compares with this binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SchemaStatus {
    /// The schema has every version that the binary knows, and perhaps more.
    Usable,
    /// The schema lacks versions. `at` is its version; 0 if it has none.
    Behind { at: i32 },
}

/// Brings the schema of `config` up to date, and creates it if needed. Several calls at once are safe.
///
/// Returns the versions that this call applied. The list is empty if another call was faster, or if there was nothing
/// to apply.
///
/// # Errors
///
/// Those of connecting. [`ErrorKind::Forbidden`] if the role may not create the schema or its tables.
/// [`ErrorKind::SchemaIncompatible`] if the database excludes this binary, or has other migrations under the same
/// versions. [`ErrorKind::Timeout`] if another session migrates for longer than a minute.
///
/// # Cancel safety
///
/// A dropped call ends its session. Each version is applied in one transaction, wholly or not at all.
pub async fn up(config: &Config) -> Result<Vec<Version>> {
    let mut session = open(config).await?;
    let applied = up_on(&mut session, Policy::of(config)).await;
    session.close().await;
    applied
}

/// Returns every version that this binary knows or the database has, the oldest first.
///
/// # Errors
///
/// Those of connecting.
///
/// # Cancel safety
///
/// Reads only.
pub async fn status(config: &Config) -> Result<Vec<Version>> {
    let session = open(config).await?;
    let history = history(&session).await?;
    session.close().await;
    let mut versions: Vec<_> = embedded(Policy::of(config).knows).iter().map(|m| version_of(m, false)).collect();
    for (version, name) in history {
        match versions.iter_mut().find(|v| v.version == version) {
            Some(known) => known.applied = true,
            None => versions.push(Version { version, name, applied: true, known: false }),
        }
    }
    versions.sort_by_key(|v| v.version);
    Ok(versions)
}

/// Returns what an administrator should change about the schema, one sentence each: which other roles than the owner
/// may create objects in it.
///
/// # Errors
///
/// Those of connecting.
///
/// # Cancel safety
///
/// Reads only.
pub async fn warnings(config: &Config) -> Result<Vec<String>> {
    let session = open(config).await?;
    let creators = creators::creators(&session).await;
    session.close().await;
    Ok(creators::advice(&config.schema, &creators?).into_iter().collect())
}

/// The newest version that this binary knows.
#[must_use]
pub fn newest() -> i32 {
    embedded(i32::MAX).last().map_or(0, Migration::version)
}

/// Returns the schema as one SQL script, to run by hand with `psql`. It has all versions after `from`, the version of
/// the database (0: none). The script is one transaction, and refuses a database at another version. Pods find the
/// schema up to date afterwards.
#[must_use]
pub fn sql(schema: &str, from: i32) -> String {
    let schema = Schema::new(schema);
    let quoted = schema.quoted();
    let history = history_table(&schema);
    let mut tag = "$podlock$".to_owned();
    while schema.name().contains(&tag) {
        tag.insert(tag.len() - 1, '_');
    }
    // The script may wait for a lock, and other sessions then wait behind it. This limits that wait.
    let mut script = "BEGIN;\nSET LOCAL lock_timeout = '2s';\n".to_owned();
    if from <= 0 {
        // The script checks first whether the schema exists: its owner need not have the right to create one.
        let literal = quoted.replace('\'', "''");
        script.push_str(&format!(
            "DO {tag} BEGIN\n    IF pg_catalog.to_regnamespace('{literal}') IS NULL THEN\n        CREATE SCHEMA \
             {quoted};\n    END IF;\nEND {tag};\nCREATE TABLE {history} (version int4 PRIMARY KEY, name \
             varchar(255), applied_on varchar(255), checksum varchar(255));\n"
        ));
    } else {
        // The roster is locked before the log, in the order in which burials lock them.
        let pods = schema.sql("@.studio_pods");
        script.push_str(&format!(
            "LOCK TABLE {history};\nLOCK TABLE {pods};\nDO {tag} BEGIN\n    IF (SELECT pg_catalog.max(version) FROM \
             {history}) IS DISTINCT FROM {from} THEN\n        RAISE EXCEPTION 'the schema is not at version {from}'\n\
             \x20           USING HINT = 'podlock migrate status shows its versions; give the newest applied one \
             to --from.';\n    END IF;\nEND {tag};\n"
        ));
    }
    for migration in known(i32::MAX, &schema).iter().filter(|m| m.version() > from) {
        script.push_str(&format!(
            "\nSET LOCAL search_path = {quoted}, pg_temp;\n{}\nINSERT INTO {history} (version, name, applied_on, \
             checksum) VALUES ({}, '{}', pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', \
             'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
             '{}');\n",
            migration.sql().unwrap_or_default().trim_end(),
            migration.version(),
            migration.name(),
            migration.checksum()
        ));
    }
    script.push_str("COMMIT;\n");
    script
}

/// Every function of the schema that pods or operators may call: all except a trigger's function. A test compares the
/// list with the schema.
const FUNCTIONS: [&str; 32] = [
    "studio_lock_key(text)",
    "studio_witness_key(text)",
    "studio_channel()",
    "studio_lock(bigint, integer)",
    "studio_watch(bigint, bigint, integer, integer)",
    "studio_watch(bigint, bigint, integer, integer, boolean)",
    "studio_holds(bigint, integer)",
    "studio_append_event(text, text, uuid, text, jsonb)",
    "studio_drain(text)",
    "studio_cordon(text)",
    "studio_uncordon(text)",
    "studio_suspect(uuid, bigint, text, integer)",
    "studio_end_backends(uuid, bigint, text, text)",
    "studio_evict(text)",
    "studio_stream_channel()",
    "studio_may_prune(interval)",
    "studio_prune_runs(text[], interval, integer)",
    "studio_prune_sessions(interval, integer)",
    "studio_prune_events(interval, bigint, bigint, jsonb, text, uuid)",
    "studio_prune_named_runs(uuid[], interval, integer)",
    "studio_prune_named_sessions(uuid[], interval)",
    "studio_fence_check(uuid, uuid, bigint, integer)",
    "studio_release(uuid)",
    "studio_note_cause(uuid, text)",
    "studio_note_waits(jsonb, text)",
    "studio_note_failures(text, uuid, text[], bigint[], uuid[], text[])",
    "studio_raise_fence(bigint)",
    "studio_limit_transaction(integer)",
    "studio_note_foreign_locks(jsonb, text)",
    "studio_prune_hours(interval, integer)",
    "studio_add_sample_days(integer)",
    "studio_drop_sample_day(interval)",
];

/// What a role may do with podlock's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Exactly the rights that a pod needs. The role cannot change a table's definition or truncate a table. It can
    /// delete history only with the functions that prune rows which ended more than an hour ago.
    Pod,
    /// Read only, for people and dashboards.
    Read,
}

/// Returns a SQL script that gives `role` the least rights for `access`. Run it as the schema's owner, and again after
/// each migration, because a new version may bring new tables.
#[must_use]
pub fn grants(schema: &str, role: &str, access: Access) -> String {
    let (schema, role) = (Schema::new(schema), quote_identifier(role));
    let mut script = format!("BEGIN;\nGRANT USAGE ON SCHEMA {} TO {role};\n", schema.quoted());
    let mut grant = |rights: &str, what: &str| {
        script.push_str(&schema.sql(&format!("GRANT {rights} ON {what} TO {role};\n")));
    };
    for readable in [
        HISTORY_TABLE,
        "studio_schema_compat",
        "studio_pod_status",
        "studio_orphans",
        "studio_foreign_locks",
        "studio_worker_status",
        "studio_pod_history",
        "studio_backlog",
    ] {
        grant("SELECT", &format!("@.{readable}"));
    }
    for (table, rights) in [
        ("studio_pods", "SELECT, INSERT, UPDATE, DELETE"),
        ("studio_pod_sessions", "SELECT, INSERT, UPDATE"),
        ("studio_pod_events", "SELECT, INSERT"),
        ("studio_runs", "SELECT, INSERT, UPDATE"),
        ("studio_run_attempts", "SELECT, INSERT, UPDATE"),
        ("studio_run_chunks", "SELECT, INSERT, DELETE"),
        ("studio_run_resets", "SELECT, INSERT"),
        ("studio_stream_readers", "SELECT, INSERT, UPDATE, DELETE"),
        ("studio_workers", "SELECT, INSERT, UPDATE, DELETE"),
        ("studio_worker_tombstones", "SELECT, INSERT, UPDATE, DELETE"),
        ("studio_worker_pods", "SELECT, INSERT, UPDATE, DELETE"),
        ("studio_worker_monitor", "SELECT, INSERT, UPDATE"),
        ("studio_pod_heartbeats", "SELECT, INSERT"),
        ("studio_pod_heartbeats_hourly", "SELECT, INSERT, UPDATE"),
        ("studio_pod_reliability", "SELECT, INSERT, UPDATE, DELETE"),
        ("studio_roll_ups", "SELECT, UPDATE"),
        ("studio_sample_writers", "SELECT, INSERT, UPDATE, DELETE"),
        ("studio_webhooks", "SELECT, INSERT, UPDATE"),
    ] {
        grant(if access == Access::Pod { rights } else { "SELECT" }, &format!("@.{table}"));
    }
    if access == Access::Pod {
        // LOCK TABLE needs this right. The table stays empty.
        grant("UPDATE", "@.studio_log_order");
        for sequence in ["studio_fence", "studio_beat"] {
            grant("USAGE", &format!("SEQUENCE @.{sequence}"));
        }
        // Functions are granted by name: the schema may also have functions of the service, and podlock must not grant
        // those.
        for function in FUNCTIONS {
            grant("EXECUTE", &format!("FUNCTION @.{function}"));
        }
    }
    script.push_str("COMMIT;\n");
    script
}

/// Checks or updates the schema when a pod starts.
pub(crate) async fn prepare(session: &mut Session, policy: Policy) -> Result<()> {
    if policy.apply {
        return up_on(session, policy).await.map(drop);
    }
    let SchemaStatus::Behind { at } = schema_status(session, policy.knows).await? else { return Ok(()) };
    let (schema, knows) = (session.schema().name(), policy.knows);
    let (kind, what) = if at == 0 {
        (ErrorKind::SchemaMissing, format!("schema {schema:?} has no tables of podlock"))
    } else {
        (ErrorKind::SchemaIncompatible, format!("schema {schema:?} is at version {at}, and this binary needs {knows}"))
    };
    Err(Error::new(kind, what)
        .state("nothing was registered")
        .help("run `podlock migrate up`, or let the pod migrate itself"))
}

/// The same as [`up`], on a session that is open.
async fn up_on(session: &mut Session, policy: Policy) -> Result<Vec<Version>> {
    if schema_status(session, policy.knows).await? == SchemaStatus::Usable {
        return Ok(Vec::new());
    }
    lock(session).await?;
    let applied = up_under_lock(session, policy.knows).await;
    // Closing the session would release the lock too, but perhaps after the next pod's first try.
    let unlocked = session
        .query(
            "giving the migration lock back",
            "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended($1, 3)) AS unlocked",
            &[(&session.schema().name().to_owned(), Type::TEXT)],
        )
        .await;
    let applied = applied?;
    unlocked?;
    Ok(applied)
}

/// The former holder of the lock may have applied everything, and that schema may exclude this binary.
async fn up_under_lock(session: &mut Session, knows: i32) -> Result<Vec<Version>> {
    if schema_status(session, knows).await? == SchemaStatus::Usable {
        return Ok(Vec::new());
    }
    apply(session, knows).await
}

async fn open(config: &Config) -> Result<Session> {
    let opener = connections::opener(config, &config.validate()?, None)?;
    pooler::open_proven(&opener, Role::Migrate, "nothing was changed").await
}

async fn schema_status(session: &Session, knows: i32) -> Result<SchemaStatus> {
    let at = history(session).await?.last().map_or(0, |(version, _)| *version);
    if at < knows {
        return Ok(SchemaStatus::Behind { at });
    }
    if at == knows {
        return Ok(SchemaStatus::Usable);
    }
    const USABLE_FROM: &str = "SELECT usable_from FROM @.studio_schema_compat";
    let usable_from: i32 =
        session.query_one("reading which binaries the schema admits", USABLE_FROM, &[]).await?.at("usable_from")?;
    if usable_from <= knows {
        return Ok(SchemaStatus::Usable);
    }
    Err(Error::new(
        ErrorKind::SchemaIncompatible,
        format!(
            "schema {:?} is at version {at} and admits binaries that know version {usable_from} or newer; \
             this one knows {knows}",
            session.schema().name()
        ),
    )
    .state("nothing was changed")
    .help("run a newer version of the service"))
}

/// The versions that the database has, the oldest first.
async fn history(session: &Session) -> Result<Vec<(i32, String)>> {
    const EXISTS: &str = "SELECT pg_catalog.to_regclass($1) IS NOT NULL AS found";
    let table = history_table(session.schema());
    let step = "reading the schema's version";
    if !session.query_one(step, EXISTS, &[(&table, Type::TEXT)]).await?.at::<bool>("found")? {
        return Ok(Vec::new());
    }
    let all = format!("SELECT version, name FROM @.{HISTORY_TABLE} ORDER BY version");
    session.query(step, &all, &[]).await?.iter().map(|row| Ok((row.at("version")?, row.at("name")?))).collect()
}

async fn lock(session: &Session) -> Result<()> {
    const TRY: &str = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 3)) AS granted";
    let schema = session.schema().name().to_owned();
    let give_up = Instant::now() + LIMIT;
    loop {
        let row = session.query_one("taking the migration lock", TRY, &[(&schema, Type::TEXT)]).await?;
        if row.at::<bool>("granted")? {
            return Ok(());
        }
        if Instant::now() >= give_up {
            let holder = holder(session).await?;
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("the migration lock of schema {schema:?} has been held for {LIMIT:?} by {holder}"),
            )
            .state("nothing was changed")
            .help("wait if that is a migration, and migrate again; else end that process"));
        }
        tokio::time::sleep(RETRY.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Describes who holds the migration lock. Any role of the database can take it.
async fn holder(session: &Session) -> Result<String> {
    const SQL: &str = sql!("find_migration_lock_holder", "advisory_lock", "lock_key");
    let schema = session.schema().name().to_owned();
    let rows = session.query("looking for the lock's holder", SQL, &[(&schema, Type::TEXT)]).await?;
    rows.first().map_or(Ok("somebody who has just let go".to_owned()), |row| row.at("holder"))
}

async fn apply(session: &mut Session, knows: i32) -> Result<Vec<Version>> {
    const EXISTS: &str = "SELECT pg_catalog.to_regnamespace($1) IS NOT NULL AS found";
    let quoted = session.schema().quoted().to_owned();
    let exists = session.query_one("looking for the schema", EXISTS, &[(&quoted, Type::TEXT)]).await?;
    if !exists.at::<bool>("found")? {
        session.execute_batch("creating the schema", &format!("CREATE SCHEMA IF NOT EXISTS {quoted}")).await?;
    }
    let (limit, lock) = (LIMIT.as_millis(), LOCK_LIMIT.as_millis());
    let path =
        format!("SET search_path = {quoted}, pg_temp; SET statement_timeout = {limit}; SET lock_timeout = {lock}");
    session.execute_batch("preparing to migrate", &path).await?;
    let runner = runner(knows, session.schema());
    let give_up = Instant::now() + LIMIT;
    let mut applied = Vec::new();
    loop {
        let run = tokio::time::timeout(LIMIT, runner.run_async(session.client_mut())).await;
        let Ok(run) = run else {
            return Err(errors::timed_out("migrating", LIMIT).state("the version that was under way is rolled back"));
        };
        let report = run.as_ref().map_or_else(|e| e.report(), Some);
        applied.extend(report.iter().flat_map(|r| r.applied_migrations()).map(|m| version_of(m, true)));
        match run {
            Ok(_) => break,
            // Another session reads or writes a table that this version changes.
            Err(e) if sqlstate_of(&e).as_deref() == Some(LOCK_NOT_AVAILABLE) && Instant::now() < give_up => {
                tracing::debug!(target: "podlock", error = %chain(&e), "a migration waits for a lock; trying again");
                tokio::time::sleep(LOCK_LIMIT.mul_f64(0.5 + fastrand::f64())).await;
            }
            Err(e) => return Err(refused(e)),
        }
    }
    session.execute_batch("ending the migration", "SET search_path = pg_catalog, pg_temp").await?;
    for version in &applied {
        tracing::info!(target: "podlock", version = version.version, name = version.name, "schema migrated");
    }
    Ok(applied)
}

fn refused(error: refinery_core::Error) -> Error {
    let text = chain(&error);
    let divergent = matches!(
        error.kind(),
        refinery_core::error::Kind::DivergentVersion(..) | refinery_core::error::Kind::MissingVersion(..)
    );
    if divergent {
        return Error::new(ErrorKind::SchemaIncompatible, format!("migrating: {text}"))
            .state("nothing was changed")
            .help("use the binary that made this schema, or another schema")
            .caused_by(error);
    }
    if let Some(code) = sqlstate_of(&error) {
        let forbidden = code == "42501";
        // Duplicates of a schema, function, relation, type or other object: a foreign one has a name of podlock's.
        let is_taken = ["42P06", "42723", "42P07", "42710"].contains(&code.as_str());
        let kind = if forbidden { ErrorKind::Forbidden } else { ErrorKind::Database };
        return Error::new(kind, format!("migrating: {text}"))
            .state("the version that was under way is rolled back")
            .help(match (forbidden, is_taken) {
                (true, _) => {
                    "run `podlock migrate up` as a role that may create tables there, or `podlock migrate sql` by hand"
                }
                (_, true) => {
                    "an object that podlock did not make has a name that podlock needs: drop or rename that object, or \
                     give podlock a schema of its own (PODLOCK_SCHEMA), then run `podlock migrate up` again"
                }
                _ => "read the server's message and its log, then run `podlock migrate up` again",
            })
            .with_sqlstate(&code)
            .caused_by(error);
    }
    Error::new(ErrorKind::Database, format!("migrating: {text}"))
        .state("the version that was under way is rolled back")
        .help("read the server's log, then migrate again")
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

fn runner(knows: i32, schema: &Schema) -> Runner {
    let mut runner = Runner::new(&known(knows, schema)).set_abort_missing(false).set_target(Target::Version(knows));
    // The table is named with its schema: from TEMPLATES_FROM on, a migration removes the schema from the search_path.
    runner.set_migration_table_name(history_table(schema));
    runner
}

fn history_table(schema: &Schema) -> String {
    schema.sql(&format!("@.{HISTORY_TABLE}")).to_string()
}

/// The versions up to `newest` that this binary knows, the oldest first, with the SQL that runs on this schema. The
/// checksum of a template is that of this SQL. So a schema that was renamed afterwards is refused: its functions still
/// name the old schema.
#[expect(clippy::expect_used, reason = "the name of a file, which refinery has read before")]
fn known(newest: i32, schema: &Schema) -> Vec<Migration> {
    let mut known = embedded(newest);
    for migration in known.iter_mut().filter(|m| m.version() >= TEMPLATES_FROM) {
        let sql = schema.migration(migration.sql().unwrap_or_default());
        let name = format!("V{}__{}", migration.version(), migration.name());
        *migration = Migration::unapplied(&name, &sql).expect("a name that was read from this form before");
    }
    known
}

/// The versions up to `newest` that this binary knows, the oldest first, with the text of the files.
#[expect(clippy::expect_used, reason = "a test reads every name")]
fn embedded(newest: i32) -> Vec<Migration> {
    let read = |(name, sql): &(&str, &str)| Migration::unapplied(name, sql).expect("a name of this form");
    let mut known: Vec<_> = FILES.iter().map(read).filter(|m| m.version() <= newest).collect();
    known.sort_by_key(Migration::version);
    known
}

fn version_of(migration: &Migration, applied: bool) -> Version {
    Version { version: migration.version(), name: migration.name().to_owned(), applied, known: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is missing in the list would never be applied, and nothing else would report that.
    #[test]
    fn each_file_of_migrations_is_embedded_and_their_versions_have_no_gap() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|file| file.expect("a file").file_name().into_string().expect("text"))
            .collect();
        let mut listed: Vec<String> = FILES.iter().map(|(name, _)| format!("{name}.sql")).collect();
        there.sort();
        listed.sort();
        assert_eq!(listed, there);
        let versions: Vec<i32> = embedded(i32::MAX).iter().map(Migration::version).collect();
        assert_eq!(versions, (1..=newest()).collect::<Vec<_>>());
    }
}
