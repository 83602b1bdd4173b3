//! The plans of the statements on the history, on the tables of a large fleet: no statement reads a big table whole.
//!
//! The data has the shape of 1,000 pods and 28 days, with fewer samples. The plans are those of a pod's connections,
//! which plan once for all arguments (`plan_cache_mode = force_generic_plan`). `EXPLAIN ANALYZE` runs each statement,
//! so that partitions that are pruned at run time do not count.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::sql::Client;
use crate::support::{Db, timed};

/// A statement, with arguments as SQL writes them, in their order.
struct Planned {
    file: &'static str,
    arguments: &'static [&'static str],
    /// The most partitions of samples that it may touch.
    days: usize,
}

const MIDNIGHT: &str = "date_trunc('day', now(), 'UTC')";
const NIL: &str = "'00000000-0000-0000-0000-000000000000'";

/// What the roll-ups read. They read much, and only what they need of it.
const ROLL_UPS: &[Planned] = &[
    Planned { file: "read_open_sessions", arguments: &["''", "1", "0", "NULL", NIL, "5000"], days: 0 },
    Planned { file: "read_open_sessions", arguments: &["'node'", "4", "1", "NULL", NIL, "5000"], days: 0 },
    Planned {
        file: "read_ended_sessions",
        arguments: &["''", "1", "0", "now() - interval '14 d'", NIL, "5000"],
        days: 0,
    },
    Planned { file: "count_scored_sessions", arguments: &["now() - interval '14 d'", "1000000"], days: 0 },
    Planned { file: "find_pods_seen", arguments: &["'{p1,p2,p3}'", "now() - interval '14 d'"], days: 0 },
    Planned {
        file: "roll_up_hours",
        arguments: &[
            "'00000000-0000-0000-0000-000000000007'",
            "date_trunc('day', now(), 'UTC') - interval '30 h'",
            "date_trunc('day', now(), 'UTC') - interval '29 h'",
            "date_trunc('day', now(), 'UTC')",
            "1",
            "0",
        ],
        days: 1,
    },
];

/// What the keeper of days deletes.
const DAYS: &[Planned] = &[Planned { file: "clear_sample_writers", arguments: &["1000"], days: 0 }];

/// What endpoints and the command read.
const REQUESTS: &[Planned] = &[
    Planned { file: "read_liveness", arguments: &["'p500'"], days: 0 },
    Planned { file: "list_samples", arguments: &["'p500'", "now() - interval '3 h'", "now()", "100"], days: 2 },
    Planned { file: "list_samples", arguments: &["'p500'", "NULL", "NULL", "100"], days: 30 },
    Planned { file: "list_sessions", arguments: &["'p500'", "20", "NULL"], days: 0 },
    Planned { file: "read_reliability", arguments: &["'p500'"], days: 0 },
    Planned { file: "is_known_pod", arguments: &["'p500'"], days: 0 },
    Planned {
        file: "list_reliability",
        arguments: &["NULL", "NULL", "0.9", "1", "NULL", "NULL", "NULL", "100"],
        days: 0,
    },
    Planned { file: "list_reliability", arguments: &["50", "0.5", "0", "1", "0.95", "95", "'p950'", "100"], days: 0 },
];

/// Tables that are big in a large fleet. A partition has the name of its table.
const BIG: [&str; 5] = [
    "studio_pod_heartbeats",
    "studio_pod_sessions",
    "studio_pod_heartbeats_hourly",
    "studio_pod_reliability",
    "studio_sample_writers",
];

