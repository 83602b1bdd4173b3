//! The laws L1 to L10, each with a test that fails when it is broken. L5 and L7 have more in `runs`.

use std::time::{Duration, Instant};

use podlock::{Config, NewRun, OnDetach, Outcome, Pod, Run, StopReason};
use serde_json::json;

use crate::patience::SOON;
use crate::support::{Db, eventually, lease, server, start, timed, with_kinds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_a_row_appears_only_while_its_lock_is_held_by_the_session_that_writes_it() {
    timed(async {
        let db = Db::new().await;
        podlock::migrate::up(&db.config("x")).await.unwrap();
        // The table itself refuses a row whose lock is not held by the very backend that inserts or replaces it.
        db.client
            .batch_execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   IF NOT public.studio_holds(NEW.lock_key, pg_backend_pid()) THEN RAISE 'row before lock'; END IF; \
                   RETURN NEW; END $$; \
                 CREATE TRIGGER l1 BEFORE INSERT OR UPDATE OF incarnation ON studio_pods \
                   FOR EACH ROW EXECUTE FUNCTION refuse()",
            )
            .await
            .unwrap();
        db.client.execute("SELECT pg_advisory_lock(studio_lock_key('a'))", &[]).await.unwrap();
        let config = db.config("a");
        let booting = tokio::spawn(async move { start(config).await });
        eventually(SOON, "the pod waits for its lock", || async {
            let waiting: i64 = db
                .client
                .scalar(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                    &[],
                )
                .await;
            if waiting == 1 { Ok(()) } else { Err(format!("{waiting} wait")) }
        })
        .await;
        assert_eq!(db.client.roster().await, Vec::<String>::new(), "no row before the lock");
        db.client.execute("SELECT pg_advisory_unlock(studio_lock_key('a'))", &[]).await.unwrap();
        let pod = booting.await.unwrap();
        let alive: bool = db.client.scalar("SELECT alive FROM studio_pod_status WHERE pod_id = 'a'", &[]).await;
        assert!(alive);
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_neighbour_that_is_not_settled_buries_nobody_until_it_is() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        let b = db.pod("b").await;
        let dead = a.incarnation();
        drop(a);
        eventually(SOON, "the dead pod's lock is free", || async {
            let alive: bool = db.client.scalar("SELECT alive FROM studio_pod_status WHERE pod_id = 'a'", &[]).await;
            if alive { Err("still alive".to_owned()) } else { Ok(()) }
        })
        .await;
        db.client.roster_is(&["b"], lease() + SOON).await;
        assert_eq!(db.client.session_end(dead).await, Some(("lost".to_owned(), Some("b".to_owned()))));
        let early: bool = db
            .client
            .scalar(
                "SELECT e.at - p.started_at < make_interval(secs => $1) FROM studio_pod_events e, studio_pods p \
                 WHERE e.kind = 'buried' AND p.pod_id = 'b'",
                &[&(lease().as_secs_f64() * 0.95)],
            )
            .await;
        assert!(!early, "buried before the burier was settled");
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_pod_next_to_an_unsettled_one_is_buried_at_once_by_a_settled_one() {
    timed(async {
        let db = Db::new().await;
        // Only a settled pod far away in time: its sweep would come after half a minute.
        const SWEEP: Duration = Duration::from_secs(30);
        let slow = |name: &str| {
            db.config(name).with(|c| {
                c.lease = Duration::from_secs(40);
                c.settle = Some(Duration::from_secs(37));
                // The settled pod has been up for as long as its runs may go on.
                c.self_fence = Some(Duration::from_millis(2000));
                c.ping_interval = Some(Duration::from_millis(200));
                c.ping_timeout = Some(Duration::from_millis(1500));
                c.reconnect_backoff_max = Some(Duration::from_millis(100));
                c.sweep_interval = Some(SWEEP);
            })
        };
        let settled = start(db.config("settled").with(|c| {
            c.lease = Duration::from_secs(40);
            c.self_fence = Some(Duration::from_millis(2000));
            c.ping_interval = Some(Duration::from_millis(200));
            c.ping_timeout = Some(Duration::from_millis(1500));
            c.reconnect_backoff_max = Some(Duration::from_millis(100));
            c.settle = Some(Duration::from_millis(6000));
            c.sweep_interval = Some(SWEEP);
            c.push = false;
        }))
        .await;
        eventually(SOON, "settled", || async {
            let age: f64 =
                db.client.scalar("SELECT extract(epoch FROM now() - started_at)::float8 FROM studio_pods", &[]).await;
            if age > 6.3 { Ok(()) } else { Err(format!("{age} s old")) }
        })
        .await;
        let fresh = start(slow("fresh")).await;
        let victim = start(slow("victim")).await;
        db.client.armed("fresh", SOON).await;
        // Let the watch of the fresh one learn of the victim by the roster.
        eventually(SOON, "fresh waits for the victim's lock", || async {
            let waiting: i64 = db
                .client
                .scalar(
                    "SELECT count(*) FROM pg_locks l WHERE l.locktype = 'advisory' AND NOT l.granted \
                       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                       AND ((l.classid::bigint << 32) | l.objid::bigint) = studio_lock_key('victim')",
                    &[],
                )
                .await;
            if waiting > 0 { Ok(()) } else { Err("nobody waits".to_owned()) }
        })
        .await;
        let died = Instant::now();
        let dead = victim.incarnation();
        drop(victim);
        let end = eventually(SOON, "the settled pod buried it", || async {
            db.client.session_end(dead).await.ok_or("not ended".to_owned())
        })
        .await;
        assert_eq!(end, ("lost".to_owned(), Some("settled".to_owned())));
        assert!(died.elapsed() < SWEEP / 2, "long before the settled pod's own sweep");
        drop((settled, fresh));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_pod_that_cannot_prove_that_it_lives_buries_nobody() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        // b's row no longer names the backend that holds b's lock.
        db.client
            .execute("UPDATE studio_pods SET liveness_started = now() - interval '1 day' WHERE pod_id = 'b'", &[])
            .await
            .unwrap();
        drop(a);
        let frees = "SELECT count(*) FROM studio_pod_status WHERE pod_id = 'a' AND NOT alive";
        eventually(SOON, "a's lock is free", || async {
            let n: i64 = db.client.scalar(frees, &[]).await;
            if n == 1 { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;
        // Several sweeps and pushes later.
        tokio::time::sleep(lease()).await;
        assert_eq!(db.client.roster().await, ["a", "b"]);
        db.client
            .execute(
                "UPDATE studio_pods p SET liveness_started = s.backend_start FROM pg_stat_activity s \
                 WHERE p.pod_id = 'b' AND s.pid = p.liveness_pid",
                &[],
            )
            .await
            .unwrap();
        db.client.roster_is(&["b"], SOON).await;
        drop(b);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_the_burier_holds_the_dead_pods_lock_until_its_burial_is_committed() {
    timed(async {
        let mut db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let dead = a.incarnation();
        let other = crate::support::sql::connect(&db.url).await;
        let key: i64 = other.scalar("SELECT studio_lock_key('a')", &[]).await;
        let blocker = db.client.transaction().await.unwrap();
        blocker.batch_execute("LOCK TABLE studio_log_order IN EXCLUSIVE MODE").await.unwrap();
        drop(a);
        // The burial stands before the log: its transaction must hold the lock meanwhile.
        let held = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity s USING (pid) \
                    WHERE studio_holds($1, l.pid) AND s.query LIKE 'WITH proof AS%' AND s.wait_event_type = 'Lock')";
        eventually(SOON, "the burier waits for the log and holds the lock", || async {
            if other.scalar::<bool>(held, &[&key]).await { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        assert!(other.session_end(dead).await.is_none(), "nothing is recorded before the commit");
        blocker.rollback().await.unwrap();
        other.roster_is(&["b"], SOON).await;
        assert_eq!(other.session_end(dead).await, Some(("lost".to_owned(), Some("b".to_owned()))));
        other.assert_fold_is_roster().await;
        drop(b);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_a_pod_never_deletes_its_own_row_and_a_clean_stop_is_told_from_a_kill() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        let run = a.start(NewRun::new("wait")).await.unwrap();
        let stopped = a.incarnation();
        a.shutdown(SOON).await.unwrap();
        assert_eq!(db.client.roster().await, ["a"], "the row stays");
        let state: String = db.client.scalar("SELECT state FROM studio_pods", &[]).await;
        assert_eq!(state, "draining");
        assert_eq!(db.client.session_end(stopped).await, None, "its end is for a survivor to record");
        let b = db.pod("b").await;
        db.client.roster_is(&["b"], lease() + SOON).await;
        assert_eq!(db.client.session_end(stopped).await, Some(("shutdown".to_owned(), Some("b".to_owned()))));
        let taken = db.client.run_owned_by(run.run_id, b.incarnation(), SOON).await;
        assert_eq!((taken.attempt, taken.crashes), (2, 0), "a clean stop is no crash");
        let killed = b.incarnation();
        drop(b);
        assert_eq!(db.client.roster().await, ["b"]);
        let c = db.pod("c").await;
        let end = eventually(lease() + SOON, "b is buried", || async {
            db.client.session_end(killed).await.ok_or("not".to_owned())
        })
        .await;
        assert_eq!(end.0, "lost");
        let taken = db.client.run_owned_by(run.run_id, c.incarnation(), SOON).await;
        assert_eq!((taken.attempt, taken.crashes), (3, 1), "a kill is a crash");
        db.client.assert_fold_is_roster().await;
        drop(c);
    })
    .await;
}

/// A pod whose one run writes a checkpoint whenever the test asks, and says what came of it.
async fn writer(db: &Db) -> (Pod, tokio::sync::mpsc::Sender<()>, tokio::sync::mpsc::Receiver<podlock::Result<()>>) {
    let (ask, asked) = tokio::sync::mpsc::channel::<()>(1);
    let (tell, told) = tokio::sync::mpsc::channel(1);
    let asked = std::sync::Arc::new(tokio::sync::Mutex::new(asked));
    let pod = Pod::builder(db.config("w"))
        .handler("write", move |run: Run| {
            let (asked, tell) = (asked.clone(), tell.clone());
            async move {
                while asked.lock().await.recv().await.is_some() {
                    tell.send(run.checkpoint(json!("mine")).await).await?;
                }
                Ok(Outcome::Done(json!(null)))
            }
        })
        .start()
        .await
        .unwrap();
    (pod, ask, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_a_write_needs_both_the_owners_incarnation_and_its_fence() {
    timed(async {
        let changes = [
            "UPDATE studio_runs SET owner_incarnation = \
             gen_random_uuid()", // a lagging failover handed the same number out twice
            "UPDATE studio_runs SET fence = fence + 1",
            "UPDATE studio_runs SET fence = fence - 1",
            "UPDATE studio_runs SET owner_incarnation = NULL, owner_pod = NULL",
            "UPDATE studio_runs SET state = 'succeeded', finished_at = now()",
            "DELETE FROM studio_runs",
        ];
        for change in changes {
            let db = Db::new().await;
            let (pod, ask, mut told) = writer(&db).await;
            pod.start(NewRun::new("write")).await.unwrap();
            ask.send(()).await.unwrap();
            told.recv().await.unwrap().expect("the owner writes");
            // The owner, not a recovery pass, must notice: both in one go.
            db.client
                .batch_execute(&format!("{change}; UPDATE studio_runs SET checkpoint = '\"other\"'"))
                .await
                .unwrap();
            ask.send(()).await.unwrap();
            let refused = told.recv().await.unwrap().expect_err(change);
            assert!(refused.is_fenced(), "{change}: {refused}");
            let after: Option<serde_json::Value> =
                db.client.query_opt("SELECT checkpoint FROM studio_runs", &[]).await.unwrap().map(|r| r.get(0));
            assert!(after.is_none_or(|v| v == json!("other")), "{change}: the stale write landed");
            drop(pod);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l6_an_orphan_that_nobody_was_told_of_is_found() {
    timed(async {
        let db = Db::new().await;
        let pod = db.pod("a").await;
        eventually(SOON, "the passes that a boot brings about are over", || async {
            let sql = "SELECT min(extract(epoch FROM clock_timestamp() - state_change))::float8 FROM pg_stat_activity \
                       WHERE datname = current_database() AND application_name LIKE 'podlock/%/pool' \
                       AND state = 'idle'";
            match db.client.scalar::<Option<f64>>(sql, &[]).await {
                Some(idle) if idle > 0.4 => Ok(()),
                idle => Err(format!("idle for {idle:?} s")),
            }
        })
        .await;
        // By hand: no notification, no event. One that was never owned, one whose owner is not in the roster.
        db.client
            .batch_execute(
                "INSERT INTO studio_runs (run_id, kind) VALUES (gen_random_uuid(), 'echo'); \
                 INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt) \
                   VALUES (gen_random_uuid(), 'echo', 'ghost', gen_random_uuid(), nextval('studio_fence'), 1)",
            )
            .await
            .unwrap();
        eventually(SOON, "both succeeded", || async {
            let n: i64 = db.client.scalar("SELECT count(*) FROM studio_runs WHERE state = 'succeeded'", &[]).await;
            if n == 2 { Ok(()) } else { Err(format!("{n} of 2")) }
        })
        .await;
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_a_silent_pod_tells_its_runs_to_stop_before_the_server_can_free_its_lock() {
    timed(async {
        let server = tokio::task::spawn_blocking(|| crate::inherited::postgres().start().unwrap()).await.unwrap();
        let server = std::sync::Arc::new(server);
        for on_detach in [OnDetach::Cancel, OnDetach::Continue] {
            let db = Db::on(&server).await;
            let (tell, mut told) = tokio::sync::mpsc::channel(1);
            let config: Config = db.config("a").with(|c| c.on_detach = on_detach);
            let pod = Pod::builder(config)
                .handler("wait", move |run: Run| {
                    let tell = tell.clone();
                    async move {
                        let reason = run.stopped().await;
                        let _ = tell.send((Instant::now(), reason)).await;
                        Err::<Outcome, _>("stopped".into())
                    }
                })
                .start()
                .await
                .unwrap();
            pod.start(NewRun::new("wait")).await.unwrap();
            let pausing = std::sync::Arc::clone(&server);
            tokio::task::spawn_blocking(move || pausing.pause().unwrap()).await.unwrap();
            let silent = Instant::now();
            let stopped = tokio::time::timeout(lease(), told.recv()).await;
            if on_detach == OnDetach::Cancel {
                let (at, reason) = stopped.expect("told before the lease ended").expect("the handler lives");
                assert_eq!(reason, StopReason::SelfFenced);
                assert!(at - silent < lease(), "{:?}", at - silent);
            } else {
                stopped.expect_err("it may go on");
            }
            let resuming = std::sync::Arc::clone(&server);
            tokio::task::spawn_blocking(move || resuming.resume().unwrap()).await.unwrap();
            drop(pod);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l8_no_time_in_the_tables_decides_anything() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let run = a.start(NewRun::new("wait")).await.unwrap();
        for (at, shift) in [("1970-01-01", "- interval '50 years'"), ("3000-01-01", "+ interval '900 years'")] {
            db.client
                .batch_execute(&format!(
                    "UPDATE studio_pods SET started_at = '{at}', beat_at = '{at}'; \
                     UPDATE studio_pod_sessions SET began_at = '{at}'; UPDATE studio_pod_events SET at = '{at}'; \
                     UPDATE studio_runs SET created_at = created_at {shift}; UPDATE studio_run_attempts \
                     SET began_at = '{at}'"
                ))
                .await
                .unwrap();
            tokio::time::sleep(lease()).await;
            assert_eq!(db.client.roster().await, ["a", "b"], "times of {at} changed the roster");
            assert_eq!(db.client.run(run.run_id).await.owner, Some(a.incarnation().as_uuid()));
        }
        drop(a);
        db.client.run_owned_by(run.run_id, b.incarnation(), SOON).await;
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// The rules and the pod's own decisions are made without a wall clock: there is none in their sources.
#[test]
fn l8_no_rule_reads_a_wall_clock() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut read = 0;
    let mut folders = ["protocol", "pod", "runs"].map(|folder| root.join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            read += 1;
            for word in ["SystemTime", "Timestamp", "Zoned", "jiff::", "chrono::"] {
                assert!(!source.contains(word), "{} mentions {word}", path.display());
            }
        }
    }
    assert!(read > 15, "{read} files");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_fences_only_rise() {
    timed(async {
        let db = Db::new().await;
        podlock::migrate::up(&db.config("x")).await.unwrap();
        let cache: i64 =
            db.client.scalar("SELECT cache_size FROM pg_sequences WHERE sequencename = 'studio_fence'", &[]).await;
        assert_eq!(cache, 1, "a cached sequence hands numbers out of order");
        let yielding = |name: &str| {
            with_kinds(Pod::builder(db.config(name))).handler("hop", |run: Run| async move {
                if run.attempt() < 5 { Ok(Outcome::Yield) } else { Ok(Outcome::Done(json!(null))) }
            })
        };
        let (a, b) = (yielding("a").start().await.unwrap(), yielding("b").start().await.unwrap());
        for i in 0..40 {
            let pod = if i % 2 == 0 { &a } else { &b };
            pod.submit(NewRun::new("hop")).await.unwrap();
        }
        eventually(SOON, "all ended", || async {
            let n: i64 = db.client.scalar("SELECT count(*) FROM studio_runs WHERE state = 'succeeded'", &[]).await;
            if n == 40 { Ok(()) } else { Err(format!("{n} of 40")) }
        })
        .await;
        let falling: i64 = db
            .client
            .scalar(
                "SELECT count(*) FROM studio_run_attempts x JOIN studio_run_attempts y USING (run_id) \
                 WHERE y.attempt > x.attempt AND y.fence <= x.fence",
                &[],
            )
            .await;
        let (attempts, fences): (i64, i64) = {
            let row = db
                .client
                .query_one("SELECT count(*), count(DISTINCT fence) FROM studio_run_attempts", &[])
                .await
                .unwrap();
            (row.get(0), row.get(1))
        };
        assert_eq!((falling, attempts, fences), (0, 200, 200));
        a.shutdown(SOON).await.unwrap();
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// A failover to a standby that lagged takes the fence sequence back, and a run to before its claim, while its pod goes
/// on. What the first attempt left behind must not pass for the second's: the pod is given no number twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_after_a_failover_that_lost_a_claim_the_same_pod_is_not_given_the_same_fence_again() {
    timed(async {
        let db = Db::new().await;
        let (hand_out, mut runs) = tokio::sync::mpsc::unbounded_channel();
        let pod = Pod::builder(db.config("a")).handler("held", move |run: Run| {
            hand_out.send(run.clone()).unwrap();
            async move {
                run.stopped().await;
                Ok(Outcome::Yield)
            }
        });
        let pod = pod.start().await.unwrap();
        let before: i64 = db.client.scalar("SELECT last_value FROM studio_fence", &[]).await;
        let run_id = pod.submit(NewRun::new("held")).await.unwrap();
        let first = runs.recv().await.unwrap();
        // As the standby has it: the run was submitted, and nobody has claimed it.
        let back = format!(
            "BEGIN; SELECT setval('studio_fence', {before}, {before} > 1); DELETE FROM studio_run_attempts; \
             UPDATE studio_runs SET owner_pod = NULL, owner_incarnation = NULL, fence = 0, attempt = 0; COMMIT"
        );
        db.client.batch_execute(&back).await.unwrap();
        let second = runs.recv().await.unwrap();
        assert_eq!((second.id(), second.attempt()), (run_id, 1), "the claim was made again");
        assert!(second.fence() > first.fence(), "{} after {}", second.fence(), first.fence());
        let refused = first.checkpoint(json!("of the first attempt")).await.expect_err("it is over");
        assert!(refused.is_fenced(), "{refused}");
        second.checkpoint(json!("of the second")).await.expect("accepted");
        pod.shutdown(Duration::from_secs(5)).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_a_look_that_fails_is_unknown_and_nobody_is_buried_on_it() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        // What a look reads and a burial does not.
        db.client.batch_execute("ALTER TABLE studio_pods RENAME COLUMN drain_requested TO away").await.unwrap();
        drop(a);
        eventually(SOON, "a's lock is free", || async {
            let n: i64 =
                db.client.scalar("SELECT count(*) FROM studio_pod_status WHERE pod_id = 'a' AND NOT alive", &[]).await;
            if n == 1 { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;
        tokio::time::sleep(lease()).await;
        assert_eq!(db.client.roster().await, ["a", "b"], "buried on an unknown");
        assert!(b.status().attached, "the survivor is not disturbed");
        db.client.batch_execute("ALTER TABLE studio_pods RENAME COLUMN away TO drain_requested").await.unwrap();
        db.client.roster_is(&["b"], SOON).await;
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_a_full_lock_table_is_unknown_and_nobody_is_buried_on_it() {
    timed(async {
        let server = tokio::task::spawn_blocking(|| {
            crate::inherited::postgres()
                .setting("max_locks_per_transaction", "10")
                .setting("max_connections", "30")
                .start()
                .unwrap()
        })
        .await
        .unwrap();
        let db = Db::on(&server).await;
        let [a, b, c] = db.settled_pods().await;
        let before: Vec<_> = [&a, &b, &c].map(|p| p.incarnation()).into();
        let greedy = crate::support::sql::connect(&db.url).await;
        let full = greedy.execute("SELECT pg_advisory_lock(n) FROM generate_series(1, 100000) n", &[]).await;
        let code = full.expect_err("the lock table is full").code().map(|c| c.code().to_owned());
        assert_eq!(code.as_deref(), Some("53200"));
        // Looks fail now; the lock of a pod that loses its session cannot even be taken back.
        tokio::time::sleep(lease() / 2).await;
        drop(greedy);
        for pod in ["a", "b", "c"] {
            eventually(SOON, "attached", || async {
                // The greedy session's locks go a moment after its client.
                let row = db.client.query_one("SELECT alive FROM studio_pod_status WHERE pod_id = $1", &[&pod]).await;
                if row.map_err(|e| e.to_string())?.get(0) { Ok(()) } else { Err(format!("{pod} is not")) }
            })
            .await;
        }
        let buried: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_events WHERE kind = 'buried'", &[]).await;
        assert_eq!(buried, 0);
        assert_eq!(before, [&a, &b, &c].map(|p| p.incarnation()));
        drop((a, b, c, server));
    })
    .await;
}

/// The shared server answers to somebody: keeps the harness honest about what it starts.
#[test]
fn the_test_server_is_a_real_postgresql_of_14_or_newer() {
    let url = server().url("postgres");
    let version = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let client = crate::support::sql::connect(&url).await;
        client.scalar::<i32>("SELECT current_setting('server_version_num')::int", &[]).await
    });
    assert!(version >= 140_000, "{version}");
}
