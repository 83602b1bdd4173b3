//! The plans of the statements of a recovery pass: what they touch is in proportion to what they find, also if the plan
//! was made while the tables were empty. A pod's connections keep such a plan until the server analyses the tables.

use serde_json::Value;

use crate::history::plans::{nodes, rendered};
use crate::support::sql::Client;
use crate::support::{Db, timed};

/// The incarnations of the tests: this pod, three pods that live, two that are gone.
const OWN: &str = "00000000-0000-7000-8000-000000000001";
const LIVING: [&str; 3] = [
    "00000000-0000-7000-8000-000000000002",
    "00000000-0000-7000-8000-000000000004",
    "00000000-0000-7000-8000-000000000006",
];
const GONE: [&str; 2] = ["00000000-0000-7000-8000-000000000003", "00000000-0000-7000-8000-000000000005"];

/// How many runs have ended, and how many pods.
const ENDED: usize = 20_000;
/// How many runs each living pod has.
const OWNED: usize = 1000;
/// How many orphans each pod that is gone left, and how many runs never had an owner.
const LEFT: usize = 1500;
const SUBMITTED: usize = 1000;
const ORPHANS: usize = 2 * LEFT + SUBMITTED;

/// Tables that grow with the runs. The others have a row for each pod.
const BIG: [&str; 3] = ["studio_runs", "studio_run_attempts", "studio_pod_sessions"];

/// How a load begins its transaction (`pg::txn::BY_INDEX`).
const BY_INDEX: &str = "BEGIN; SET LOCAL enable_seqscan = off";

/// A connection that plans as a pod's connections do, on tables that the server does not analyse during the test.
async fn planner(db: &Db) -> &Client {
    let sql = "SET plan_cache_mode = force_generic_plan; SET jit = off; \
               ALTER TABLE studio_runs SET (autovacuum_enabled = off); \
               ALTER TABLE studio_run_attempts SET (autovacuum_enabled = off); \
               ALTER TABLE studio_pod_sessions SET (autovacuum_enabled = off); \
               ALTER TABLE studio_pods SET (autovacuum_enabled = off)";
    db.client.batch_execute(sql).await.expect("settings");
    &db.client
}