/// 1,000 pods and 28 days: a sample an hour, two sessions a day, an hourly row each hour.
async fn large_fleet(client: &Client) {
    let partitions = format!(
        "DO $$ DECLARE day timestamptz; BEGIN FOR i IN -1..28 LOOP \
           day := {MIDNIGHT} - i * interval '1 day'; \
           BEGIN EXECUTE format('CREATE TABLE studio_pod_heartbeats_test%s PARTITION OF studio_pod_heartbeats \
             FOR VALUES FROM (%L) TO (%L)', i + 1, day, day + interval '1 day'); \
           EXCEPTION WHEN invalid_object_definition THEN NULL; END; END LOOP; END $$"
    );
    client.batch_execute(&partitions).await.expect("partitions");
    for fill in [
        "INSERT INTO studio_pod_heartbeats (pod_id, incarnation, number, sampled_at, status, health, cpu_usage, \
           memory_pressure, memory_available, running_runs, runtime_lag_ms) \
         SELECT 'p' || p, gen_random_uuid(), h, date_trunc('day', now(), 'UTC') - h * interval '1 h', 'active', \
           'nominal', 0.5, 0.5, 1000000000, 3, 0.5 FROM generate_series(28 * 24, 1, -1) h, generate_series(1, 1000) p ORDER BY h DESC",
        "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason, labels) \
         SELECT gen_random_uuid(), 'p' || p, now() - h * interval '12 h', CASE WHEN h > 1 THEN \
           now() - h * interval '12 h' + interval '11 h' END, CASE WHEN h > 1 THEN 'lost' END, \
           jsonb_build_object('node', 'n' || p % 50) FROM generate_series(56, 1, -1) h, generate_series(1, 1000) p",
        "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, liveness_pid, \
           liveness_started) SELECT pod_id, '', 0, incarnation, hashtextextended(pod_id, 7), \
           hashtextextended(pod_id, 8), 1, now() FROM studio_pod_sessions WHERE ended_at IS NULL",
        "INSERT INTO studio_pod_heartbeats_hourly (pod_id, hour, heartbeat_count, avg_cpu_usage, max_health) \
         SELECT 'p' || p, date_trunc('hour', now(), 'UTC') - h * interval '1 h', 360, 0.5, 'nominal' \
           FROM generate_series(28 * 24, 1, -1) h, generate_series(1, 1000) p",
        "INSERT INTO studio_pod_reliability (pod_id, window_days, uptime_pct, sessions_count, mtbf_seconds, score, \
           p_stays_4h, hourly_availability) SELECT 'p' || p, 14, p / 10.0, 28, 3600, p / 1000.0, p / 1000.0, \
           (SELECT jsonb_agg((SELECT jsonb_agg(round(random()::numeric, 4)) FROM generate_series(1, 24))) \
              FROM generate_series(1, 7) WHERE p > 0) FROM generate_series(1, 1000) p",
        "UPDATE studio_roll_ups SET token = '00000000-0000-0000-0000-000000000007', claimed_at = now()",
        "INSERT INTO studio_sample_writers SELECT gen_random_uuid(), 1, 0, now() - n * interval '1 min', \
           now() - n * interval '1 min' FROM generate_series(1, 20000) n",
        "VACUUM (ANALYZE) studio_sample_writers, studio_pod_sessions, studio_pod_heartbeats_hourly, studio_pod_reliability, studio_pods, \
           studio_pod_heartbeats",
    ] {
        client.batch_execute(fill).await.unwrap_or_else(|e| panic!("{fill}: {e:?}"));
    }
}

/// The names that a file lists under `-- Arguments:`.
fn arguments(text: &str) -> Vec<&str> {
    let listed = text.lines().map_while(|line| line.strip_prefix("--")).skip_while(|line| line.trim() != "Arguments:");
    let listed = listed.skip(1).take_while(|line| line.starts_with("   ")).filter(|line| !line.starts_with("    "));
    listed.filter_map(|line| line.split_whitespace().next()).collect()
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/sql").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The text of a statement with `$1` for its first argument, as the library sends it.
pub(crate) fn rendered(file: &str) -> String {
    let text = read(&format!("{file}.sql"));
    let mut sql: String = text.lines().filter(|line| !line.starts_with('\\')).map(|line| format!("{line}\n")).collect();
    for line in text.lines().filter(|line| line.starts_with("\\set ")) {
        let name = line.split_whitespace().nth(1).expect("a name");
        sql = sql.replace(&format!(":{name}"), &read(&format!("part/{name}.sql")));
    }
    for (place, name) in arguments(&text).into_iter().enumerate() {
        sql = sql.replace(&format!(":'{name}'"), &format!("${}", place + 1));
    }
    sql.replace(":\"schema\"", "public")
        .replace(":'studio_", "'public.studio_")
        .trim_end()
        .trim_end_matches(';')
        .to_owned()
}

/// The nodes of a plan that ran.
pub(crate) fn nodes(plan: &Value) -> Vec<&Value> {
    let children = plan["Plans"].as_array().into_iter().flatten().flat_map(nodes);
    std::iter::once(plan).filter(|node| node["Actual Loops"].as_f64() != Some(0.0)).chain(children).collect()
}

fn table(node: &Value) -> Option<&'static str> {
    let name = node["Relation Name"].as_str()?;
    // The longest first: one name is the beginning of another.
    BIG.into_iter().filter(|table| name == *table || name.starts_with(&format!("{table}_"))).max_by_key(|t| t.len())
}

