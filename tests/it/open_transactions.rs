//! A transaction that somebody leaves open holds up one thing, for a bounded time, and is named.

use std::time::{Duration, Instant};

use podlock::{NewRun, Pod};
use uuid::Uuid;

use crate::patience::{SOON, slack};
use crate::runs::stage::{CLAIM, blocked, nudge, orphan};
use crate::support::faults::OwnServer;
use crate::support::{Db, eventually, lease, sql, start, timed, trace};

/// How long the functions for operators let their transaction idle.
const PATIENCE: Duration = Duration::from_secs(3);

/// The server ends a session that idles in its transaction. It is not asked: that would be no idling.
async fn is_ended(eyes: &sql::Client, backend: i32) {
    eventually(PATIENCE + SOON, "the server ends the session that idles in its transaction", || async {
        let there = eyes.scalar::<i64>("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", &[&backend]).await;
        if there == 0 { Ok(()) } else { Err("it is there".to_owned()) }
    })
    .await;
}

/// An operator opens a transaction as psql does with AUTOCOMMIT off, calls a function, and leaves. Deaths are buried,
/// runs claimed and pods registered within what the function allows, and the server ends the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_open_transaction_holds_up_no_burial_claim_or_start_for_long() {
    timed(async {
        for call in ["studio_drain('c'::text)", "studio_evict('c'::text)", "studio_release($run$%$run$::uuid)"] {
            let db = Db::new().await;
            let [a, b, c]: [Pod; 3] = db.settled_pods().await;
            let run = b.start(NewRun::new("wait")).await.unwrap().run_id;
            let quarantined = Uuid::now_v7();
            let insert =
                "INSERT INTO studio_runs (run_id, kind, state, finished_at) VALUES ($1, 'none', 'quarantined', now())";
            db.client.execute(insert, &[&quarantined]).await.unwrap();
            let operator = sql::connect(&db.url).await;
            let backend: i32 = operator.scalar("SELECT pg_backend_pid()", &[]).await;
            let call = format!("BEGIN; SELECT {}", call.replace('%', &quarantined.to_string()));
            operator.batch_execute(&call).await.unwrap();
            let began = Instant::now();
            let dead = b.incarnation();
            drop(b);
            let d = start(db.config("d")).await;
            eventually(SOON, "the dead pod is buried", || async {
                db.client.session_end(dead).await.map(drop).ok_or("not yet".to_owned())
            })
            .await;
            eventually(SOON, "its run is claimed", || async {
                let run = db.client.run(run).await;
                if run.attempt == 2 { Ok(()) } else { Err(format!("{run:?}")) }
            })
            .await;
            let bound = PATIENCE + lease() + slack(Duration::from_secs(2));
            assert!(began.elapsed() < bound, "{call}: {:?}, and {bound:?} is the bound", began.elapsed());
            is_ended(&db.client, backend).await;
            drop((a, c, d));
        }
    })
    .await;
}

/// What the caller has set itself stays where it is shorter, and all is as before after the transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_limit_stays_and_none_outlives_the_transaction() {
    timed(async {
        let db = Db::new().await;
        let pod = start(db.config("a")).await;
        let shown = async |client: &sql::Client| {
            let sql = "SELECT concat(current_setting('idle_in_transaction_session_timeout'), ' ', \
                       current_setting('statement_timeout'))";
            client.scalar::<String>(sql, &[]).await
        };
        for (before, during) in [("0", "3s 3s"), ("'1min'", "3s 3s"), ("700", "700ms 700ms"), ("'3s'", "3s 3s")] {
            let client = sql::connect(&db.url).await;
            let set = format!("SET idle_in_transaction_session_timeout = {before}; SET statement_timeout = {before}");
            client.batch_execute(&set).await.unwrap();
            let was = shown(&client).await;
            client.batch_execute("BEGIN; SELECT studio_drain('a'::text)").await.unwrap();
            assert_eq!(shown(&client).await, during, "{before}");
            client.batch_execute("ROLLBACK").await.unwrap();
            assert_eq!(shown(&client).await, was);
        }
        drop(pod);
    })
    .await;
}

