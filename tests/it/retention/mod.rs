//! What has ended is deleted when it is old: in small transactions, by those who may, and nothing else goes.

mod kept;

use std::collections::BTreeSet;
use std::time::Duration;

use podlock::operator::{EventFilter, Retention};
use podlock::{Config, ErrorKind, Incarnation, NewRun, Operator, RunId};
use serde_json::{Value, json};

use crate::patience::SOON;
use crate::support::sql::{self, Client};
use crate::support::{Db, eventually, lease, start, timed};

const DAY: Duration = Duration::from_secs(86_400);
/// What one transaction deletes at most.
const BATCH: i64 = 200;

async fn operator(db: &Db) -> Operator {
    Operator::connect(&Config::new(&db.pod_url)).await.expect("an operator, with the rights of pods")
}

/// Runs that ended so many days ago.
async fn ended(client: &Client, state: &str, count: i32, days: f64) {
    let sql = "WITH new AS (INSERT INTO studio_runs (run_id, kind, state, created_at, finished_at) \
                 SELECT gen_random_uuid(), 'old', $1, now() - make_interval(secs => $3), now() - make_interval(secs => \
                 $3) FROM generate_series(1, $2) RETURNING run_id) \
               INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence, ended_at, reason) \
                 SELECT n.run_id, a, 'x', gen_random_uuid(), a, now(), $1 FROM new n, generate_series(1, 2) a";
    client.execute(sql, &[&state, &count, &(days * 86_400.0)]).await.expect("ended runs");
}

async fn count(client: &Client, table: &str) -> i64 {
    client.scalar(&format!("SELECT count(*) FROM {table}"), &[]).await
}

/// How many runs there are in each state.
async fn states(client: &Client) -> Value {
    let sql = "SELECT coalesce(jsonb_object_agg(state, n), '{}') FROM (SELECT state, count(*) AS n \
               FROM studio_runs GROUP BY 1) s";
    client.scalar(sql, &[]).await
}

/// Writes down how many rows each statement deletes, and in which transaction.
async fn record_deletions(client: &Client, table: &str) {
    let sql = format!(
        "CREATE TABLE deletions (rows bigint, xact xid8); \
         CREATE FUNCTION record_deletion() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
         SET search_path = public AS $$ BEGIN \
           INSERT INTO deletions SELECT count(*), pg_current_xact_id() FROM gone; RETURN NULL; END $$; \
         CREATE TRIGGER record_deletion AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone \
           FOR EACH STATEMENT EXECUTE FUNCTION record_deletion()"
    );
    client.batch_execute(&sql).await.expect("a trigger");
}

