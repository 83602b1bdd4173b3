//! Names that look like something else.

use std::time::Duration;

use podlock::{Config, ErrorKind, NewRun};

use crate::patience::{CONNECT, SOON};
use crate::support::faults::{Audit, audited, refused};
use crate::support::{Db, eventually, lease, timed};

const SCHEMAS: &[&str] = &[
    "two words",
    "it's",
    "'; DROP TABLE x; --",
    "\"quoted\"",
    "a\"; DROP SCHEMA public; --",
    "Grüße 🦀 ταῦτα",
    "UPPER.lower",
    "a@.b",
    "'@.x",
    "$1 %s {0} \\n",
    "user",
    " ",
];

const PODS: &[&str] = &[
    "it's \"me\"; DROP TABLE studio_pods; --",
    "%s $1 \\ {} 🦀🦀 /liveness",
    "🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀",
    " ",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Boots two pods, lets one die, and sees its run taken over and everything in the schema that was asked for.
async fn a_death_in(db: &Db, schema: &str, survivor: &str, dying: &str) {
    let config = |name: &str| {
        Config::new(&db.url).name(name).lease(lease()).schema(schema).with(|c| {
            // Opening a connection of the pool, settings included, and a statement on it.
            (c.connect_timeout, c.statement_timeout) = (Some(CONNECT), Some(CONNECT));
        })
    };
    let audit = Audit::new();
    let a = audited(config(survivor), &audit).start().await.expect("the survivor starts");
    let b = audited(config(dying), &audit).start().await.expect("the other starts");
    let run = b.start(NewRun::new("work").key(schema)).await.unwrap();
    tokio::time::sleep(lease() + Duration::from_millis(200)).await;
    let dead = b.incarnation();
    drop(b);
    audit.let_finish();
    let s = quoted(schema);
    let sql = format!(
        "SELECT r.state, r.owner_pod, r.attempt, (SELECT reason || ' ' || buried_by FROM {s}.studio_pod_sessions s \
         WHERE s.incarnation = $2) FROM {s}.studio_runs r WHERE run_id = $1"
    );
    let (row, _) = eventually(SOON, &format!("in schema {schema:?} the run is finished"), || async {
        let row = db.client.query_one(&sql, &[&run.run_id.as_uuid(), &dead.as_uuid()]).await.unwrap();
        let (state, attempt): (String, i32) = (row.get(0), row.get(2));
        if state == "succeeded" { Ok((row, attempt)) } else { Err(format!("{state}, attempt {attempt}")) }
    })
    .await;
    assert_eq!((row.get::<_, String>(1), row.get::<_, i32>(2)), (survivor.to_owned(), 2), "{schema:?}");
    assert_eq!(row.get::<_, String>(3), format!("lost {survivor}"), "{schema:?}");
    let status = format!("SELECT pod_id, alive, witness FROM {s}.studio_pod_status");
    let rows = db.client.query(&status, &[]).await.unwrap();
    let rows: Vec<(String, bool, bool)> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    assert_eq!(rows, [(survivor.to_owned(), true, true)]);
    a.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_may_bear_any_name() {
    timed(async {
        let db = Db::empty().await;
        // All at once: pods of different schemas know nothing of each other, under the same names.
        let deaths = SCHEMAS.iter().map(|schema| a_death_in(&db, schema, "a", "b"));
        futures_util::future::join_all(deaths).await;
        let schemas = "SELECT count(*) FROM pg_namespace n WHERE EXISTS (SELECT FROM pg_class c \
                       WHERE c.relnamespace = n.oid AND c.relname = 'studio_pods')";
        assert_eq!(db.client.scalar::<i64>(schemas, &[]).await, i64::try_from(SCHEMAS.len()).unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_bear_any_name() {
    timed(async {
        let db = Db::new().await;
        let deaths = PODS.iter().enumerate().map(|(i, pod)| {
            let (db, other) = (&db, PODS[(i + 1) % PODS.len()]);
            async move { a_death_in(db, &format!("s{i}"), other, pod).await }
        });
        futures_util::future::join_all(deaths).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_the_server_reads_as_another_is_refused() {
    timed(async {
        let db = Db::new().await;
        // In a search_path, "$user" is the role's name even in quotes.
        for schema in ["$user", "pg_temp", "pg_x", "information_schema", "", "a\nb", "ééééééééééééééééééééééééé"]
        {
            let refusal = refused(db.config("a").schema(schema)).await;
            refusal.is(ErrorKind::Config, &["schema", "cannot be used", "nothing was started"], Duration::ZERO);
        }
        for pod in ["a\0b", "a\tb", &"x".repeat(129)] {
            refused(db.config(pod)).await.is(ErrorKind::Config, &["cannot be a pod's name"], Duration::ZERO);
        }
    })
    .await;
}
