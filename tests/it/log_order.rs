//! The order of the event log is kept by a lock that no stranger can hold.

use podlock::NewRun;
use podlock::migrate::{self, Access};

use crate::patience::SOON;
use crate::support::{Db, eventually, lease, server, sql, start, timed};

const LOCK: &str = "LOCK TABLE studio_log_order IN EXCLUSIVE MODE";

async fn role(db: &Db, name: &str) -> (String, sql::Client) {
    let role = format!("{name}_{}", db.name);
    db.client.batch_execute(&format!("CREATE ROLE \"{role}\" LOGIN PASSWORD 'hunter2secret'")).await.unwrap();
    let url = format!("postgresql://{role}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
    (role, sql::connect(&url).await)
}

/// Any role can take any advisory lock: those that once were the log's and retention's hold up nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_the_former_locks_holds_up_no_start_burial_claim_or_pruning() {
    timed(async {
        let db = Db::new().await;
        let (_, stranger) = role(&db, "stranger").await;
        let locks =
            "SELECT pg_advisory_lock(hashtextextended('public', 2)), pg_advisory_lock(hashtextextended('public', 8))";
        stranger.batch_execute(locks).await.unwrap();
        let [a, b] = db.settled_pods().await;
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        drop(a);
        db.client.run_owned_by(run, b.incarnation(), SOON).await;
        let pruned: Option<i32> =
            db.client.scalar("SELECT studio_prune_sessions('1 day'::interval, 9::integer)", &[]).await;
        assert_eq!(pruned, Some(0), "retention goes on");
        b.shutdown(SOON).await.unwrap();
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// Whoever may read cannot take the new locks either, and nobody but the owner the one of retention.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_roles_with_rights_can_lock_the_log_and_only_the_owner_retention() {
    timed(async {
        let db = Db::new().await;
        let (reader, as_reader) = role(&db, "reader").await;
        db.client.batch_execute(&migrate::grants("public", &reader, Access::Read)).await.unwrap();
        let as_pod = sql::connect(&db.pod_url).await;
        let attempt = async |client: &sql::Client, sql: &str| {
            let done = client.batch_execute(&format!("BEGIN; {sql}")).await;
            client.batch_execute("ROLLBACK").await.unwrap();
            done.err().map(|e| e.code().unwrap().code().to_owned())
        };
        let denied = Some("42501".to_owned());
        for mode in ["ROW SHARE", "SHARE UPDATE EXCLUSIVE", "SHARE", "EXCLUSIVE", "ACCESS EXCLUSIVE"] {
            for table in ["studio_log_order", "studio_prune_order"] {
                let lock = format!("LOCK TABLE {table} IN {mode} MODE");
                assert_eq!(attempt(&as_reader, &lock).await, denied, "{lock}");
            }
        }
        assert_eq!(attempt(&as_reader, "SELECT studio_may_prune('1 day')").await, denied);
        // Nor may anyone hang the function that locks the log on a table of their own.
        let hung = "CREATE TEMP TABLE mine (a int); \
                    CREATE TRIGGER locks BEFORE INSERT ON mine FOR EACH STATEMENT \
                    EXECUTE FUNCTION studio_order_events()";
        assert_eq!(attempt(&as_reader, hung).await, denied);
        let open = "SELECT oid::regprocedure::text FROM pg_proc p WHERE pronamespace = 'public'::regnamespace \
                    AND prosecdef \
                    AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) a WHERE a.grantee = 0))";
        let open: Vec<String> = db.client.query(open, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(open, [""; 0], "functions that run as their owner, for everybody");
        assert_eq!(attempt(&as_pod, "SELECT studio_may_prune('1 day')").await, denied);
        assert_eq!(attempt(&as_pod, "LOCK TABLE studio_prune_order IN EXCLUSIVE MODE").await, denied);
        assert_eq!(attempt(&as_pod, LOCK).await, None, "pods suspect and evict under it");
    })
    .await;
}

/// Whoever applies the migration: what it makes belongs to the owner of the tables, whose functions prune.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superuser_who_migrates_the_tables_of_another_role_stops_no_retention() {
    timed(async {
        let db = Db::empty().await;
        migrate::up(&db.config("x")).await.unwrap();
        let version = "SELECT max(version) FROM studio_schema_history WHERE name = 'log_order'";
        let of_log: i32 = db.client.scalar(version, &[]).await;
        let db = Db::empty().await;
        let (owner, as_owner) = role(&db, "owner").await;
        db.client.batch_execute(&format!("CREATE SCHEMA app AUTHORIZATION \"{owner}\"")).await.unwrap();
        let url = format!("postgresql://{owner}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
        let config = |url: &str| podlock::Config::new(url).schema("app");
        migrate::up(&config(&url).with(|c| c.schema_knows = Some(of_log - 1))).await.unwrap();
        migrate::up(&config(&db.url)).await.unwrap();
        as_owner.batch_execute("SELECT app.studio_prune_sessions('1 day'::interval, 9::integer)").await.unwrap();
        as_owner.batch_execute("BEGIN; LOCK TABLE app.studio_log_order IN EXCLUSIVE MODE; COMMIT").await.unwrap();
        // A view reads another under the rights of its owner.
        as_owner
            .batch_execute("SELECT FROM app.studio_pod_status; SELECT FROM app.studio_foreign_locks")
            .await
            .unwrap();
        let others = "SELECT relname::text FROM pg_class WHERE relnamespace = 'app'::regnamespace \
                      AND relowner <> $1::text::regrole UNION ALL SELECT oid::regprocedure::text FROM pg_proc \
                                 WHERE pronamespace = 'app'::regnamespace AND proowner <> $1::text::regrole";
        let quoted = format!("\"{owner}\"");
        let others: Vec<String> =
            db.client.query(others, &[&quoted]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(others, [""; 0], "give these to the owner of the tables at the end of their migration");
    })
    .await;
}

/// A pods' role needs no new grant: the migration gives it what the log's lock takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_may_append_before_the_migration_may_lock_after_it() {
    timed(async {
        let db = Db::empty().await;
        let before = migrate::newest();
        let version = "SELECT max(version) FROM studio_schema_history WHERE name = 'log_order'";
        migrate::up(&db.config("x")).await.unwrap();
        let of_log: i32 = db.client.scalar(version, &[]).await;
        assert!(of_log <= before);
        let db = Db::empty().await;
        migrate::up(&db.config("x").with(|c| c.schema_knows = Some(of_log - 1))).await.unwrap();
        let (pod, as_pod) = role(&db, "Pod").await;
        let grant = format!(
            "GRANT USAGE ON SCHEMA public TO \"{pod}\"; GRANT SELECT, INSERT ON studio_pod_events TO \"{pod}\""
        );
        db.client.batch_execute(&grant).await.unwrap();
        migrate::up(&db.config("x")).await.unwrap();
        as_pod.batch_execute(&format!("BEGIN; {LOCK}; COMMIT")).await.unwrap();
        let append = "SELECT studio_append_event('joined'::text, 'p'::text, gen_random_uuid(), 'p'::text, '{}'::jsonb)";
        as_pod.batch_execute(append).await.unwrap();
    })
    .await;
}

/// An insert gets its position only once the log is free, by whatever statement it comes: older versions of the
/// functions know nothing of this lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_gets_its_position_only_when_the_log_is_free() {
    timed(async {
        let db = Db::new().await;
        let insert = "INSERT INTO studio_pod_events (kind, pod_id, incarnation, by_pod) \
                      VALUES ('joined', 'p', gen_random_uuid(), 'p') RETURNING idx";
        let mut holder = sql::connect(&db.url).await;
        let held = holder.transaction().await.unwrap();
        held.batch_execute(LOCK).await.unwrap();
        let other = sql::connect(&db.pod_url).await;
        let later = tokio::spawn(async move { other.query_one(insert, &[]).await.unwrap().get::<_, i64>(0) });
        eventually(SOON, "the other waits for the log", || async {
            let sql = "SELECT count(*) FROM pg_locks WHERE relation = 'studio_log_order'::regclass AND NOT granted";
            if db.client.scalar::<i64>(sql, &[]).await == 1 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        let first: i64 = held.query_one(insert, &[]).await.unwrap().get(0);
        held.commit().await.unwrap();
        let second = tokio::time::timeout(SOON, later).await.expect("it goes on").unwrap();
        assert!(first < second, "{first} {second}");
    })
    .await;
}

/// Twelve appenders, each with statements before its append, and a reader that looks as often as it can: it never sees
/// a position appear below one that it has seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_appear_in_order() {
    const EACH: i64 = 40;
    timed(async {
        let db = Db::new().await;
        let mut appenders = Vec::new();
        for n in 0..12 {
            let client = sql::connect(&db.pod_url).await;
            appenders.push(tokio::spawn(async move {
                let append = if n % 3 == 0 {
                    "INSERT INTO studio_pod_events (kind, pod_id, incarnation, by_pod) \
                     VALUES ('joined', 'p', gen_random_uuid(), 'p')"
                } else {
                    "SELECT studio_append_event('joined'::text, 'p'::text, gen_random_uuid(), 'p'::text, '{}'::jsonb)"
                };
                for _ in 0..EACH {
                    // The rest of the transaction takes a while, some of it after the append.
                    let txn = format!("BEGIN; SELECT pg_sleep(0.001); {append}; SELECT pg_sleep(0.002); COMMIT");
                    client.batch_execute(&txn).await.unwrap();
                }
            }));
        }
        let mut seen: Vec<i64> = Vec::new();
        while (seen.len() as i64) < 12 * EACH {
            let rows = db.client.query("SELECT idx FROM studio_pod_events ORDER BY idx", &[]).await.unwrap();
            let now: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            assert!(now.starts_with(&seen), "a position appeared below {:?}: {now:?}", seen.last());
            seen = now;
        }
        for appender in appenders {
            appender.await.unwrap();
        }
    })
    .await;
}

/// A pod that comes back waits for the log for longer than a statement may take. It tries again on the session that
/// holds its lock, instead of giving the lock up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_return_that_waits_for_the_log_keeps_the_session_that_has_the_lock() {
    timed(async {
        let mut db = Db::new().await;
        let limit = lease() / 5;
        let pod = start(db.config("a").with(|c| c.statement_timeout = Some(limit))).await;
        let (before, eyes) = (pod.incarnation(), sql::connect(&db.url).await);
        let lost = eyes.backend("a", "liveness").await.expect("a session");
        let log = db.client.transaction().await.unwrap();
        log.batch_execute(LOCK).await.unwrap();
        eyes.execute("SELECT pg_terminate_backend($1)", &[&lost]).await.unwrap();
        let holder = "SELECT min(s.pid) FROM pg_stat_activity s WHERE s.pid <> $1 \
                       AND s.application_name LIKE 'podlock/a/liveness%' AND studio_holds(studio_lock_key('a'), s.pid)";
        let waits = eventually(SOON, "the pod's next session has the lock", || async {
            eyes.scalar::<Option<i32>>(holder, &[&lost]).await.ok_or("none".to_owned())
        })
        .await;
        // Two tries run into their time-out.
        tokio::time::sleep(limit * 3).await;
        assert_eq!(eyes.scalar::<Option<i32>>(holder, &[&lost]).await, Some(waits), "another session");
        log.rollback().await.unwrap();
        eventually(SOON, "the pod is back", || async {
            if pod.status().attached { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        assert_eq!((pod.incarnation(), eyes.backend("a", "liveness").await), (before, Some(waits)));
        eyes.assert_fold_is_roster().await;
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}
