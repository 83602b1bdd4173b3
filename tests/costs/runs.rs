//! Statements and written rows of runs, one after another and many at once.

use std::time::Duration;

use podlock::{Config, NewRun, Outcome, Pod, Run};
use serde_json::json;
use tokio_postgres::Client;

use crate::page::{Counts, Table, compare_or_renew};
use crate::patience::SOON;
use crate::server;

/// How many runs one after another, and how many orphans.
const RUNS: usize = 20;
const ORPHANS: usize = 300;

/// The tables of runs. Statements that name none of them are the pod's own.
const TABLES: [&str; 3] = ["studio_runs", "studio_run_attempts", "studio_run_chunks"];
/// What a pod does now and then, whatever its runs do.
/// A claim of nothing warms each connection up, and the connections come as they are needed.
const NOW_AND_THEN: [&str; 6] =
    ["claim", "compare_own_runs", "find_highest_fence", "read_candidates", "read_loads", "tell_of_orphans"];

/// The pod of these tests does next to nothing by itself: its lease is long.
async fn pod(url: &str) -> Pod {
    let config = Config::new(url).name("costs").lease(Duration::from_secs(120)).capacity(1000);
    Pod::builder(config)
        .handler("each", |run: Run| async move {
            run.append("a chunk").await?;
            run.checkpoint(json!({"half": true})).await?;
            Ok(Outcome::Done(json!("done")))
        })
        .handler("wait", |_run: Run| std::future::pending())
        .start()
        .await
        .expect("a pod")
}

/// Waits until `sql` counts `count`.
async fn until(client: &Client, what: &str, sql: &str, count: usize) {
    let look = async {
        loop {
            let seen: i64 = client.query_one(sql, &[]).await.expect("a count").get(0);
            if usize::try_from(seen).is_ok_and(|seen| seen == count) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("{what}: not soon"));
}

/// Rows that were written so far, once no pod is connected any more: the server counts what a connection did when it
/// ends, at the latest.
async fn rows_written(client: &Client) -> Counts {
    let pods = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'podlock/%'";
    until(client, "the pod's connections have ended", pods, 0).await;
    let sql = "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relname = ANY ($1)";
    let mut counts = Counts::new();
    for row in client.query(sql, &[&TABLES.as_slice()]).await.expect("counts") {
        let table: &str = row.get(0);
        for (place, how) in ["inserted", "updated", "deleted"].into_iter().enumerate() {
            let rows: i64 = row.get(place + 1);
            counts.insert(format!("{table}, {how}"), rows.unsigned_abs());
        }
    }
    counts
}

async fn database(admin: &Client, server: &podlock::throwaway::Server, name: &str) -> String {
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a database");
    let url = server.url(name);
    podlock::migrate::up(&Config::new(&url)).await.expect("the schema");
    url
}

fn add(counts: &mut Counts, of: &str, more: Counts) {
    counts.extend(more.into_iter().filter(|(_, count)| *count > 0).map(|(what, n)| (format!("{of}: {what}"), n)));
}

/// Each run starts, appends a chunk, saves a checkpoint and ends, before the next one starts. Then another pod claims
/// runs that a dead pod left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_and_rows_of_runs_are_those_of_the_page() {
    let (server, admin) = server::start().await;
    let mut counts = Counts::new();
    let url = database(&admin, &server, "each").await;
    let client = server::connect(&url).await;
    let pod_of_each = pod(&url).await;
    server::reset(&admin).await;
    for ended in 1..=RUNS {
        pod_of_each.start(NewRun::new("each")).await.expect("a run");
        let sql = "SELECT count(*) FROM studio_runs WHERE state = 'succeeded'";
        until(&client, "the run has ended", sql, ended).await;
    }
    let mut statements = server::calls(&admin, &TABLES).await;
    statements.retain(|file, _| !NOW_AND_THEN.contains(&file.as_str()));
    add(&mut counts, &format!("{RUNS} runs, statements"), statements);
    drop(pod_of_each);
    add(&mut counts, &format!("{RUNS} runs, rows"), rows_written(&client).await);

    let url = database(&admin, &server, "orphans").await;
    let client = server::connect(&url).await;
    let orphans = format!(
        "INSERT INTO studio_pod_sessions (incarnation, pod_id, ended_at, reason) \
           VALUES ('00000000-0000-0000-0000-0000000000ff', 'dead', now(), 'lost'); \
         INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt) \
           SELECT gen_random_uuid(), 'wait', 'dead', '00000000-0000-0000-0000-0000000000ff', \
                  nextval('studio_fence'), 1 FROM generate_series(1, {ORPHANS}); \
         INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence) \
           SELECT run_id, 1, owner_pod, owner_incarnation, fence FROM studio_runs; \
         SELECT pg_stat_force_next_flush()"
    );
    client.batch_execute(&orphans).await.expect("orphans");
    server::reset(&admin).await;
    let claimer = pod(&url).await;
    let sql = "SELECT count(*) FROM studio_runs WHERE owner_pod = 'costs'";
    until(&client, "the orphans are claimed", sql, ORPHANS).await;
    let mut statements = server::calls(&admin, &TABLES).await;
    statements.retain(|file, _| !NOW_AND_THEN.contains(&file.as_str()));
    add(&mut counts, &format!("{ORPHANS} orphans, statements beside claims"), statements);
    let claims = "SELECT count(*) FROM studio_pod_events WHERE kind = 'claimed'";
    let claims: i64 = client.query_one(claims, &[]).await.expect("events").get(0);
    counts.insert(format!("{ORPHANS} orphans: claims with an effect"), claims.unsigned_abs());
    drop(claimer);
    add(&mut counts, &format!("{ORPHANS} orphans and their beginning, rows"), rows_written(&client).await);
    compare_or_renew(&Table { name: "statements and rows", heads: ["what", "count"], tolerance: 0.0 }, &counts);
}