/// A peer that would evict a stalled pod waits for nobody who holds its row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_evicts_passes_over_a_row_that_somebody_holds() {
    timed(async {
        let db = Db::new().await;
        let pod = start(db.config("a")).await;
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let index: i64 = txn.query_one("SELECT event_index FROM studio_pods FOR UPDATE", &[]).await.unwrap().get(0);
        let evict = "SELECT studio_end_backends($1, $2, 'stalled'::text, 'x'::text)";
        let own = pod.incarnation().as_uuid();
        let peer = sql::connect(&db.url).await;
        peer.batch_execute("SET lock_timeout = '60s'").await.unwrap();
        let ended: Option<i32> =
            tokio::time::timeout(SOON, peer.scalar(evict, &[&own, &index])).await.expect("it waits");
        assert_eq!(ended, None);
        txn.rollback().await.unwrap();
        drop(pod);
    })
    .await;
}

/// Somebody holds the row of an attempt that a claim ends. The claim waits for it, and nobody waits for the claim: it
/// has not got the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_waits_for_the_row_of_an_attempt_does_not_hold_the_log() {
    timed(async {
        let db = Db::new().await;
        let a = start(db.config("a")).await;
        // A sweep must not claim the run before the row is held: until then no pod has a handler for it.
        let (run_id, _) = orphan(&db.client, "later").await;
        let mut holder = sql::connect(&db.url).await;
        let held = holder.transaction().await.unwrap();
        held.execute("SELECT FROM studio_run_attempts WHERE run_id = $1 FOR UPDATE", &[&run_id.as_uuid()])
            .await
            .unwrap();
        let claimable = "UPDATE studio_runs SET kind = 'wait' WHERE run_id = $1";
        db.client.execute(claimable, &[&run_id.as_uuid()]).await.unwrap();
        nudge(&db.client).await;
        blocked(&db.client, CLAIM, 1).await;
        let with_log = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                        WHERE l.relation = 'studio_log_order'::regclass AND l.granted AND a.wait_event_type = 'Lock'";
        assert_eq!(db.client.scalar::<i64>(with_log, &[]).await, 0, "the claim waits and has the log");
        held.rollback().await.unwrap();
        db.client.run_owned_by(run_id, a.incarnation(), SOON).await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// A guard that is kept busy, shared, or prepared hides its run from claims for as long as it likes. It is named, once,
/// with who has it; the other runs are claimed; and the run goes on when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_a_transaction_hides_is_named_with_who_hides_it() {
    timed(async {
        let server = OwnServer::start(&[("max_prepared_transactions", "5")]).await;
        for (kind, holders) in [("busy", 1), ("shared", 2), ("prepared", 1)] {
            let db = Db::on(&server).await;
            let name = format!("hidden-{kind}-{}", db.name);
            let a = start(db.config("a")).await;
            let b = start(db.config(&name)).await;
            tokio::time::sleep(lease() + Duration::from_millis(200)).await;
            let run = a.start(NewRun::new("wait")).await.unwrap();
            let other = a.start(NewRun::new("wait")).await.unwrap();
            let guard = format!(
                "SET application_name = 'the guard'; BEGIN; SELECT public.studio_fence_check('{}'::uuid, '{}'::uuid, \
                 {}::bigint, 600000::integer)",
                run.run_id,
                a.incarnation(),
                run.fence
            );
            let mut guards = Vec::new();
            for _ in 0..holders {
                let client = sql::connect(&db.url).await;
                client.batch_execute(&guard).await.unwrap();
                guards.push(client);
            }
            if kind == "prepared" {
                guards[0].batch_execute("PREPARE TRANSACTION 'it''s mine'").await.unwrap();
            }
            drop(a);
            db.client.run_owned_by(other.run_id, b.incarnation(), lease() * 3 + SOON).await;
            let hidden = || {
                let events = trace::events(&run.run_id.to_string()).into_iter();
                events.filter(|e| e.get("event").is_some_and(|e| e == "run_hidden")).collect::<Vec<_>>()
            };
            let said = eventually(lease() * 2 + SOON, "the hidden run is named", || async {
                hidden().into_iter().next().ok_or("not yet".to_owned())
            })
            .await;
            assert_eq!((said["level"].as_str(), &said["pod"]), ("WARN", &name), "{said:?}");
            let who = &said["holders"];
            let expected =
                if kind == "prepared" { "prepared transaction 'it''s mine'" } else { "application the guard" };
            assert!(who.contains(expected), "{kind}: {who}");
            assert_eq!(who.starts_with("one of: "), kind == "shared", "{kind}: {who}");
            tokio::time::sleep(lease()).await;
            assert_eq!(hidden().len(), 1, "once");
            match kind {
                "prepared" => guards[0].batch_execute("ROLLBACK PREPARED 'it''s mine'").await.unwrap(),
                _ => drop(guards),
            }
            db.client.run_owned_by(run.run_id, b.incarnation(), SOON).await;
            b.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}
