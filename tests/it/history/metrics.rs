//! The backlog: what autoscalers scale on. The metrics of whole pods are in `tests/cli/metrics.rs`, where each pod has a
//! process, and so a recorder, of its own.

use std::time::Duration;

use podlock::operator::BacklogRow;
use podlock::protocol::ending::Reason;
use podlock::protocol::notices::Word;
use podlock::protocol::verdict::WaitFor;
use podlock::{NewRun, Pod, StopReason, meters};
use serde_json::{Value, json};

use crate::patience::SOON;
use crate::support::{Db, eventually, start_of, timed, with_kinds};

async fn backlog(pod: &Pod, kind: &str) -> Option<(i64, i64, i64, i64)> {
    let rows = pod.operator().backlog().await.unwrap();
    let row = rows.into_iter().find(|row| row.kind == kind);
    row.map(|BacklogRow { waiting, running, free_capacity, pods, .. }| (waiting, running, free_capacity, pods))
}

/// "unowned runs by kind, free capacity by kind: what KEDA or an HPA scales on, also as view `studio_backlog`".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_has_the_waiting_runs_and_the_room_of_each_kind() {
    timed(async {
        let db = Db::new().await;
        let config = |name: &str| db.config(name).capacity(5).capacity_of("wait", 2);
        let a = start_of(|| with_kinds(Pod::builder(config("a")))).await;
        let b = start_of(|| with_kinds(Pod::builder(config("b")))).await;
        // Waiting, running, free, pods.
        assert_eq!(backlog(&a, "echo").await, Some((0, 0, 10, 2)), "a kind without a run");
        assert_eq!(backlog(&a, "wait").await, Some((0, 0, 4, 2)), "it has a limit of its own");
        assert_eq!(backlog(&a, "nobodys").await, None);

        a.submit(NewRun::new("nobodys")).await.unwrap();
        assert_eq!(backlog(&a, "nobodys").await, Some((1, 0, 0, 0)), "a kind that no pod handles has no capacity");
        a.start(NewRun::new("wait")).await.unwrap();
        assert_eq!(backlog(&a, "wait").await, Some((0, 1, 3, 2)));
        assert_eq!(backlog(&a, "echo").await, Some((0, 0, 9, 2)), "a place that is taken is taken for each kind");
        b.start(NewRun::new("steps").input(json!({ "steps": 100_000 }))).await.unwrap();
        assert_eq!(backlog(&a, "wait").await, Some((0, 1, 3, 2)), "the limit of the kind is the lower one");

        // A cordoned pod takes none.
        a.operator().cordon("b").await.unwrap();
        assert_eq!(backlog(&a, "wait").await, Some((0, 1, 1, 1)));
        assert_eq!(backlog(&a, "echo").await, Some((0, 0, 4, 1)));
        assert_eq!(backlog(&a, "steps").await, Some((0, 1, 4, 1)), "its runs run on");
        a.operator().uncordon("b").await.unwrap();

        // A run whose owner has left the roster waits as well. The kind has no handler, so nobody takes it.
        let orphan = "UPDATE studio_runs SET owner_pod = 'ghost', owner_incarnation = gen_random_uuid() \
                      WHERE kind = 'nobodys'";
        db.client.batch_execute(orphan).await.unwrap();
        assert_eq!(backlog(&a, "nobodys").await, Some((1, 0, 0, 0)));

        // A row that somebody wrote by hand breaks nothing (L12).
        let by_hand = r#"UPDATE studio_pods SET capacity_of = '{"wait": "many", "echo": -1e300}' WHERE pod_id = 'b'"#;
        db.client.batch_execute(by_hand).await.unwrap();
        assert_eq!(backlog(&a, "wait").await, Some((0, 1, 1 + 4, 2)), "a limit that is no number is none");
        assert_eq!(backlog(&a, "echo").await, Some((0, 0, 4, 2)));
    })
    .await;
}

/// Sums up the rows that a plan's scans of the runs read, and fails on a scan of the whole table.
fn rows_read(plan: &Value) -> f64 {
    let of_runs = plan["Relation Name"] == "studio_runs";
    let kind = plan["Node Type"].as_str().unwrap();
    assert!(!(of_runs && kind == "Seq Scan"), "it reads the whole table: {plan:#}");
    let passed_over = plan["Rows Removed by Filter"].as_f64().unwrap_or(0.0);
    let own = if of_runs { plan["Actual Rows"].as_f64().unwrap() + passed_over } else { 0.0 };
    own + plan["Plans"].as_array().into_iter().flatten().map(rows_read).sum::<f64>()
}

