//! Names are pinned: what others create in podlock's schema is not used by podlock (SECURITY.md).
//!
//! Each attack is made by a role that may create objects in the schema and nothing more. Its functions count their
//! calls in a sequence, which a rollback does not undo.

use std::process::Stdio;
use std::time::Duration;

use podlock::NewRun;
use podlock::migrate;
use uuid::Uuid;

use crate::inherited::clean;
use crate::patience::SOON;
use crate::support::trace;
use crate::support::{Db, eventually, server, sql, start, timed};

/// A stranger's function: counts, and lets everything pass.
const COUNTS: &str = "LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.nextval('public.loot'); RETURN";

struct Stranger {
    role: String,
    client: sql::Client,
}

impl Stranger {
    /// A role that may create objects in `schema`.
    async fn of(db: &Db, schema: &str) -> Self {
        let role = format!("stranger_{}", db.name);
        let create = format!(
            "CREATE SEQUENCE public.loot; GRANT USAGE ON SEQUENCE public.loot TO PUBLIC; \
             CREATE ROLE {role} LOGIN PASSWORD 'hunter2secret'; GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}; \
             GRANT USAGE ON SCHEMA {schema} TO PUBLIC"
        );
        db.client.batch_execute(&create).await.unwrap();
        let url = format!("postgresql://{role}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
        Self { role, client: sql::connect(&url).await }
    }

    async fn creates(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
}

/// How often a function of the stranger's was called.
async fn loot(db: &Db) -> i64 {
    db.client.scalar("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.loot", &[]).await
}

/// Fits better than the server's own wherever an integer is divided by a number with a decimal point.
async fn creates_a_division(stranger: &Stranger, schema: &str) {
    stranger.creates(&format!("CREATE FUNCTION {schema}.d(int, numeric) RETURNS numeric {COUNTS} 1; END $$")).await;
    stranger
        .creates(&format!("CREATE OPERATOR {schema}./ (leftarg = int, rightarg = numeric, function = {schema}.d)"))
        .await;
}

/// Fits better than the server's own wherever a member of a JSON object is named by a bare literal.
async fn creates_a_member_operator(stranger: &Stranger, schema: &str) {
    stranger.creates(&format!("CREATE FUNCTION {schema}.m(jsonb, jsonb) RETURNS jsonb {COUNTS} $1; END $$")).await;
    stranger
        .creates(&format!("CREATE OPERATOR {schema}.-> (leftarg = jsonb, rightarg = jsonb, function = {schema}.m)"))
        .await;
}

/// Runs the statements of docs/guards.md as psql does; whether all passed, and what psql said.
async fn page_of_guards(db: &Db, run: Uuid, incarnation: Uuid, fence: i64) -> (bool, String) {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guards.md")).unwrap();
    let script = page.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
    let mut psql = tokio::process::Command::new("psql");
    clean(psql.as_std_mut());
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-d", &db.url]);
    let variables = [format!("run={run}"), format!("incarnation={incarnation}"), format!("fence={fence}")];
    psql.args(variables.iter().flat_map(|v| ["-v", v.as_str()])).args(["-f", "-"]);
    let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = psql.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, script.as_bytes()).await.unwrap();
    drop(stdin);
    let done = psql.wait_with_output().await.unwrap();
    (done.status.success(), String::from_utf8(done.stderr).unwrap())
}

async fn running_run(db: &Db, incarnation: Uuid) -> Uuid {
    let run = Uuid::now_v7();
    let sql =
        "INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence) VALUES ($1, 'k', 'p', $2, 7)";
    db.client.execute(sql, &[&run, &incarnation]).await.unwrap();
    run
}

/// Attack 1: psql sends `:'run'` as a bare literal, and a function of texts fits a bare literal better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overload_of_the_guard_lets_no_stale_owner_pass() {
    timed(async {
        let db = Db::new().await;
        let stranger = Stranger::of(&db, "public").await;
        for arguments in
            ["text, text, text", "uuid, uuid, bigint", "text, text, text, int", "text, text, bigint, int DEFAULT 1"]
        {
            stranger
                .creates(&format!(
                    "CREATE FUNCTION public.studio_fence_check({arguments}) RETURNS void {COUNTS}; END $$"
                ))
                .await;
        }
        let own = Uuid::now_v7();
        let run = running_run(&db, own).await;
        let (passed, said) = page_of_guards(&db, run, own, 6).await;
        assert!(!passed && said.contains("PL001"), "a stale fence passes: {said}");
        let (passed, said) = page_of_guards(&db, run, own, 7).await;
        assert!(passed, "{said}");
        assert_eq!(loot(&db).await, 0);
    })
    .await;
}