/// Four living pods with runs, two pods that are gone and left some, runs that nobody owned yet, and many runs and pods
/// that have ended.
async fn fill(client: &Client) {
    let insert_runs = |owner: &str, count: usize| {
        format!(
            "INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt) \
             SELECT gen_random_uuid(), 'work', '{owner}', '{owner}', nextval('studio_fence'), 1 \
               FROM generate_series(1, {count})"
        )
    };
    let mut sql = vec![format!(
        "INSERT INTO studio_runs (run_id, kind, state, owner_pod, owner_incarnation, fence, attempt, finished_at) \
         SELECT gen_random_uuid(), 'work', 'succeeded', 'x', gen_random_uuid(), nextval('studio_fence'), 1, now() \
           FROM generate_series(1, {ENDED})"
    )];
    sql.push(format!(
        "INSERT INTO studio_pod_sessions (incarnation, pod_id, ended_at, reason) \
         SELECT gen_random_uuid(), 'x', now(), 'shutdown' FROM generate_series(1, {ENDED})"
    ));
    for (n, living) in [OWN].iter().chain(&LIVING).enumerate() {
        sql.push(format!(
            "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, liveness_pid, \
               liveness_started, kinds, capacity) \
             VALUES ('{living}', '', 0, '{living}', {n}, 100 + {n}, 1, now(), '{{work}}', 100000)"
        ));
        sql.push(insert_runs(living, if *living == OWN { 0 } else { OWNED }));
    }
    for gone in GONE {
        sql.push(format!(
            "INSERT INTO studio_pod_sessions (incarnation, pod_id, ended_at, reason) VALUES ('{gone}', 'x', now(), 'lost')"
        ));
        sql.push(insert_runs(gone, LEFT));
    }
    sql.push(
        "INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence) \
         SELECT run_id, 1, owner_pod, owner_incarnation, fence FROM studio_runs"
            .to_owned(),
    );
    sql.push(format!(
        "INSERT INTO studio_runs (run_id, kind) SELECT gen_random_uuid(), 'work' FROM generate_series(1, {SUBMITTED})"
    ));
    for statement in sql {
        client.batch_execute(&statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
}

async fn prepare(client: &Client, name: &str, file: &str) {
    let sql = format!("PREPARE {name} AS {}", rendered(file));
    client.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{file}: {e:?}"));
}

/// Runs a prepared statement in a transaction that is rolled back, and returns its plan with what it did.
async fn explain(client: &Client, begin: &str, call: &str) -> Value {
    let sql = format!("{begin}; EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE {call}; ROLLBACK");
    let answers = client.simple_query(&sql).await.unwrap_or_else(|e| panic!("{call}: {e:?}"));
    let text = answers.iter().find_map(|answer| match answer {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
        _ => None,
    });
    let plan: Value = serde_json::from_str(&text.expect("a plan")).expect("JSON");
    plan[0]["Plan"].clone()
}

/// How many rows of a big table the plan read, also those that it dropped. Fails if it reads such a table whole.
fn touched(plan: &Value, table: &str) -> usize {
    let number =
        |node: &Value, field: &str| node[field].as_f64().unwrap_or(0.0) * node["Actual Loops"].as_f64().unwrap();
    let mut rows = 0.0;
    for node in nodes(plan) {
        let name = node["Relation Name"].as_str().unwrap_or_default();
        let is_scan = node["Node Type"].as_str().is_some_and(|of| of.ends_with("Scan"));
        assert!(!(BIG.contains(&name) && node["Node Type"] == "Seq Scan"), "it reads {name} whole: {plan:#}");
        if is_scan && name == table {
            rows += number(node, "Actual Rows") + number(node, "Rows Removed by Filter");
            rows += number(node, "Rows Removed by Index Recheck");
        }
    }
    rows.round() as usize
}

fn candidates(limit: usize, spare: &str) -> String {
    format!("candidates('{OWN}', '{{work}}', {limit}, '{{}}', 2147483647, '{{lost}}', true, {spare})")
}

/// "Rows touched stay proportional": own runs, the runs of the pods that share, the orphans, and one step for each
/// owner. The 20,000 that have ended are not among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_was_planned_on_empty_tables_reads_only_what_it_counts_and_returns() {
    timed(async {
        let db = Db::new().await;
        let client = planner(&db).await;
        // After this the planner knows that the tables are empty. Before, it only guesses.
        client.batch_execute("VACUUM (ANALYZE) studio_runs, studio_pods, studio_pod_sessions").await.unwrap();
        prepare(client, "candidates", "read_candidates").await;
        explain(client, BY_INDEX, &candidates(100_000, "128")).await;
        fill(client).await;
        let owners = LIVING.len() + GONE.len();
        for (spare, listed) in [("NULL", ORPHANS), ("128", (ORPHANS + 3 * OWNED).div_ceil(4) + 128)] {
            let plan = explain(client, BY_INDEX, &candidates(100_000, spare)).await;
            let read = touched(&plan, "studio_runs");
            let due = ORPHANS + 3 * OWNED + owners;
            // The plan rounds the rows of each node for each of its loops.
            assert!(read.abs_diff(due) <= owners, "{read} rows for orphans, counted runs and owners: {plan:#}");
            assert_eq!(touched(&plan, "studio_pod_sessions"), GONE.len());
            // One row more for the fleet.
            assert_eq!(plan["Actual Rows"].as_f64(), Some(listed as f64 + 1.0), "with {spare} to spare");
        }
        let few = "candidates('00000000-0000-7000-8000-000000000002', '{other}', 100, '{}', 3, '{lost}', false, 128)";
        let plan = explain(client, BY_INDEX, few).await;
        assert_eq!(touched(&plan, "studio_runs"), SUBMITTED + OWNED, "without orphans of owners that are gone");
    })
    .await;
}

/// The arguments of a claim of `count` orphans.
async fn claim_of(client: &Client, name: &str, count: usize) -> String {
    let sql = format!(
        "SELECT format('{name}(%L, %L, %L, ''{OWN}'', ''{{lost}}'', 0, 3, 262144)', array_agg(r.run_id), \
           array_agg(r.owner_incarnation), array_agg(r.fence)) \
         FROM (SELECT * FROM studio_runs o \
                WHERE o.state = 'running' \
                  AND NOT EXISTS (SELECT FROM studio_pods p WHERE p.incarnation = o.owner_incarnation) \
                ORDER BY o.run_id LIMIT {count}) r"
    );
    client.scalar(&sql, &[]).await
}

/// What a claim of so many may touch: each run is looked up to be locked and again to be written, and its former
/// attempt once.
fn assert_claims_by_key(plan: &Value, count: usize) {
    let closed = touched(plan, "studio_run_attempts");
    assert!(closed <= count, "{closed} attempts for {count} runs: {plan:#}");
    let runs = touched(plan, "studio_runs");
    assert_eq!(runs, 2 * count, "{plan:#}");
    assert!(touched(plan, "studio_pod_sessions") <= count, "{plan:#}");
    assert_eq!(plan["Actual Rows"].as_f64(), Some(count as f64), "it claims all of them: {plan:#}");
}

/// A claim of many runs is planned at each pass, on what the tables hold then. A claim of a few keeps the plan that its
/// connection made at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_looks_each_run_up_by_its_key() {
    timed(async {
        let db = Db::new().await;
        let client = planner(&db).await;
        prepare(client, "few", "claim").await;
        let nothing = format!("few('{{}}', '{{}}', '{{}}', '{OWN}', '{{lost}}', 0, 3, 262144)");
        explain(client, "BEGIN", &nothing).await;
        fill(client).await;
        let few = claim_of(client, "few", 20).await;
        assert_claims_by_key(&explain(client, "BEGIN", &few).await, 20);
        prepare(client, "many", "claim").await;
        let many = claim_of(client, "many", 500).await;
        assert_claims_by_key(&explain(client, "BEGIN", &many).await, 500);
        client.batch_execute("ANALYZE; DEALLOCATE many").await.expect("analysed");
        prepare(client, "many", "claim").await;
        assert_claims_by_key(&explain(client, "BEGIN", &many).await, 500);
    })
    .await;
}