/// The backlog reads running runs alone, through their index, however many have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_reads_an_index_at_10_000_running_runs_beside_many_that_ended() {
    timed(async {
        let db = Db::new().await;
        let pod = db.pod("a").await;
        let many = "INSERT INTO studio_runs (run_id, kind, state, finished_at) \
                    SELECT gen_random_uuid(), 'k' || n % 7, 'succeeded', now() FROM generate_series(1, 60000) AS n; \
                    INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt) \
                    SELECT gen_random_uuid(), 'k' || n % 7, \
                           CASE WHEN n % 2 = 0 THEN p.pod_id END, CASE WHEN n % 2 = 0 THEN p.incarnation END, 1, 1 \
                      FROM generate_series(1, 10000) AS n CROSS JOIN studio_pods AS p; \
                    ANALYZE studio_runs";
        pod.operator().cordon("a").await.unwrap();
        db.client.batch_execute(many).await.unwrap();
        let sql = "EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM studio_backlog";
        let plan: Value = db.client.scalar(sql, &[]).await;
        let read = rows_read(&plan[0]["Plan"]);
        println!("{read} rows, {} ms", plan[0]["Execution Time"]);
        assert!(read <= 10_000.0, "{read} rows: {plan:#}");
        let rows = pod.operator().backlog().await.unwrap();
        let (waiting, running): (i64, i64) = rows
            .iter()
            .filter(|row| row.kind.starts_with('k'))
            .fold((0, 0), |(w, r), row| (w + row.waiting, r + row.running));
        assert_eq!(waiting + running, 10_000, "{rows:?}");
    })
    .await;
}

/// The row of a pod without limits by kind says so, and that of one with a limit has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_states_the_limits_by_kind() {
    timed(async {
        let db = Db::new().await;
        let _a = db.pod("a").await;
        let _b = start_of(|| with_kinds(Pod::builder(db.config("b").capacity_of("wait", 2)))).await;
        let sql = "SELECT capacity_of FROM studio_pods WHERE pod_id = $1";
        assert_eq!(db.client.scalar::<Option<Value>>(sql, &[&"a"]).await, None);
        assert_eq!(db.client.scalar::<Option<Value>>(sql, &[&"b"]).await, Some(json!({ "wait": 2 })));
    })
    .await;
}

/// Nobody asks for the backlog unless a service does: 500 pods must not all read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_pod_that_was_asked_to_reads_the_backlog() {
    timed(async {
        let db = Db::new().await;
        let _quiet = db.pod("quiet").await;
        let reads = |name: &'static str| {
            let client = &db.client;
            async move {
                // The last statement of each pooled connection; the reporting pod runs nothing else on its own.
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'podlock/' || $1 || '/%' \
                           AND query LIKE '%studio_backlog%'";
                client.scalar::<i64>(sql, &[&name]).await
            }
        };
        let every = Duration::from_secs(1);
        let _asked = start_of(|| with_kinds(Pod::builder(db.config("asked"))).report_backlog(every)).await;
        eventually(SOON, "the pod that was asked to reads it", || async {
            let seen = reads("asked").await;
            if seen > 0 { Ok(()) } else { Err(format!("{seen} connections")) }
        })
        .await;
        assert_eq!(reads("quiet").await, 0);
    })
    .await;
}

/// The values of labels in the list are those that the code uses.
#[test]
fn each_label_has_the_values_that_the_library_knows() {
    let values = |name: &str, label: &str| -> Vec<&str> {
        let meter = meters::ALL.iter().find(|meter| meter.name == name).unwrap();
        meter.labels.iter().find(|of| of.name == label).unwrap().values.to_vec()
    };
    assert_eq!(values("podlock_burials_total", "reason"), Reason::ALL.map(Reason::as_str));
    let taken_over = [Reason::ALL.map(Reason::as_str).as_slice(), &["released", "adopted"]].concat();
    assert_eq!(values("podlock_runs_recovered_total", "reason"), taken_over);
    assert_eq!(values("podlock_notices_heard_total", "word"), Word::ALL.map(Word::as_str));
    let waits =
        [WaitFor::ConnectionBroken, WaitFor::SecondLoss, WaitFor::ManyLost, WaitFor::Unconfirmed, WaitFor::ManyUnknown];
    let waits = [waits.map(WaitFor::as_str).as_slice(), &["unsettled", "door_closed", "held_up"]].concat();
    assert_eq!(values("podlock_waits_total", "reason"), waits);
    let fences = [StopReason::SelfFenced, StopReason::Fenced].map(StopReason::as_str);
    assert_eq!(values("podlock_self_fences_total", "reason"), fences);
}