/// Attack 2: a guard divides its patience by 1000.0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_division_is_used_by_no_guard() {
    timed(async {
        let db = Db::new().await;
        let stranger = Stranger::of(&db, "public").await;
        creates_a_division(&stranger, "public").await;
        let own = Uuid::now_v7();
        let run = running_run(&db, own).await;
        let (passed, said) = page_of_guards(&db, run, own, 7).await;
        assert!(passed, "{said}");
        assert_eq!(loot(&db).await, 0);
    })
    .await;
}

/// Attack 3: the event log's function reads the reason of each event, so this operator once stopped every start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_member_operator_is_used_by_no_start_run_burial_or_claim() {
    timed(async {
        let db = Db::new().await;
        let stranger = Stranger::of(&db, "public").await;
        creates_a_member_operator(&stranger, "public").await;
        let [a, b] = db.settled_pods().await;
        assert_eq!(loot(&db).await, 0, "by a start");
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        // The user's own connection has the schema in its path, before the server's own even.
        let mut client = sql::connect(&db.pod_url).await;
        client.batch_execute("SET search_path = public, pg_catalog").await.unwrap();
        let txn = client.transaction().await.unwrap();
        a.start_in_txn(&txn, NewRun::new("echo")).await.unwrap();
        a.submit_in_txn(&txn, NewRun::new("echo")).await.unwrap();
        txn.commit().await.unwrap();
        drop(a);
        db.client.run_owned_by(run, b.incarnation(), SOON).await;
        b.shutdown(SOON).await.unwrap();
        assert_eq!(loot(&db).await, 0, "by a burial, a claim or an end");
    })
    .await;
}

/// Operators in views are bound when the view is created: a migration must not find a stranger's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_operators_are_used_by_no_view_that_is_migrated_to() {
    timed(async {
        let db = Db::empty().await;
        db.client.batch_execute("CREATE SCHEMA s").await.unwrap();
        let stranger = Stranger::of(&db, "s").await;
        creates_a_division(&stranger, "s").await;
        migrate::up(&db.config("a").schema("s")).await.unwrap();
        let pod = start(db.config("a").schema("s")).await;
        db.client.query("SELECT * FROM s.studio_pod_status", &[]).await.unwrap();
        assert_eq!(loot(&db).await, 0);
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Attack 4: `studio_evict` passed a bare NULL on, for which a function of texts is the better fit; under the rights of
/// the superuser who evicts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overload_of_what_evict_calls_gets_no_superusers_rights() {
    timed(async {
        let db = Db::new().await;
        let stranger = Stranger::of(&db, "public").await;
        stranger
            .creates(&format!(
                "CREATE FUNCTION public.studio_end_backends(uuid, text, text, text) RETURNS int {COUNTS} 2; END $$"
            ))
            .await;
        let [a, b] = db.settled_pods().await;
        let evicted: Uuid = db.client.scalar("SELECT public.studio_evict('a'::pg_catalog.text)", &[]).await;
        assert_eq!(loot(&db).await, 0);
        let end = eventually(SOON, "the evicted pod is buried", || async {
            db.client
                .session_end(evicted.into())
                .await
                .filter(|(reason, _)| !reason.is_empty())
                .ok_or("not yet".to_owned())
        })
        .await;
        assert_eq!(end.0, "evicted");
        drop((a, b));
    })
    .await;
}

/// Attack 5: every new connection of a pod's pool appends to the log and rolls back; what a stranger's function does
/// need not be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overload_of_append_event_is_run_by_no_connection() {
    timed(async {
        let db = Db::new().await;
        let stranger = Stranger::of(&db, "public").await;
        for arguments in ["text, text, uuid, text, text", "text, text, uuid, text, json"] {
            stranger
                .creates(&format!(
                    "CREATE FUNCTION public.studio_append_event({arguments}) RETURNS bigint {COUNTS} 1; END $$"
                ))
                .await;
        }
        let [a, b] = db.settled_pods().await;
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        drop(a);
        db.client.run_owned_by(run, b.incarnation(), SOON).await;
        b.shutdown(SOON).await.unwrap();
        assert_eq!(loot(&db).await, 0);
    })
    .await;
}