/// The orphans that a load lists for this pod, in their order.
async fn listed(client: &Client, pod: &str, limit: usize, spare: &str) -> Vec<String> {
    let call = format!("candidates('{pod}', '{{work}}', {limit}, '{{}}', 2147483647, '{{lost}}', true, {spare})");
    let answers = client.simple_query(&format!("EXECUTE {call}")).await.expect("a load");
    let row = |answer: &tokio_postgres::SimpleQueryMessage| match answer {
        tokio_postgres::SimpleQueryMessage::Row(row) if row.get("owner_incarnation") != Some(pod) => {
            row.get("run_id").map(ToOwned::to_owned)
        }
        _ => None,
    };
    answers.iter().filter_map(row).collect()
}

/// Pods that load at the same time begin at different places, and together they list every orphan. A pod without room
/// does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lists_of_equal_pods_begin_at_different_places_and_cover_all_orphans() {
    timed(async {
        let db = Db::new().await;
        let client = planner(&db).await;
        prepare(client, "candidates", "read_candidates").await;
        let pods = [OWN, LIVING[0], LIVING[1], LIVING[2]];
        let full = "00000000-0000-7000-8000-000000000000";
        for (n, pod) in pods.iter().chain([&full]).enumerate() {
            let (runs, capacity) = if *pod == full { (10, 10) } else { (1, 50) };
            let sql = format!(
                "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                   liveness_pid, liveness_started, kinds, capacity) \
                 VALUES ('{pod}', '', 0, '{pod}', {n}, 100 + {n}, 1, now(), '{{work}}', {capacity}); \
                 INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt) \
                 SELECT gen_random_uuid(), 'work', '{pod}', '{pod}', 1, 1 FROM generate_series(1, {runs})"
            );
            client.batch_execute(&sql).await.expect("a pod");
        }
        let sql = "INSERT INTO studio_runs (run_id, kind) SELECT gen_random_uuid(), 'work' FROM generate_series(1, 10)";
        client.batch_execute(sql).await.expect("orphans");
        let sql = "SELECT run_id::text FROM studio_runs WHERE owner_incarnation IS NULL ORDER BY created_at, run_id";
        let rows = client.query(sql, &[]).await.expect("orphans");
        let all: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let from = |begin: usize, count: usize| all.iter().cycle().skip(begin).take(count).cloned().collect::<Vec<_>>();
        for (pod, begins) in pods.into_iter().zip([0, 2, 5, 7]) {
            // Ten orphans and four runs for four pods: each has four in the end.
            assert_eq!(listed(client, pod, 100, "0").await, from(begins, 3), "{pod}");
            assert_eq!(listed(client, pod, 100, "2").await, from(begins, 5), "{pod}, and two to spare");
            assert_eq!(listed(client, pod, 2, "5").await, from(begins, 2), "{pod} asks for no more");
            assert_eq!(listed(client, pod, 100, "NULL").await, from(begins, 10), "{pod} asks for all");
        }
        assert_eq!(listed(client, full, 100, "0").await, Vec::<String>::new(), "it has more than the others");
    })
    .await;
}
