//! Missing tables, missing rights, no connection left, and a role that carries hostile settings.

use std::time::Duration;

use podlock::{Config, ErrorKind, NewRun};
use serde_json::json;

use crate::patience::{CONNECT, SOON};
use crate::support::faults::{OwnServer, nothing_is_left_of, refused};
use crate::support::{Db, eventually, lease, server, sql, start, timed};

const ANSWER: Duration = Duration::from_secs(2);

/// A role of the test's own, that may connect and nothing else; and its URL.
async fn role(db: &Db) -> (String, String) {
    let role = format!("r_{}", db.name);
    db.client.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter2secret'")).await.unwrap();
    let url = format!("postgresql://{role}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
    (role, url)
}

fn config(url: &str) -> Config {
    Config::new(url).name("a").lease(lease()).with(|c| c.connect_timeout = Some(CONNECT))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_tables_are_schema_missing_and_nothing_is_made() {
    timed(async {
        let db = Db::empty().await;
        for schema in ["public", "elsewhere"] {
            let refusal = refused(db.config("a").schema(schema).with(|c| c.migrate = false)).await;
            refusal.is(ErrorKind::SchemaMissing, &[schema, "podlock migrate up"], ANSWER);
        }
        let made: i64 = db.client.scalar("SELECT count(*) FROM pg_class WHERE relname LIKE 'studio%'", &[]).await;
        assert_eq!(made, 0);
        nothing_is_left_of(&db.client, "a").await;
        podlock::migrate::up(&db.config("a")).await.unwrap();
        start(db.config("a").with(|c| c.migrate = false)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_rights_is_forbidden_and_told_what_to_grant() {
    timed(async {
        let db = Db::empty().await;
        let (role, url) = role(&db).await;
        db.client.batch_execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await.unwrap();
        // It may not create tables in a schema that is there, nor the schema.
        let refusal = refused(config(&url)).await;
        refusal.is(ErrorKind::Forbidden, &["permission denied for schema public", "podlock migrate"], ANSWER);
        let refusal = refused(config(&url).schema("app")).await;
        refusal.is(ErrorKind::Forbidden, &["permission denied for database", "grant the role"], ANSWER);
        // The tables are there, and it may not so much as look; then look at the versions alone; then read, not write.
        podlock::migrate::up(&db.config("a").schema("app")).await.unwrap();
        for grant in [
            "SELECT".to_owned(),
            format!("GRANT USAGE ON SCHEMA app TO {role}"),
            format!("GRANT SELECT ON app.studio_schema_history TO {role}"),
            format!("GRANT SELECT ON ALL TABLES IN SCHEMA app TO {role}"),
        ] {
            db.client.batch_execute(&grant).await.unwrap();
            for migrate in [true, false] {
                let refusal = refused(config(&url).schema("app").with(|c| c.migrate = migrate)).await;
                refusal.is(ErrorKind::Forbidden, &["permission denied", "grant the role"], ANSWER);
            }
        }
        nothing_is_left_of(&db.client, "a").await;
        let grants = format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA app TO {role}; \
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA app TO {role}"
        );
        db.client.batch_execute(&grants).await.unwrap();
        let pod = start(config(&url).schema("app")).await;
        let run = pod.start(NewRun::new("echo")).await.unwrap();
        finished(&db, "app", run.run_id.as_uuid()).await;
    })
    .await;
}

async fn finished(db: &Db, schema: &str, run: uuid::Uuid) {
    let sql = format!("SELECT state, owner_pod, attempt, checkpoint::text FROM {schema}.studio_runs WHERE run_id = $1");
    eventually(SOON, "the run succeeds", || async {
        let row = db.client.query_one(&sql, &[&run]).await.unwrap();
        let (state, owner, attempt): (String, Option<String>, i32) = (row.get(0), row.get(1), row.get(2));
        let seen = || format!("{state}, attempt {attempt} of {owner:?}, {:?}", row.get::<_, Option<String>>(3));
        if state == "succeeded" { Ok(()) } else { Err(seen()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_left_is_too_many_connections_and_transient() {
    timed(async {
        let server = OwnServer::start(&[("max_connections", "12"), ("superuser_reserved_connections", "3")]).await;
        let db = Db::on(&server).await;
        db.client
            .batch_execute("CREATE ROLE app LOGIN PASSWORD 'hunter2secret'; GRANT CREATE ON DATABASE postgres TO app")
            .await
            .unwrap();
        let url = format!("postgresql://app:hunter2secret@127.0.0.1:{}/postgres", server.port());
        podlock::migrate::up(&config(&url).schema("app")).await.unwrap();
        let mut taken = Vec::new();
        while let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            taken.push((client, tokio::spawn(connection)));
        }
        // None free, then one, then two: the pod's liveness session alone does not make a pod.
        for _ in 0..3 {
            let refusal = refused(config(&url).schema("app")).await;
            refusal.is(ErrorKind::TooManyConnections, &["53300", "raise max_connections", "three connections"], ANSWER);
            assert!(refusal.error.is_transient());
            if taken.len() > 6 {
                let (client, connection) = taken.pop().unwrap();
                drop(client);
                let _ = connection.await;
            }
            let n = i64::try_from(taken.len()).unwrap();
            eventually(SOON, "the refused pod's connections end", || async {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
                let now = db.client.scalar::<i64>(sql, &[]).await;
                if now == n { Ok(()) } else { Err(format!("{now}, not {n}")) }
            })
            .await;
            if n <= 7 {
                break;
            }
        }
        for (client, connection) in taken {
            drop(client);
            let _ = connection.await;
        }
        let pod = start(config(&url).schema("app").with(|c| c.pool_size = 1)).await;
        pod.start(NewRun::new("echo")).await.unwrap();
        pod.shutdown(Duration::from_secs(5)).await.unwrap();
    })
    .await;
}

/// What a role may carry. Each would break a session that trusts its defaults.
const HOSTILE: &[&str] = &[
    "statement_timeout = '250ms'",
    "lock_timeout = '1ms'",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "default_transaction_deferrable = on",
    "search_path = 'evil', 'pg_catalog'",
    "idle_session_timeout = '1s'",
    "idle_in_transaction_session_timeout = '100ms'",
    "standard_conforming_strings = off",
    "transform_null_equals = on",
    "array_nulls = off",
    "row_security = off",
    "quote_all_identifiers = on",
    "datestyle = 'German'",
    "intervalstyle = 'sql_standard'",
    "timezone = 'Pacific/Apia'",
    "extra_float_digits = -15",
    "bytea_output = 'escape'",
    "client_min_messages = 'debug5'",
    "check_function_bodies = on",
    "force_parallel_mode = on",
    "plan_cache_mode = 'force_generic_plan'",
    "enable_indexscan = off",
    "enable_nestloop = off",
    "tcp_user_timeout = 50",
];

/// Functions, operators and tables that shadow the built-ins which podlock calls.
const EVIL: &str = r"
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.trap() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'evil was called'; END $$;
    CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql
        AS 'SELECT 1::bigint FROM evil.trap()';
    CREATE FUNCTION evil.pg_advisory_lock(bigint) RETURNS void LANGUAGE sql AS 'SELECT evil.trap()';
    CREATE FUNCTION evil.pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true FROM evil.trap()';
    CREATE FUNCTION evil.pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE sql
        AS 'SELECT true FROM evil.trap()';
    CREATE FUNCTION evil.pg_backend_pid() RETURNS integer LANGUAGE sql AS 'SELECT 1 FROM evil.trap()';
    CREATE FUNCTION evil.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true FROM evil.trap()';
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz FROM evil.trap()';
    CREATE FUNCTION evil.nextval(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint FROM evil.trap()';
    CREATE FUNCTION evil.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT evil.trap()';
    CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT 1::text FROM evil.trap()';
    CREATE FUNCTION evil.i4(integer, integer) RETURNS boolean LANGUAGE sql AS 'SELECT false FROM evil.trap()';
    CREATE FUNCTION evil.i8(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false FROM evil.trap()';
    CREATE FUNCTION evil.t(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false FROM evil.trap()';
    CREATE FUNCTION evil.u(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT false FROM evil.trap()';
    CREATE FUNCTION evil.n(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT false FROM evil.trap()';
    CREATE OPERATOR evil.= (leftarg = integer, rightarg = integer, function = evil.i4);
    CREATE OPERATOR evil.= (leftarg = bigint, rightarg = bigint, function = evil.i8);
    CREATE OPERATOR evil.= (leftarg = text, rightarg = text, function = evil.t);
    CREATE OPERATOR evil.= (leftarg = uuid, rightarg = uuid, function = evil.u);
    CREATE OPERATOR evil.= (leftarg = name, rightarg = name, function = evil.n);
    CREATE TABLE evil.studio_pods (evil int);
    CREATE TABLE evil.studio_runs (evil int);
    CREATE TABLE evil.studio_pod_events (evil int);
    CREATE TABLE evil.studio_schema_history (version int, name text, applied_on text, checksum text);
    CREATE TABLE evil.pg_locks (evil int);
    CREATE TABLE evil.pg_stat_activity (evil int);
    CREATE TABLE evil.pg_settings (evil int);
    GRANT USAGE ON SCHEMA evil TO PUBLIC;
    GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_with_hostile_settings_and_shadowed_built_ins_makes_no_difference() {
    timed(async {
        let db = Db::new().await;
        let (role, url) = role(&db).await;
        db.client.batch_execute(EVIL).await.unwrap();
        db.client.batch_execute(&format!("GRANT CREATE ON DATABASE {} TO {role}", db.name)).await.unwrap();
        for setting in HOSTILE {
            let set = format!("ALTER ROLE {role} IN DATABASE {} SET {setting}", db.name);
            if let Err(e) = db.client.batch_execute(&set).await {
                // Another version's name for it.
                assert!(e.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_OBJECT), "{set}: {e:?}");
            }
        }
        // The settings are really there.
        let plain = sql::connect(&url).await;
        assert_eq!(plain.simple_query("SHOW search_path").await.unwrap().len(), 3);
        let shown = plain.batch_execute("SELECT now()").await.expect_err("the trap works");
        assert!(format!("{shown:?}").contains("evil was called"), "{shown:?}");
        drop(plain);

        let schema = r"back\slash";
        let lease = Duration::from_secs(4);
        let config = |name: &str| {
            Config::new(&url).name(name).lease(lease).schema(schema).with(|c| c.connect_timeout = Some(CONNECT))
        };
        let a = start(config("a")).await;
        let b = start(config("b")).await;
        // Its steps are further apart than the role's idle_session_timeout.
        let slow = NewRun::new("steps").input(json!({"steps": 3, "pause_ms": 1300}));
        let slow = b.start(slow).await.unwrap().run_id;
        let quick = a.start(NewRun::new("echo").key("it's")).await.unwrap().run_id;
        let quoted = format!("\"{schema}\"");
        finished(&db, &quoted, quick.as_uuid()).await;
        finished(&db, &quoted, slow.as_uuid()).await;
        // And a death is found, and its run taken over.
        let orphan = b.start(NewRun::new("steps").input(json!({"steps": 100, "pause_ms": 50}))).await.unwrap().run_id;
        tokio::time::sleep(lease).await;
        assert!(a.status().attached && b.status().attached);
        drop(b);
        finished(&db, &quoted, orphan.as_uuid()).await;
        let owner = format!("SELECT owner_pod FROM {quoted}.studio_runs WHERE run_id = $1");
        assert_eq!(db.client.scalar::<String>(&owner, &[&orphan.as_uuid()]).await, "a");
        a.shutdown(Duration::from_secs(5)).await.unwrap();
    })
    .await;
}