/// The lint of a migrated database: each function of ours runs under a pinned `search_path`, or was bound when it was
/// created; and what is bound, as views and CHECK constraints are, is bound to the server's own and to ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_function_is_pinned_and_all_that_is_bound_is_bound_to_the_servers_own() {
    timed(async {
        let db = Db::new().await;
        let ours: i64 = db
            .client
            .scalar(
                "SELECT count(*) FROM pg_proc WHERE proname LIKE 'studio\\_%' \
                     AND pronamespace = 'public'::regnamespace",
                &[],
            )
            .await;
        assert!(ours >= 24, "the functions are found: {ours}");
        let open = "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace \
                    AND proname LIKE 'studio\\_%' AND prosqlbody IS NULL \
                    AND NOT 'search_path=pg_catalog, pg_temp' = ANY (COALESCE(proconfig, '{}'))";
        let open: Vec<String> = db.client.query(open, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(open, [""; 0], "functions without a pinned search_path");
        // The server's own objects are pinned: no dependency on them is recorded.
        let strange = "SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' uses ' \
                           || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) \
                         FROM pg_depend d \
                        WHERE pg_describe_object(d.classid, d.objid, d.objsubid) NOT LIKE '%information_schema%' \
                          AND d.classid IN ('pg_rewrite'::regclass, 'pg_constraint'::regclass, 'pg_proc'::regclass, \
                          'pg_attrdef'::regclass) AND (d.refclassid = 'pg_operator'::regclass \
                               OR d.refclassid = 'pg_proc'::regclass AND d.deptype = 'n' \
                                  AND (SELECT p.proname NOT LIKE 'studio\\_%' OR p.pronamespace <> \
                                  'public'::regnamespace FROM pg_proc p WHERE p.oid = d.refobjid))";
        let strange: Vec<String> = db.client.query(strange, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(strange, [""; 0], "bound to what is not the server's");
    })
    .await;
}

/// Whoever may create objects in the schema is named at a start and by `migrate`; the owner, superusers and nobody are
/// not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_may_create_objects_in_the_schema_are_named() {
    timed(async {
        let db = Db::new().await;
        assert_eq!(migrate::warnings(&db.config("x")).await.unwrap(), [""; 0]);
        let quiet = start(db.config("pinned-quiet")).await;
        let stranger = Stranger::of(&db, "public").await;
        db.client.batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await.unwrap();
        let warnings = migrate::warnings(&db.config("x")).await.unwrap();
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        let revoke = format!("REVOKE CREATE ON SCHEMA \"public\" FROM PUBLIC, \"{}\"", stranger.role);
        assert!(warning.contains(&revoke), "{warning}");
        let pod = start(db.config("pinned-warned")).await;
        let named = format!("PUBLIC, {}", stranger.role);
        let logged = trace::events(&named);
        assert_eq!(logged.len(), 1, "once at the start: {logged:?}");
        assert_eq!((logged[0]["event"].as_str(), logged[0]["level"].as_str()), ("schema_open", "WARN"));
        drop((quiet, pod));
        // What it says helps.
        db.client.batch_execute(&revoke).await.unwrap();
        assert_eq!(migrate::warnings(&db.config("x")).await.unwrap(), [""; 0]);
    })
    .await;
}

/// Templates put the schema's name into literals and function bodies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_schema_name_is_migrated_to_as_any_other() {
    timed(async {
        let db = Db::empty().await;
        for schema in ["it's $function$ \"@.\" '@'", "back\\slash%s", "Ümläut $1"] {
            let config = db.config("a").schema(schema);
            migrate::up(&config).await.unwrap_or_else(|e| panic!("{schema}: {e:?}"));
            let pod = start(config).await;
            let run = pod.start(NewRun::new("echo")).await.unwrap().run_id;
            let quoted = format!("\"{}\"", schema.replace('"', "\"\""));
            let state = format!("SELECT state FROM {quoted}.studio_runs WHERE run_id = $1");
            eventually(SOON, "the run succeeds", || async {
                let state: String = db.client.scalar(&state, &[&run.as_uuid()]).await;
                if state == "succeeded" { Ok(()) } else { Err(state) }
            })
            .await;
            let channel: String = db.client.scalar(&format!("SELECT {quoted}.studio_channel()"), &[]).await;
            assert_eq!(channel, format!("podlock_{schema}"));
            let raised: i64 = db.client.scalar(&format!("SELECT {quoted}.studio_raise_fence(1000)"), &[]).await;
            assert_eq!(raised, 1000);
            pod.shutdown(Duration::from_secs(5)).await.unwrap();
        }
    })
    .await;
}