/// A stream goes with its run, and a long one in many transactions too: the run goes when nothing of it is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_with_their_runs_in_small_transactions() {
    timed(async {
        let db = Db::new().await;
        ended(&db.client, "succeeded", 3, 8.0).await;
        ended(&db.client, "succeeded", 1, 1.0).await;
        let chunks = "INSERT INTO studio_run_chunks (run_id, generation, seq, fence, body) \
                      SELECT r.run_id, 1, n, 1, 'x' FROM studio_runs r, generate_series(0, 9999) n";
        let resets = "INSERT INTO studio_run_resets (run_id, reset, generation, from_seq, fence) \
                      SELECT run_id, 1, 1, 0, 1 FROM studio_runs";
        db.client.batch_execute(&format!("{chunks}; {resets}")).await.unwrap();
        record_deletions(&db.client, "studio_run_chunks").await;
        assert_eq!(operator(&db).await.prune(&Retention::new().runs(7 * DAY)).await.unwrap().runs, 3);
        assert_eq!(count(&db.client, "studio_run_chunks").await, 10_000, "those of the young run");
        assert_eq!(count(&db.client, "studio_run_resets").await, 1);
        let row = db.client.query_one("SELECT max(rows), sum(rows)::bigint FROM deletions", &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (50 * BATCH, 30_000));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_runs_go_in_many_small_transactions_and_nothing_else_goes() {
    timed(async {
        let db = Db::new().await;
        ended(&db.client, "succeeded", 9_000, 8.0).await;
        ended(&db.client, "cancelled", 1_000, 8.0).await;
        ended(&db.client, "succeeded", 3, 6.0).await;
        ended(&db.client, "failed", 5, 8.0).await;
        ended(&db.client, "quarantined", 7, 40.0).await;
        let running = "INSERT INTO studio_runs (run_id, kind, created_at) \
                       SELECT gen_random_uuid(), 'old', now() - interval '1 year' \
                       FROM generate_series(1, 11)";
        db.client.batch_execute(running).await.unwrap();
        record_deletions(&db.client, "studio_runs").await;
        let operator = operator(&db).await;
        let keep = Retention::new().runs(7 * DAY);
        assert_eq!(operator.prunable(&keep).await.unwrap().runs, 10_000);
        assert_eq!(count(&db.client, "studio_runs").await, 10_026, "asked, not done");
        let pruned = operator.prune(&keep).await.unwrap();
        assert_eq!((pruned.runs, pruned.events, pruned.sessions), (10_000, 0, 0));
        let left = json!({"succeeded": 3, "failed": 5, "quarantined": 7, "running": 11});
        assert_eq!(states(&db.client).await, left);
        assert_eq!(count(&db.client, "studio_run_attempts").await, 2 * 15, "their attempts went with them");
        let sql = "SELECT max(rows), sum(rows)::bigint, count(DISTINCT xact), (SELECT max(n) \
                   FROM (SELECT sum(rows) AS n FROM deletions GROUP BY xact) x)::bigint FROM deletions";
        let row = db.client.query_one(sql, &[]).await.unwrap();
        let (most, all, transactions, most_at_once): (i64, i64, i64, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!((most, all, most_at_once), (BATCH, 10_000, BATCH));
        assert!(transactions >= 10_000 / BATCH, "{transactions}");
        // Failed and quarantined runs have a retention time of their own.
        let pruned = operator.prune(&Retention::new().failed_runs(30 * DAY)).await.unwrap();
        assert_eq!(pruned.runs, 7);
        assert_eq!(states(&db.client).await, json!({"succeeded": 3, "failed": 5, "running": 11}));
        assert_eq!(operator.prune(&Retention::new()).await.unwrap().runs, 0, "what is not named is kept");
    })
    .await;
}

/// Whatever a caller with the pods' rights asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_role_can_delete_nothing_that_runs_or_is_young() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        ended(&db.client, "succeeded", 1, 0.04).await;
        ended(&db.client, "failed", 1, 2.0).await;
        // As if it ran for a year; no clock can be that wrong.
        db.client.batch_execute("UPDATE studio_runs SET created_at = now() - interval '1 year'").await.unwrap();
        let as_pod = sql::connect(&db.pod_url).await;
        let all = "ARRAY['running', 'succeeded', 'failed', 'cancelled', 'quarantined']";
        let code = async |client: &Client, sql: String| {
            let refusal = client.query(&sql, &[]).await.expect_err(&sql);
            refusal.code().map(|c| c.code().to_owned()).unwrap_or_default()
        };
        for age in ["interval '59 minutes'", "interval '-1 day'", "NULL", "interval '0'"] {
            assert_eq!(code(&as_pod, format!("SELECT studio_prune_runs({all}, {age}, 9)")).await, "22023", "{age}");
            assert_eq!(code(&as_pod, format!("SELECT studio_prune_sessions({age}, 9)")).await, "22023", "{age}");
            let events = format!("SELECT studio_prune_events({age}, 1, 2, '{{}}', 'x', gen_random_uuid())");
            assert_eq!(code(&as_pod, events).await, "22023", "{age}");
        }
        let young = "SELECT studio_prune_events('1 hour', (SELECT min(idx) FROM studio_pod_events), \
                     (SELECT max(idx) FROM studio_pod_events), '{}', 'x', gen_random_uuid())";
        assert_eq!(as_pod.scalar::<Option<i32>>(young, &[]).await, None, "too young");
        let gone: i32 = as_pod.scalar(&format!("SELECT gone FROM studio_prune_runs({all}, '1 hour', 9)"), &[]).await;
        assert_eq!(gone, 1, "the failed one");
        assert_eq!(states(&db.client).await, json!({"running": 1, "succeeded": 1}));
        assert_eq!(db.client.run(run).await.state, "running");
        // It deletes by these functions alone, and nobody else has them.
        for table in ["studio_runs", "studio_run_attempts", "studio_pod_sessions", "studio_pod_events"] {
            assert_eq!(code(&as_pod, format!("DELETE FROM {table}")).await, "42501", "{table}");
        }
        let reader = format!("reader_{}", db.name);
        db.client.batch_execute(&format!("CREATE ROLE {reader} LOGIN PASSWORD 'hunter2secret'")).await.unwrap();
        let grants = podlock::migrate::grants("public", &reader, podlock::migrate::Access::Read);
        db.client.batch_execute(&grants).await.unwrap();
        let url = db.pod_url.replace("podlock_pod", &reader);
        let as_reader = sql::connect(&url).await;
        assert_eq!(code(&as_reader, format!("SELECT studio_prune_runs({all}, '1 hour', 9)")).await, "42501");
        assert_eq!(code(&as_reader, "SELECT studio_prune_sessions('1 hour', 9)".to_owned()).await, "42501");
        assert_eq!(code(&as_reader, young.to_owned()).await, "42501");
        let error = Operator::connect(&Config::new(&url)).await.unwrap().prune(&Retention::new().runs(DAY)).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Forbidden);
        // What runs under the owner's rights looks nothing up where the caller says.
        let trap = "CREATE TEMP TABLE studio_runs (run_id uuid, state text, finished_at timestamptz)";
        as_pod.batch_execute(trap).await.unwrap();
        as_pod.batch_execute("SET search_path = pg_temp, public").await.unwrap();
        ended(&db.client, "failed", 1, 2.0).await;
        let gone: i32 =
            as_pod.scalar(&format!("SELECT gone FROM public.studio_prune_runs({all}, '1 hour', 9)"), &[]).await;
        assert_eq!(gone, 1, "the real one");
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_below_an_hour_or_beyond_the_servers_is_refused_before_anything_goes() {
    timed(async {
        let db = Db::new().await;
        ended(&db.client, "succeeded", 1, 8.0).await;
        let operator = operator(&db).await;
        for bad in [Duration::ZERO, Duration::from_secs(3599), Duration::MAX] {
            for keep in [Retention::new().runs(DAY).failed_runs(bad), Retention::new().runs(DAY).events(bad)] {
                let error = operator.prune(&keep).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                assert_eq!(operator.prunable(&keep).await.unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        }
        assert_eq!(count(&db.client, "studio_runs").await, 1);
    })
    .await;
}

/// A claim reads in it why the owner ended, however long ago that was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_a_running_run_names_is_kept_until_it_has_ended() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let run = a.start(NewRun::new("rare")).await;
        assert_eq!(run.unwrap_err().kind(), ErrorKind::NoHandler);
        let rare = podlock::Pod::builder(db.config("c"))
            .handler("rare", |run: podlock::Run| async move {
                run.stopped().await;
                Ok(podlock::Outcome::Yield)
            })
            .start()
            .await
            .unwrap();
        let run = rare.start(NewRun::new("rare")).await.unwrap().run_id;
        let [dead, other] = [rare.incarnation(), a.incarnation()];
        drop(rare);
        drop(a);
        for gone in [dead, other] {
            eventually(SOON, "they are buried", || async {
                db.client.session_end(gone).await.ok_or("not yet".to_owned())
            })
            .await;
        }
        let aged = "UPDATE studio_pod_sessions SET ended_at = ended_at - interval '2 years', began_at = began_at - \
                    interval '2 years'";
        db.client.batch_execute(aged).await.unwrap();
        let operator = operator(&db).await;
        let keep = Retention::new().runs(DAY).failed_runs(DAY).events(DAY);
        assert_eq!(operator.prunable(&keep).await.unwrap().sessions, 1);
        assert_eq!(operator.prune(&keep).await.unwrap().sessions, 1);
        assert_eq!(db.client.session_end(other).await, None, "nobody needs it");
        assert_eq!(db.client.session_end(dead).await.map(|end| end.0).as_deref(), Some("lost"));
        // It was a crash, as the claim finds.
        let sessions: i64 = count(&db.client, "studio_pod_sessions").await;
        assert_eq!(sessions, 2, "that one, and the living");
        let heir = podlock::Pod::builder(db.config("d"))
            .handler("rare", |_: podlock::Run| async move { Ok(podlock::Outcome::Done(json!(null))) })
            .start()
            .await
            .unwrap();
        let end = db.client.run_in_state(run, "succeeded", SOON).await;
        assert_eq!((end.attempt, end.crashes), (2, 1), "the end of its owner was still known");
        assert_eq!(operator.prune(&keep).await.unwrap().sessions, 1, "now it may go");
        heir.shutdown(SOON).await.unwrap();
        drop(b);
    })
    .await;
}

/// The log of a fleet that came, went, was cut off and took runs over.
async fn eventful(db: &Db) {
    let [a, b] = db.settled_pods().await;
    a.start(NewRun::new("wait")).await.unwrap();
    db.client.armed("a", SOON).await;
    db.client.terminate("a", "liveness").await;
    eventually(SOON, "a has returned", || async {
        let n: i64 = db.client.scalar("SELECT session FROM studio_pods WHERE pod_id = 'a'", &[]).await;
        // The server knows of the return a moment before the pod does.
        let phase = a.status().phase;
        if n > 1 && phase == podlock::Phase::Active { Ok(()) } else { Err(format!("session {n}, {phase}")) }
    })
    .await;
    let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
    let suspect = "SELECT studio_suspect(incarnation, event_index, 'a', 3) FROM studio_pods WHERE pod_id = 'b'";
    assert!(db.client.scalar::<bool>(suspect, &[]).await);
    drop(a);
    db.client.run_owned_by(run, b.incarnation(), SOON).await;
    db.pod("c").await.shutdown(SOON).await.unwrap();
    drop(b);
    let d = db.pod("d").await;
    db.client.roster_is(&["d"], lease() * 2 + SOON).await;
    // Two dead pods that stay in the roster, because nobody is left to bury them.
    drop(db.pod("e").await);
    drop(d);
}

async fn age_events(client: &Client, upto: i64) {
    client.execute("UPDATE studio_pod_events SET at = at - interval '3 days' WHERE idx <= $1", &[&upto]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folding_the_log_gives_the_roster_wherever_its_beginning_was_cut() {
    timed(async {
        let db = Db::new().await;
        eventful(&db).await;
        db.client.assert_fold_is_roster().await;
        let operator = operator(&db).await;
        let keep = Retention::new().events(2 * DAY);
        let positions: Vec<i64> = db
            .client
            .query("SELECT idx FROM studio_pod_events ORDER BY 1", &[])
            .await
            .unwrap()
            .iter()
            .map(|r| r.get(0))
            .collect();
        assert!(positions.len() > 10, "{positions:?}");
        let whole: Value =
            db.client.scalar("SELECT jsonb_agg(to_jsonb(e) ORDER BY idx) FROM studio_pod_events e", &[]).await;
        for (i, upto) in positions.iter().enumerate() {
            age_events(&db.client, *upto).await;
            let expected = i64::from(i > 0);
            assert_eq!(operator.prunable(&keep).await.unwrap().events, expected);
            assert_eq!(operator.prune(&keep).await.unwrap().events, expected, "at {upto}");
            let left: Vec<i64> = db
                .client
                .query("SELECT idx FROM studio_pod_events ORDER BY 1", &[])
                .await
                .unwrap()
                .iter()
                .map(|r| r.get(0))
                .collect();
            assert_eq!(left, positions[i..], "the snapshot stands where the last deleted event stood");
            db.client.assert_fold_is_roster().await;
        }
        // And cut at once, from the whole log.
        for cut in [2, positions.len() / 2, positions.len()] {
            let mut client = sql::connect(&db.url).await;
            let txn = client.transaction().await.unwrap();
            txn.batch_execute("DELETE FROM studio_pod_events").await.unwrap();
            let restore = "INSERT INTO studio_pod_events OVERRIDING SYSTEM VALUE \
                           SELECT * FROM jsonb_populate_recordset(NULL::studio_pod_events, $1)";
            txn.execute(restore, &[&whole]).await.unwrap();
            txn.commit().await.unwrap();
            age_events(&db.client, positions[cut - 1]).await;
            assert_eq!(operator.prune(&keep).await.unwrap().events, i64::try_from(cut).unwrap() - 1);
            db.client.assert_fold_is_roster().await;
        }
        // Living pods go on writing after it.
        let f = db.pod("f").await;
        db.client.roster_is(&["f"], lease() * 2 + SOON).await;
        db.client.assert_fold_is_roster().await;
        f.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Events of pods that join and leave, as fast as one connection writes them.
async fn life(client: &Client, name: &str) -> [i64; 2] {
    let incarnation = Incarnation::generate().as_uuid();
    let append = "SELECT studio_append_event($1, $2, $3, $2, '{}')";
    let mut idx = [0; 2];
    for (i, kind) in ["joined", "buried"].into_iter().enumerate() {
        idx[i] = client.scalar(append, &[&kind, &name, &incarnation]).await;
    }
    idx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_across_prunes_sees_each_event_once_and_misses_none() {
    timed(async {
        let db = Db::new().await;
        let operator = operator(&db).await;
        let keep = Retention::new().events(2 * DAY);
        let mut follow = operator.follow(EventFilter::new().after(0).limit(7)).await.unwrap();
        let mut slow = operator.follow(EventFilter::new().after(0).limit(3)).await.unwrap();
        let (mut written, mut seen, mut deleted) = (Vec::new(), Vec::new(), 0);
        let mut seen_slowly: Vec<(i64, String)> = Vec::new();
        for round in 0..40 {
            for n in 0..3 {
                written.extend(life(&db.client, &format!("p{round}-{n}")).await);
            }
            while seen.last() != written.last() {
                seen.extend(follow.next().await.unwrap().iter().map(|e| e.idx));
            }
            // All that was read may go, and does.
            age_events(&db.client, seen[seen.len() - 1 - round % 3]).await;
            deleted += operator.prune(&keep).await.unwrap().events;
            if round % 10 == 5 {
                seen_slowly.extend(slow.next().await.unwrap().into_iter().map(|e| (e.idx, e.kind)));
            }
            db.client.assert_fold_is_roster().await;
        }
        assert_eq!(seen, written, "each once, in order");
        assert!(deleted > 200, "{deleted} were deleted meanwhile");
        // One that is behind what is kept goes on with a snapshot, in order, repeating nothing.
        let last = *written.last().unwrap();
        while seen_slowly.last().is_none_or(|(idx, _)| *idx < last) {
            seen_slowly.extend(slow.next().await.unwrap().into_iter().map(|e| (e.idx, e.kind)));
        }
        assert!(seen_slowly.is_sorted_by(|a, b| a.0 < b.0), "{seen_slowly:?}");
        assert!(seen_slowly.iter().any(|(_, kind)| kind == "snapshot"), "{seen_slowly:?}");
        assert!(seen_slowly.iter().all(|(idx, _)| written.contains(idx)));
    })
    .await;
}

/// A prune that has done its work and does not commit holds up nothing that a fleet lives from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_that_hangs_before_its_commit_blocks_neither_claims_nor_ends_nor_burials_nor_other_prunes() {
    timed(async {
        let db = Db::new().await;
        let eager =
            |c: &mut Config| (c.keep_runs, c.keep_events, c.prune_interval) = (DAY, DAY, Duration::from_millis(20));
        let a = start(db.config("a").with(eager)).await;
        let b = start(db.config("b").with(eager)).await;
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        life(&db.client, "x").await;
        ended(&db.client, "succeeded", 3, 2.0).await;
        let mut hung = sql::connect(&db.pod_url).await;
        let hung = hung.transaction().await.unwrap();
        // Again and again: the pods prune as well, and who comes second goes without.
        eventually(SOON, "the test prunes", || async {
            ended(&db.client, "succeeded", 3, 2.0).await;
            let sql = "SELECT gone FROM studio_prune_runs(ARRAY['succeeded'], '1 day', 9)";
            match hung.query_one(sql, &[]).await.expect("pruned").get::<_, Option<i32>>(0) {
                Some(n) if n > 0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // The lock of those who prune is the test's now: what gets old is for nobody else.
        age_events(&db.client, i64::MAX).await;
        let old = "INSERT INTO studio_pod_sessions (incarnation, pod_id, ended_at, reason) \
                   VALUES (gen_random_uuid(), 'x', now() - interval '2 days', 'lost')";
        db.client.batch_execute(old).await.unwrap();
        let events = "SELECT studio_prune_events('1 day', min(idx), max(idx), '{}', 'x', gen_random_uuid()) \
                      FROM studio_pod_events";
        for (sql, rows) in [(events, 3), ("SELECT studio_prune_sessions('1 day', 9)", 1)] {
            assert_eq!(hung.query_one(sql, &[]).await.expect("pruned").get::<_, Option<i32>>(0), Some(rows), "{sql}");
        }
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        let echo = b.start(NewRun::new("echo")).await.unwrap().run_id;
        db.client.run_in_state(echo, "succeeded", SOON).await;
        let dead = a.incarnation();
        drop(a);
        db.client.run_owned_by(run, b.incarnation(), SOON).await;
        assert!(db.client.session_end(dead).await.is_some());
        // Other prunes go without, and wait for nobody.
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND wait_event_type = 'Lock' AND query LIKE '%prune%'";
        assert_eq!(db.client.scalar::<i64>(waiting, &[]).await, 0);
        let elsewhere: Option<i32> = db.client.scalar("SELECT studio_prune_sessions('1 day', 9)", &[]).await;
        assert_eq!(elsewhere, None);
        hung.rollback().await.unwrap();
        eventually(SOON, "then the pods prune", || async {
            let old: i64 = db.client.scalar("SELECT count(*) FROM studio_runs WHERE kind = 'old'", &[]).await;
            if old == 0 { Ok(()) } else { Err(format!("{old}")) }
        })
        .await;
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Pods and operators prune at once. Each row is deleted once, and no pruner blocks another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_prune_at_once_and_each_row_goes_once() {
    timed(async {
        let db = Db::new().await;
        ended(&db.client, "succeeded", 3_000, 3.0).await;
        ended(&db.client, "failed", 1_000, 3.0).await;
        for n in 0..600 {
            life(&db.client, &format!("p{n}")).await;
        }
        let last: i64 = db.client.scalar("SELECT max(idx) FROM studio_pod_events", &[]).await;
        age_events(&db.client, last).await;
        record_deletions(&db.client, "studio_runs").await;
        // One that somebody looks at is left for later.
        let mut looker = sql::connect(&db.url).await;
        let looker = looker.transaction().await.unwrap();
        let held: uuid::Uuid =
            looker.query_one("SELECT run_id FROM studio_runs LIMIT 1 FOR SHARE", &[]).await.unwrap().get(0);
        let eager = |c: &mut Config| {
            (c.keep_runs, c.keep_failed_runs, c.keep_events) = (2 * DAY, 2 * DAY, 2 * DAY);
            c.prune_interval = Duration::from_millis(10);
        };
        let pods = [start(db.config("a").with(eager)).await, start(db.config("b").with(eager)).await];
        let keep = Retention::new().runs(2 * DAY).failed_runs(2 * DAY).events(2 * DAY);
        let (one, other) = (operator(&db).await, operator(&db).await);
        let (one, other) = tokio::join!(one.prune(&keep), other.prune(&keep));
        let (one, other) = (one.unwrap(), other.unwrap());
        let left = async || {
            let runs: Vec<uuid::Uuid> = db
                .client
                .query("SELECT run_id FROM studio_runs", &[])
                .await
                .unwrap()
                .iter()
                .map(|r| r.get(0))
                .collect();
            let events: i64 = count(&db.client, "studio_pod_events").await;
            (runs, events)
        };
        eventually(SOON, "only what is held or young is left", || async {
            let left = left().await;
            // A snapshot, and the two pods joining.
            if left == (vec![held], 3) { Ok(()) } else { Err(format!("{left:?}, {one:?}, {other:?}")) }
        })
        .await;
        looker.rollback().await.unwrap();
        eventually(SOON, "the last one goes", || async {
            let left = left().await.0;
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        let deleted: i64 = db.client.scalar("SELECT sum(rows)::bigint FROM deletions", &[]).await;
        assert_eq!(deleted, 4_000, "each once");
        assert!(one.runs + other.runs <= 4_000 && one.events + other.events <= 1_199, "{one:?}, {other:?}");
        db.client.assert_fold_is_roster().await;
        for pod in pods {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// The defaults: no run is ever deleted unless somebody says for how long it is needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_prune_old_events_by_default_and_keep_every_run() {
    timed(async {
        let db = Db::new().await;
        ended(&db.client, "succeeded", 2, 4_000.0).await;
        ended(&db.client, "failed", 2, 4_000.0).await;
        let (dead, lately) = (Incarnation::generate(), Incarnation::generate());
        for (incarnation, days) in [(dead, 31.0), (lately, 29.0)] {
            let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason) \
                       VALUES ($1, 'x', now() - make_interval(secs => $2), now() - make_interval(secs => $2), 'lost')";
            db.client.execute(sql, &[&incarnation.as_uuid(), &(days * 86_400.0)]).await.unwrap();
        }
        let last = life(&db.client, "x").await[1];
        db.client
            .execute("UPDATE studio_pod_events SET at = at - interval '31 days' WHERE idx <= $1", &[&last])
            .await
            .unwrap();
        let kept = life(&db.client, "y").await;
        db.client
            .execute("UPDATE studio_pod_events SET at = at - interval '29 days' WHERE idx > $1", &[&last])
            .await
            .unwrap();
        let a = start(db.config("a").with(|c| c.prune_interval = Duration::from_millis(20))).await;
        let joined: i64 = db.client.scalar("SELECT max(idx) FROM studio_pod_events", &[]).await;
        eventually(SOON, "what is older than 30 days is gone", || async {
            let rows =
                db.client.query("SELECT idx, kind, by_pod FROM studio_pod_events ORDER BY 1", &[]).await.unwrap();
            let log: Vec<(i64, String)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
            let expected = [(last, "snapshot"), (kept[0], "joined"), (kept[1], "buried"), (joined, "joined")];
            let session = db.client.session_end(dead).await;
            let is = log.iter().map(|(idx, kind)| (*idx, kind.as_str())).eq(expected) && session.is_none();
            if is && rows[0].get::<_, &str>(2) == "a" { Ok(()) } else { Err(format!("{log:?} {session:?}")) }
        })
        .await;
        assert!(db.client.session_end(lately).await.is_some());
        assert_eq!(states(&db.client).await, json!({"succeeded": 2, "failed": 2}));
        db.client.assert_fold_is_roster().await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// A suspicion is written down once, also where the log's beginning, with its event, is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspicion_is_remembered_beyond_its_event() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        // It would beat; here it stands still.
        drop(a);
        let suspect = "SELECT studio_suspect(incarnation, event_index, 'b', 3) FROM studio_pods WHERE pod_id = 'a'";
        assert!(db.client.scalar::<bool>(suspect, &[]).await);
        assert!(!db.client.scalar::<bool>(suspect, &[]).await, "once");
        let operator = operator(&db).await;
        for _ in 0..2 {
            life(&db.client, "x").await;
            age_events(&db.client, i64::MAX).await;
            assert!(operator.prune(&Retention::new().events(DAY)).await.unwrap().events > 0);
            assert_eq!(count(&db.client, "studio_pod_events").await, 1);
            assert!(!db.client.scalar::<bool>(suspect, &[]).await, "the snapshot knows");
        }
        db.client.batch_execute("UPDATE studio_pods SET event_index = event_index + 1").await.unwrap();
        assert!(db.client.scalar::<bool>(suspect, &[]).await, "it moved, and stands again");
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// Nothing is deleted that could not be folded: a newer version's event, or a hand's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_does_not_fold_is_left_as_it_is() {
    timed(async {
        let db = Db::new().await;
        life(&db.client, "x").await;
        let append = "SELECT studio_append_event('draining', 'y', gen_random_uuid(), 'y', '{}')";
        db.client.batch_execute(append).await.unwrap();
        life(&db.client, "z").await;
        age_events(&db.client, i64::MAX).await;
        let error = operator(&db).await.prune(&Retention::new().events(DAY)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SchemaIncompatible, "{error}");
        assert!(error.to_string().contains("draining of pod y"), "{error}");
        assert_eq!(count(&db.client, "studio_pod_events").await, 5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_run_can_be_started_again_with_what_it_was_started_with() {
    timed(async {
        let db = Db::new().await;
        let operator = operator(&db).await;
        let input = "{\"n\": 123456789012345678901234567890.5, \"b\": [null]}";
        let sql = "INSERT INTO studio_runs (run_id, kind, key, state, finished_at, input, checkpoint, error, crashes, \
                   attempt) VALUES ($1, 'act', 'k', 'quarantined', now(), $2::text::jsonb, '1', 'poison', 3, 4)";
        let old = RunId::generate();
        db.client.execute(sql, &[&old.as_uuid(), &input]).await.unwrap();
        let new = operator.restart(old).await.unwrap();
        let sql = "SELECT jsonb_build_object('kind', kind, 'key', key, 'state', state, 'checkpoint', checkpoint, \
                     'error', error, 'crashes', crashes, 'attempt', attempt, 'owner', owner_incarnation, \
                     'same', input = (SELECT o.input FROM studio_runs o WHERE o.run_id = $2)) \
                   FROM studio_runs WHERE run_id = $1";
        let made: Value = db.client.scalar(sql, &[&new.as_uuid(), &old.as_uuid()]).await;
        let expected = json!({"kind": "act", "key": "k", "state": "running", "checkpoint": null, "error": null,
                              "crashes": 0, "attempt": 0, "owner": null, "same": true});
        assert_eq!(made, expected);
        assert_eq!(db.client.run(old).await.state, "quarantined", "the old one stays as it is");
        let error = operator.restart(old).await.unwrap_err();
        assert_eq!((error.kind(), error.run_id()), (ErrorKind::KeyBusy, Some(new)), "{error}");
        let error = operator.restart(new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(operator.restart(RunId::generate()).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(count(&db.client, "studio_runs").await, 2);
        // The same in SQL, as docs/handlers.md has it; a pod takes both up.
        let a = start(db.config("a")).await;
        let failed = a.start(NewRun::new("fail")).await.unwrap().run_id;
        db.client.run_in_state(failed, "failed", SOON).await;
        let page = include_str!("../../../docs/handlers.md");
        let mut examples = page.split("```sql\n");
        let by_hand = examples.find(|part| part.starts_with("INSERT INTO studio_runs")).expect("an example");
        let by_hand = by_hand.split("```").next().unwrap();
        assert_eq!(db.client.execute(by_hand, &[&failed.as_uuid()]).await.unwrap(), 1);
        let again = operator.restart(failed).await.unwrap();
        db.client.run_in_state(again, "failed", SOON).await;
        eventually(SOON, "both ran", || async {
            let n: i64 = db
                .client
                .scalar(
                    "SELECT count(*) FROM studio_runs WHERE kind = 'fail' AND state = 'failed' \
                                           AND attempt = 1",
                    &[],
                )
                .await;
            if n == 3 { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;
        let ids: BTreeSet<RunId> = [old, new, failed, again].into();
        assert_eq!(ids.len(), 4);
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}
