//! Versions of the schema: old and new binaries on one database, scripts for administrators, and the least rights.

use std::time::Duration;

use podlock::migrate::{self, Access};
use podlock::protocol::cause::Cause;
use podlock::protocol::ending::Reason;
use podlock::protocol::event::EventKind;
use podlock::protocol::state::{PodState, RunState};
use podlock::tokio_postgres::error::SqlState;
use podlock::{Config, ErrorKind, NewRun, Operator};

use crate::patience::SOON;
use crate::support::faults::refused;
use crate::support::{Db, eventually, lease, server, sql, start, timed};

const ANSWER: Duration = Duration::from_secs(2);

async fn newest(db: &Db) -> i32 {
    migrate::status(&db.config("x")).await.unwrap().iter().map(|v| v.version).max().expect("there are versions")
}

/// An older binary works on a newer compatible schema. In a rolling upgrade, the schema is migrated while pods live
/// that keep prepared statements. Other pods start on the new schema, and runs move between old and new pods.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_rolling_upgrade_the_pods_from_before_and_after_take_over_each_others_runs() {
    timed(async {
        let db = Db::new().await;
        let [old, other] = db.settled_pods().await;
        // The run makes progress. Otherwise the last pod would leave it alone after the deaths of two owners in a row
        // (`protocol::poison`).
        let steps = NewRun::new("steps").input(serde_json::json!({ "steps": 1_000_000, "pause_ms": 100 }));
        let run = old.start(steps).await.expect("started").run_id;
        let later = newest(&db).await + 1;
        migrate_to_a_later_schema(&db, later).await;
        let new = start(db.config("new")).await;
        let also = old.start(NewRun::new("echo")).await.expect("the old pod goes on");
        db.client.run_in_state(also.run_id, "succeeded", SOON).await;
        let dead = old.incarnation();
        drop(old);
        let taken = eventually(SOON, "the run goes on", || async {
            let run = db.client.run(run).await;
            if run.attempt == 2 { Ok(run) } else { Err(format!("{run:?}")) }
        })
        .await;
        // The other old pod buried it, or the new pod did if it has been up long enough to bury.
        let end = db.client.session_end(dead).await;
        assert!(
            matches!(end.as_ref(), Some((reason, Some(by))) if reason == "lost" && by != "a"),
            "{end:?}, {taken:?}"
        );
        // When the new pod may bury, the last old pod dies. The run goes on, on the new pod.
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        drop(other);
        db.client.run_owned_by(run, new.incarnation(), SOON).await;
        new.shutdown(Duration::from_secs(5)).await.unwrap();
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// What a version to come would do that only adds: columns, with defaults and without, to every table.
async fn migrate_to_a_later_schema(db: &Db, version: i32) {
    let sql = "SELECT tablename::text FROM pg_tables WHERE tablename LIKE 'studio_%'";
    let tables: Vec<String> = db.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(tables.len() >= 7, "{tables:?}");
    let mut script = String::from("BEGIN;");
    for table in &tables {
        script.push_str(&format!(
            "ALTER TABLE {table} ADD later_text text, ADD later_number integer NOT NULL DEFAULT 7;"
        ));
    }
    script.push_str(&format!("INSERT INTO studio_schema_history (version, name) VALUES ({version}, 'later'); COMMIT"));
    // All tables in one transaction, under pods that write to several: the server ends one of two that wait for each
    // other.
    while let Err(error) = db.client.batch_execute(&script).await {
        assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{error:?}");
        db.client.batch_execute("ROLLBACK").await.unwrap();
    }
}

/// A schema of the future that only adds: columns, with defaults and without, and tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_binary_works_on_a_later_schema_that_only_adds() {
    timed(async {
        let db = Db::new().await;
        let later = newest(&db).await + 40;
        migrate_to_a_later_schema(&db, later).await;
        for migrate in [true, false] {
            let pod = start(db.config("a").with(|c| c.migrate = migrate)).await;
            pod.shutdown(Duration::from_secs(5)).await.unwrap();
        }
        let [a, b] = db.settled_pods().await;
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        drop(a);
        db.client.run_owned_by(run, b.incarnation(), SOON).await;
        let status = migrate::status(&db.config("x")).await.unwrap();
        let last = status.last().expect("there are versions");
        assert_eq!((last.version, last.applied, last.known), (later, true, false), "{status:?}");
        let operator = Operator::connect(&db.config("x")).await.expect("operators read it too");
        assert_eq!(operator.pods(Default::default()).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incompatible_schema_is_refused_by_name_older_or_newer() {
    timed(async {
        let db = Db::new().await;
        let (now, later) = (newest(&db).await, newest(&db).await + 40);
        let record = format!(
            "INSERT INTO studio_schema_history (version, name) VALUES ({later}, 'later'); \
             UPDATE studio_schema_compat SET usable_from = {}",
            later - 2
        );
        db.client.batch_execute(&record).await.unwrap();
        let words =
            [format!("version {later}"), format!("version {}", later - 2), format!("knows {now}"), "\"public\"".into()];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for migrate in [true, false] {
            let refusal = refused(db.config("a").with(|c| c.migrate = migrate)).await;
            refusal.is(ErrorKind::SchemaIncompatible, &words, ANSWER);
            refusal.is(ErrorKind::SchemaIncompatible, &["nothing was changed", "newer version of the service"], ANSWER);
        }
        assert_eq!(db.client.roster().await, [""; 0]);
        // Older, and told not to migrate.
        let db = Db::empty().await;
        migrate::up(&db.config("old").with(|c| c.schema_knows = Some(1))).await.unwrap();
        let refusal = refused(db.config("a").with(|c| c.migrate = false)).await;
        let words = ["version 1".to_owned(), format!("needs {now}")];
        refusal.is(ErrorKind::SchemaIncompatible, &[&words[0], &words[1], "podlock migrate up"], ANSWER);
    })
    .await;
}

/// Each column of kinds takes the names that the library knows, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_column_of_kinds_takes_the_names_that_the_library_knows_and_no_other() {
    timed(async {
        let db = Db::new().await;
        let columns: [(&str, Vec<&str>); 6] = [
            ("studio_pod_events_kind_check", EventKind::ALL.map(EventKind::as_str).to_vec()),
            ("studio_pod_sessions_reason_check", Reason::ALL.map(Reason::as_str).to_vec()),
            ("studio_pods_evicted_check", Reason::evictions().map(Reason::as_str).collect()),
            ("studio_pod_sessions_cause_check", Cause::ALL.map(Cause::as_str).to_vec()),
            ("studio_runs_state_check", RunState::ALL.map(RunState::as_str).to_vec()),
            ("studio_pods_state_check", PodState::ALL.map(PodState::as_str).to_vec()),
        ];
        for (name, mut known) in columns {
            let check = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = $1";
            let check: String = db.client.scalar(check, &[&name]).await;
            let mut taken: Vec<&str> = check.split('\'').skip(1).step_by(2).collect();
            taken.sort_unstable();
            known.sort_unstable();
            assert_eq!(taken, known, "{name}: {check}");
        }
    })
    .await;
}

/// What `\d+` shows to people. `studio_schema_history` is refinery's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_table_view_and_column_has_a_comment_and_that_of_a_column_of_kinds_names_each() {
    timed(async {
        let db = Db::new().await;
        let bare = "SELECT c.relname || COALESCE('.' || a.attname, '') FROM pg_class c \
                      LEFT JOIN LATERAL (SELECT NULL::name AS attname, 0 AS attnum UNION ALL \
                      SELECT a.attname, a.attnum FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
                                           AND NOT a.attisdropped) a ON true \
                     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v') \
                     AND c.relname LIKE 'studio\\_%' AND c.relname <> 'studio_schema_history' \
                       AND NOT EXISTS (SELECT FROM pg_description d WHERE d.classoid = 'pg_class'::regclass \
                                          AND d.objoid = c.oid AND d.objsubid = a.attnum) \
                     ORDER BY 1";
        let bare: Vec<String> = db.client.query(bare, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(bare, [""; 0], "COMMENT ON these");
        let columns: [(&str, &str, Vec<&str>); 6] = [
            ("studio_pod_events", "kind", EventKind::ALL.map(EventKind::as_str).to_vec()),
            ("studio_pod_sessions", "reason", Reason::ALL.map(Reason::as_str).to_vec()),
            ("studio_pods", "evicted", Reason::evictions().map(Reason::as_str).collect()),
            ("studio_pod_sessions", "cause", Cause::ALL.map(Cause::as_str).to_vec()),
            ("studio_runs", "state", RunState::ALL.map(RunState::as_str).to_vec()),
            ("studio_pods", "state", PodState::ALL.map(PodState::as_str).to_vec()),
        ];
        for (table, column, names) in columns {
            let comment = "SELECT col_description(attrelid, attnum) FROM pg_attribute \
                           WHERE attrelid = $1::text::regclass AND attname = $2";
            let comment: String = db.client.scalar(comment, &[&table, &column]).await;
            let words: Vec<&str> = comment.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let forgotten: Vec<_> = names.into_iter().filter(|name| !words.contains(name)).collect();
            assert_eq!(forgotten, [""; 0], "{table}.{column}: {comment}");
        }
    })
    .await;
}

/// What `\df+`, `\ds+` and `\dT+` show to people. The sequence of a column belongs to that column.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_function_sequence_and_type_has_a_comment() {
    timed(async {
        let db = Db::new().await;
        let all = "SELECT p.oid::regprocedure::text, obj_description(p.oid, 'pg_proc') IS NOT NULL \
                     FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'studio\\_%' \
                   UNION ALL \
                   SELECT c.relname, obj_description(c.oid, 'pg_class') IS NOT NULL FROM pg_class c \
                    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S' AND c.relname LIKE 'studio\\_%' \
                      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
                                         AND d.objid = c.oid AND d.deptype IN ('a', 'i')) \
                   UNION ALL \
                   SELECT t.typname, obj_description(t.oid, 'pg_type') IS NOT NULL FROM pg_type t \
                     JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c' \
                    WHERE t.typnamespace = 'public'::regnamespace AND t.typname LIKE 'studio\\_%'";
        let all: Vec<(String, bool)> =
            db.client.query(all, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        assert!(all.len() > 25, "the objects are found: {all:?}");
        let bare: Vec<_> = all.iter().filter(|(_, has_comment)| !has_comment).map(|(name, _)| name).collect();
        assert_eq!(bare, [""; 0], "COMMENT ON these");
    })
    .await;
}

/// `podlock migrate sql`: pods find what an administrator made by hand as they would have made it, from nothing and
/// from each version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scripts_for_administrators_make_what_the_pods_would() {
    timed(async {
        let by_pods = Db::empty().await;
        // Without samples: their first write makes partitions.
        let config = by_pods.config("a").schema("s").with(|c| c.sample_interval = Duration::ZERO);
        start(config).await.shutdown(Duration::from_secs(5)).await.unwrap();
        let versions = "SELECT version FROM s.studio_schema_history ORDER BY version DESC OFFSET 1";
        let before = by_pods.client.query(versions, &[]).await.unwrap();
        for from in before.iter().map(|row| row.get(0)).chain([0]) {
            let by_hand = Db::empty().await;
            if from > 0 {
                let old = by_hand.config("a").schema("s").with(|c| c.schema_knows = Some(from));
                migrate::up(&old).await.unwrap();
            }
            by_hand.client.batch_execute(&migrate::sql("s", from)).await.unwrap_or_else(|e| panic!("from {from}: {e}"));
            let refusal = by_hand.client.batch_execute(&migrate::sql("s", from)).await.expect_err("once only");
            assert!(refusal.as_db_error().is_some(), "{refusal}");
            by_hand.client.batch_execute("ROLLBACK").await.unwrap();
            assert_eq!(shape(&by_hand).await, shape(&by_pods).await, "from {from}");
            let pod = start(by_hand.config("a").schema("s").with(|c| c.migrate = false)).await;
            pod.shutdown(Duration::from_secs(5)).await.unwrap();
        }
    })
    .await;
}

/// A new binary migrates while an old one waits for its turn; what comes of it excludes the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_binary_that_waited_for_a_migration_looks_again_before_it_goes_on() {
    timed(async {
        let db = Db::empty().await;
        let lock = "SELECT pg_advisory_lock(hashtextextended('public', 3))";
        db.client.batch_execute(lock).await.unwrap();
        let config = db.config("old").with(|c| c.schema_knows = Some(1));
        let old = tokio::spawn(async move { refused(config).await });
        eventually(SOON, "the old binary is at the lock", || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'podlock/old/migrate' \
                       AND query LIKE '%pg_try_advisory_lock%' AND datname = current_database()";
            let there: i64 = db.client.scalar(sql, &[]).await;
            if there > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        db.client.batch_execute(&migrate::sql("public", 0)).await.unwrap();
        db.client.batch_execute("UPDATE studio_schema_compat SET usable_from = 2").await.unwrap();
        db.client.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
        old.await.unwrap().is(ErrorKind::SchemaIncompatible, &["version 2", "knows 1"], SOON);
        assert_eq!(db.client.roster().await, [""; 0]);
    })
    .await;
}

/// Who owns the schema need not own the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_a_schema_needs_nothing_of_the_database() {
    timed(async {
        let db = Db::empty().await;
        let owner = format!("owner_{}", db.name);
        let create = format!(
            "CREATE ROLE {owner} LOGIN PASSWORD 'hunter2secret'; CREATE SCHEMA s AUTHORIZATION {owner}; \
             CREATE SCHEMA t AUTHORIZATION {owner}"
        );
        db.client.batch_execute(&create).await.unwrap();
        let url = format!("postgresql://{owner}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
        let as_owner = sql::connect(&url).await;
        as_owner.batch_execute(&migrate::sql("s", 0)).await.expect("the script");
        migrate::up(&Config::new(&url).schema("t")).await.expect("the binary");
        let refusal = as_owner.batch_execute(&migrate::sql("nowhere", 0)).await.expect_err("that takes a right");
        assert_eq!(refusal.code().map(|c| c.code()), Some("42501"), "{refusal}");
    })
    .await;
}

/// Every column, constraint, index, function and recorded version.
async fn shape(db: &Db) -> Vec<String> {
    let sql = "SELECT 'column ' || table_name || ' ' || column_name || ' ' || data_type || ' ' || is_nullable || \
                 coalesce(column_default, '') FROM information_schema.columns WHERE table_schema = 's' \
               UNION ALL SELECT 'constraint ' || conname || pg_get_constraintdef(oid) FROM pg_constraint \
               WHERE connamespace = 's'::regnamespace \
               UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 's' \
               UNION ALL SELECT 'function ' || pg_get_functiondef(oid) FROM pg_proc \
               WHERE pronamespace = 's'::regnamespace \
               UNION ALL SELECT 'version ' || version || name || checksum FROM s.studio_schema_history ORDER BY 1";
    db.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The other tests run under the pods' role; this one shows that it has nothing to spare.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_roles_of_pods_and_of_readers_have_the_least_rights() {
    timed(async {
        let db = Db::new().await;
        let pod = start(db.config("a")).await;
        let run = pod.start(NewRun::new("echo")).await.unwrap().run_id;
        db.client.run_in_state(run, "succeeded", SOON).await;
        let as_pod = sql::connect(&db.pod_url).await;
        let denied = async |client: &sql::Client, statement: &str| {
            let refusal = client.batch_execute(statement).await.expect_err(statement);
            let code = refusal.code().map(|c| c.code().to_owned());
            assert_eq!(code.as_deref(), Some("42501"), "{statement}: {refusal}");
        };
        for statement in [
            "DELETE FROM studio_runs",
            "TRUNCATE studio_pods",
            "UPDATE studio_pod_events SET kind = 'lost'",
            "DELETE FROM studio_pod_events",
            "DELETE FROM studio_pod_sessions",
            "DELETE FROM studio_run_attempts",
            "UPDATE studio_schema_compat SET usable_from = 9",
            "DELETE FROM studio_schema_history",
            "ALTER TABLE studio_runs ADD x text",
            "DROP FUNCTION studio_drain(text)",
            "SELECT setval('studio_fence', 1)",
        ] {
            denied(&as_pod, statement).await;
        }
        // Not the service's own functions, of whatever kind and whoever's they are.
        let others = "CREATE FUNCTION secret() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ \
                      SELECT current_user::text $$; REVOKE ALL ON FUNCTION secret() FROM PUBLIC";
        db.client.batch_execute(others).await.unwrap();
        db.client.batch_execute(&migrate::grants("public", "podlock_pod", Access::Pod)).await.unwrap();
        denied(&as_pod, "SELECT secret()").await;
        let ours = "SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace \
                    AND p.proname LIKE 'studio_%' AND p.prorettype <> 'trigger'::regtype AND NOT EXISTS (SELECT \
                    FROM aclexplode(p.proacl) a WHERE a.grantee = 'podlock_pod'::regrole)";
        let forgotten: Vec<String> = db.client.query(ours, &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
        assert_eq!(forgotten, [""; 0], "the script names every function of podlock's");
        let reader = format!("reader_{}", db.name);
        let create = format!("CREATE ROLE {reader} LOGIN PASSWORD 'hunter2secret'");
        db.client.batch_execute(&create).await.unwrap();
        db.client.batch_execute(&migrate::grants("public", &reader, Access::Read)).await.unwrap();
        let url = format!("postgresql://{reader}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
        let as_reader = sql::connect(&url).await;
        // But for the tables that are only locked.
        let relations = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace \
                         AND relkind IN ('r', 'v') \
                         AND relname LIKE 'studio\\_%' AND relname NOT IN ('studio_log_order', 'studio_prune_order')";
        let relations: Vec<String> =
            db.client.query(relations, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert!(relations.len() >= 11, "the tables and views are found: {relations:?}");
        for readable in relations {
            as_reader
                .query(&format!("SELECT * FROM {readable}"), &[])
                .await
                .unwrap_or_else(|e| panic!("the script gives readers nothing on {readable}: {e:?}"));
        }
        for statement in
            ["DELETE FROM studio_pods", "SELECT studio_drain('a')", "UPDATE studio_runs SET state = 'failed'"]
        {
            denied(&as_reader, statement).await;
        }
        let operator = Operator::connect(&Config::new(&url)).await.expect("readers may use the command");
        eventually(SOON, "the reader sees the pod alive", || async {
            let pods = operator.pods(Default::default()).await.map_err(|e| e.to_string())?;
            if pods.len() == 1 && pods[0].alive { Ok(()) } else { Err(format!("{pods:?}")) }
        })
        .await;
        pod.shutdown(Duration::from_secs(5)).await.unwrap();
    })
    .await;
}

/// The key of schema `a` and pod `b/c` was that of schema `a/b` and pod `c`: one of the two could not start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_whose_schema_and_name_read_alike_do_not_share_a_key() {
    timed(async {
        let db = Db::empty().await;
        let mut pods = Vec::new();
        for (schema, name) in [("a", "b/c"), ("a/b", "c"), ("a\\", "b"), ("a\\/b", "c"), ("a\\\\", "b")] {
            let config = db.config(name).schema(schema);
            migrate::up(&config).await.expect("the schema");
            let config = config.with(|c| c.acquire_timeout = Some(Duration::from_secs(1)));
            pods.push(start(config).await);
        }
        let mut keys = Vec::new();
        for schema in ["a", "a/b", "a\\", "a\\/b", "a\\\\"] {
            let sql = format!(
                "SELECT lock_key FROM \"{schema}\".studio_pods WHERE lock_key = \"{schema}\".studio_lock_key(pod_id)"
            );
            keys.push(db.client.scalar::<i64>(&sql, &[]).await);
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 5, "{keys:?}");
        for pod in pods {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Keys change in a schema with a slash alone, and never under a living pod. In any other they stay as they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_under_no_living_pod() {
    timed(async {
        let db = Db::empty().await;
        let version = "SELECT max(version) FROM public.studio_schema_history WHERE name = 'keys_of_slashed_schemas'";
        migrate::up(&db.config("x")).await.unwrap();
        let before = Some(db.client.scalar::<i32>(version, &[]).await - 1);
        let living = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
             liveness_pid, liveness_started) \
             SELECT 'p/q', '', 0, gen_random_uuid(), studio_lock_key('p/q'), studio_witness_key('p/q'), \
             pg_backend_pid(), now(); SELECT pg_advisory_lock(lock_key) FROM studio_pods";
        for (schema, changes) in [("plain", false), ("with/slash", true), ("with\\backslash", true)] {
            let config = db.config("x").schema(schema);
            migrate::up(&config.clone().with(|c| c.schema_knows = before)).await.unwrap();
            let pod = sql::connect(&db.url).await;
            pod.batch_execute(&format!("SET search_path = \"{schema}\"; {living}")).await.unwrap();
            let key = format!("SELECT \"{schema}\".studio_lock_key('p/q'::text)");
            let was: i64 = db.client.scalar(&key, &[]).await;
            let migrated = migrate::up(&config).await;
            assert_eq!(migrated.is_err(), changes, "{schema}: {migrated:?}");
            if let Err(error) = migrated {
                assert!(error.to_string().contains("pods of this schema are alive (1)"), "{error}");
            }
            drop(pod);
            let here = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            eventually(SOON, "the pod is gone", || async {
                let held: i64 = db.client.scalar(here, &[]).await;
                if held == 0 { Ok(()) } else { Err(format!("{held} locks")) }
            })
            .await;
            migrate::up(&config).await.expect("nobody is alive");
            assert_eq!(db.client.scalar::<i64>(&key, &[]).await != was, changes, "{schema}");
        }
    })
    .await;
}