async fn check(client: &Client, of: &Planned) -> Result<(), String> {
    let sql = rendered(of.file);
    client.batch_execute(&format!("PREPARE q AS {sql}")).await.map_err(|e| format!("{}: {e:?}", of.file))?;
    let arguments = of.arguments.join(", ");
    let explain = format!("BEGIN; EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE q ({arguments}); ROLLBACK; DEALLOCATE q");
    let answers = client.simple_query(&explain).await.map_err(|e| format!("{}: {e:?}", of.file))?;
    let text = answers.iter().find_map(|answer| match answer {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
        _ => None,
    });
    let plan: Value = serde_json::from_str(&text.expect("a plan")).expect("JSON");
    let nodes = nodes(&plan[0]["Plan"]);
    let whole: Vec<_> = nodes.iter().filter(|n| n["Node Type"] == "Seq Scan").filter_map(|n| table(n)).collect();
    let days = nodes.iter().filter(|n| table(n) == Some("studio_pod_heartbeats")).count();
    println!("{} ({arguments}): {} ms, {days} days", of.file, plan[0]["Execution Time"]);
    if whole.is_empty() && days <= of.days {
        return Ok(());
    }
    Err(format!("{} reads {whole:?} whole, and samples of {days} days: {plan:#}", of.file))
}

/// "Plans checked on generated data (1,000 pods, 28 days): no sequential scan at request time; score filters by an
/// index; open sessions by a partial index; ended ones by `(ended_at)`."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_on_the_history_reads_a_big_table_whole() {
    timed(async {
        let db = Db::new().await;
        large_fleet(&db.client).await;
        db.client.batch_execute("SET plan_cache_mode = force_generic_plan; SET jit = off").await.unwrap();
        let mut bad = Vec::new();
        for of in ROLL_UPS.iter().chain(DAYS).chain(REQUESTS) {
            bad.extend(check(&db.client, of).await.err());
        }
        assert!(bad.is_empty(), "{}", bad.join("\n"));
    })
    .await;
}

/// What a roll-up costs, for docs/history.md. By hand:
/// `cargo test --release --all-features --test it history::plans::what_a_roll_up_costs -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn what_a_roll_up_costs() {
    let db = Db::new().await;
    large_fleet(&db.client).await;
    let config = podlock::Config::new(&db.pod_url).with(|c| c.statement_timeout = Some(Duration::from_secs(60)));
    let operator = podlock::Operator::connect(&config).await.expect("an operator");
    let measure = async |what: &str| {
        let free = "UPDATE studio_roll_ups SET token = NULL";
        db.client.batch_execute(free).await.expect("nobody is at it");
        for round in 1..=3 {
            let began = Instant::now();
            let rolled = operator.roll_up().await.expect("a roll-up");
            println!("{what}, round {round}: {:?}, {rolled:?}", began.elapsed());
        }
    };
    db.client.batch_execute("TRUNCATE studio_pod_heartbeats_hourly, studio_pod_reliability").await.expect("empty");
    measure("1,000 pods, 56,000 sessions in 28 days, 672,000 samples").await;
    let names = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason) \
                 SELECT gen_random_uuid(), 'web-' || md5(n::text), now() - n * interval '12 s', \
                 now() - n * interval '12 s' + interval '3 h', 'shutdown' FROM generate_series(1000, 100999) n";
    db.client.batch_execute(names).await.expect("sessions");
    db.client.batch_execute("ANALYZE studio_pod_sessions").await.expect("analyzed");
    measure("the same and 100,000 random names").await;
}
