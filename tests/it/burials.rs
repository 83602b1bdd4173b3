//! Burials whose interleaving is forced: by a row that the test locks, so that a burier stands before it with the dead
//! pod's lock in its hand.

use std::time::{Duration, Instant};

use podlock::{NewRun, Pod};
use rustix::process::Signal;

use crate::patience::{SOON, slack};
use crate::support::process::Process;
use crate::support::{Db, eventually, lease, sql, start, timed, trace};

/// Waits until a backend other than `not` holds the key of `pod` and waits in a burial, of which the server shows
/// the beginning; returns the pod that it acts for.
async fn burier_of(client: &sql::Client, pod: &str, not: &[i32]) -> (String, i32) {
    let sql = "SELECT split_part(s.application_name, '/', 2), s.pid FROM pg_stat_activity s \
               WHERE studio_holds(studio_lock_key($1), s.pid) AND s.wait_event_type = 'Lock' \
                 AND s.query LIKE 'WITH proof AS%' AND s.pid <> ALL($2)";
    eventually(SOON, &format!("somebody is about to bury {pod}"), || async {
        let row = client.query_opt(sql, &[&pod, &not]).await.expect("pg_stat_activity");
        row.map(|row| (row.get(0), row.get(1))).ok_or("nobody".to_owned())
    })
    .await
}

async fn buried_events(client: &sql::Client, pod: &str) -> i64 {
    client.scalar("SELECT count(*) FROM studio_pod_events WHERE kind = 'buried' AND pod_id = $1", &[&pod]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_survivors_bury_one_pod_once() {
    timed(async {
        let mut db = Db::new().await;
        let [a, b, c] = db.settled_pods().await;
        let dead = a.incarnation();
        let eyes = sql::connect(&db.url).await;
        let log = db.client.transaction().await.unwrap();
        log.batch_execute("LOCK TABLE studio_log_order IN EXCLUSIVE MODE").await.unwrap();
        drop(a);
        let (first, pid) = burier_of(&eyes, "a", &[]).await;
        // The second looks while the first is at it, and again after the first's backend was ended in the middle.
        eyes.execute("SELECT pg_notify(studio_channel(), 'look')", &[]).await.unwrap();
        eyes.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
        let (second, _) = burier_of(&eyes, "a", &[pid]).await;
        log.rollback().await.unwrap();
        eyes.roster_is(&["b", "c"], SOON).await;
        // Whoever else was on its way finds nothing to do.
        eyes.execute("SELECT pg_notify(studio_channel(), 'look')", &[]).await.unwrap();
        eyes.armed(&first, SOON).await;
        eyes.armed(&second, SOON).await;
        assert_eq!(buried_events(&eyes, "a").await, 1, "{first} and {second}");
        assert_eq!(eyes.session_end(dead).await.map(|e| e.0), Some("lost".to_owned()));
        eyes.assert_fold_is_roster().await;
        drop((b, c));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_of_the_same_name_boots_while_the_old_one_is_being_buried() {
    timed(async {
        let mut db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let (dead, old_run) = (a.incarnation(), a.start(NewRun::new("wait")).await.unwrap());
        let eyes = sql::connect(&db.url).await;
        let config = db.config("a");
        let log = db.client.transaction().await.unwrap();
        log.batch_execute("LOCK TABLE studio_log_order IN EXCLUSIVE MODE").await.unwrap();
        drop(a);
        let (burier, _) = burier_of(&eyes, "a", &[]).await;
        assert_eq!(burier, "b");
        let booting = tokio::spawn(async move { start(config).await });
        eventually(SOON, "the replacement waits for the lock", || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'podlock/a/liveness' \
                       AND wait_event_type = 'Lock'";
            if eyes.scalar::<i64>(sql, &[]).await == 1 { Ok(()) } else { Err("not".to_owned()) }
        })
        .await;
        log.rollback().await.unwrap();
        let replacement: Pod = booting.await.unwrap();
        assert_eq!(
            eyes.session_end(dead).await,
            Some(("lost".to_owned(), Some("b".to_owned()))),
            "buried, not replaced"
        );
        let kinds: Vec<(String, bool)> = eyes
            .query(
                "SELECT kind, incarnation = $1 FROM studio_pod_events WHERE pod_id = 'a' \
                    AND kind IN ('joined', 'buried') ORDER BY idx",
                &[&dead.as_uuid()],
            )
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        assert_eq!(kinds, [("joined".to_owned(), true), ("buried".to_owned(), true), ("joined".to_owned(), false)]);
        eyes.assert_fold_is_roster().await;
        let taken = eventually(SOON, "the run has a new owner", || async {
            let run = eyes.run(old_run.run_id).await;
            if run.attempt == 2 { Ok(run) } else { Err(format!("{run:?}")) }
        })
        .await;
        assert!([b.incarnation(), replacement.incarnation()].map(|i| Some(i.as_uuid())).contains(&taken.owner));
        drop((b, replacement));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_burier_dies_between_burial_and_claim() {
    timed(async {
        let mut db = Db::new().await;
        let [a, b, c] = settled_and_trusting(&db).await;
        let mut runs = Vec::new();
        for _ in 0..20 {
            runs.push(a.start(NewRun::new("wait")).await.unwrap().run_id);
        }
        let dead = a.incarnation();
        let eyes = sql::connect(&db.url).await;
        // Nobody can claim: every update of a run waits.
        let claims = db.client.transaction().await.unwrap();
        claims.batch_execute("LOCK TABLE studio_runs IN EXCLUSIVE MODE").await.unwrap();
        drop(a);
        let (_, buried_by) =
            eventually(SOON, "a is buried", || async { eyes.session_end(dead).await.ok_or("not".to_owned()) }).await;
        let buried_by = buried_by.expect("a burier");
        let (burier, survivor) = if buried_by == "b" { (b, c) } else { (c, b) };
        drop(burier);
        claims.rollback().await.unwrap();
        for run_id in runs {
            eyes.run_owned_by(run_id, survivor.incarnation(), lease() + SOON).await;
        }
        survivor.shutdown(SOON).await.unwrap();
        eyes.assert_fold_is_roster().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_pods_lost_at_once_are_buried_after_settle_and_not_before() {
    timed(async {
        let mut db = Db::new().await;
        let [a, b, c] = db.settled_pods().await;
        let mut runs = Vec::new();
        for pod in [&a, &b] {
            runs.push(pod.start(NewRun::new("wait")).await.unwrap().run_id);
        }
        // Nobody can look at the roster until both are gone: the first look sees two losses.
        let blind = db.client.transaction().await.unwrap();
        blind.batch_execute("LOCK TABLE studio_pods IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let (inc_a, inc_b) = (a.incarnation(), b.incarnation());
        drop((a, b));
        let eyes = sql::connect(&db.url).await;
        eventually(SOON, "all locks of both are free", || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name ~ '^podlock/[ab]/'";
            let n: i64 = eyes.scalar(sql, &[]).await;
            if n == 0 { Ok(()) } else { Err(format!("{n} sessions of theirs")) }
        })
        .await;
        blind.rollback().await.unwrap();
        let seen = Instant::now();
        eyes.roster_is(&["c"], lease() * 2 + SOON).await;
        let took = seen.elapsed();
        assert!(took > lease().mul_f64(0.9), "buried after {took:?}, and settle is {:?}", lease());
        let losses: Vec<i64> = db
            .client
            .query(
                "SELECT (detail->'evidence'->>'in_sight_ms')::bigint FROM studio_pod_events \
                    WHERE kind = 'buried'",
                &[],
            )
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        assert!(losses.len() == 2 && losses.iter().all(|ms| *ms >= 4000), "{losses:?}");
        for incarnation in [inc_a, inc_b] {
            assert_eq!(db.client.session_end(incarnation).await, Some(("lost".to_owned(), Some("c".to_owned()))));
        }
        for run_id in runs {
            db.client.run_owned_by(run_id, c.incarnation(), SOON).await;
        }
        c.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burier_that_freezes_after_its_grant_delays_the_burial_by_no_more_than_two_seconds() {
    timed(async {
        let mut db = Db::new().await;
        let url = db.url.clone();
        let mut processes =
            tokio::task::spawn_blocking(move || ["a", "b", "c"].map(|name| Process::start(&url, name, lease())))
                .await
                .unwrap()
                .into_iter();
        let (a, b, c) = (processes.next().unwrap(), processes.next().unwrap(), processes.next().unwrap());
        for pod in ["a", "b", "c"] {
            db.client.armed(pod, SOON).await;
        }
        tokio::time::sleep(lease() + Duration::from_millis(300)).await;
        let eyes = sql::connect(&db.url).await;
        let log = db.client.transaction().await.unwrap();
        // The burier stands before the roster. What it sends after its look commits without it, so it freezes here.
        log.batch_execute("LOCK TABLE studio_pods IN ACCESS EXCLUSIVE MODE").await.unwrap();
        a.signal(Signal::KILL);
        let burier: String = eventually(SOON, "a watch is granted and looks", || async {
            let sql = "SELECT split_part(application_name, '/', 2) FROM pg_stat_activity \
                       WHERE application_name LIKE '%/watch' AND wait_event_type = 'Lock' \
                       AND query LIKE 'WITH roster%'";
            eyes.query_opt(sql, &[]).await.unwrap().map(|row| row.get(0)).ok_or("nobody".to_owned())
        })
        .await;
        let frozen = if burier == "b" { &b } else { &c };
        frozen.freeze();
        let from = Instant::now();
        log.rollback().await.unwrap();
        let end = eventually(SOON, "a is buried", || async {
            let sql = "SELECT buried_by FROM studio_pod_sessions WHERE pod_id = 'a' AND ended_at IS NOT NULL";
            eyes.query_opt(sql, &[]).await.unwrap().map(|row| row.get::<_, String>(0)).ok_or("not".to_owned())
        })
        .await;
        let took = from.elapsed();
        frozen.signal(Signal::CONT);
        assert_ne!(end, burier, "the frozen one did not bury");
        assert!(took < slack(Duration::from_secs(2)), "{took:?}");
        drop((b, c));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_1000_probes_one_of_them_cancelled_no_backend_holds_a_peers_key() {
    timed(async {
        let db = Db::new().await;
        let [a, b, c] = db.settled_pods().await;
        // A dead pod among them that stays in the roster, so that each probe really takes its locks for a moment.
        let ghost = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                     liveness_pid, liveness_started) \
                     VALUES ('ghost', '', 0, gen_random_uuid(), studio_lock_key('ghost'), studio_witness_key('ghost'), \
                     0, now())";
        db.client.execute("UPDATE studio_pods SET liveness_started = now() - interval '1 day'", &[]).await.unwrap();
        db.client.execute(ghost, &[]).await.unwrap();
        let before: i64 = probes(&db).await;
        for i in 0..400 {
            db.client.execute("SELECT pg_notify(studio_channel(), 'look')", &[]).await.unwrap();
            if i % 100 == 50 {
                // A watcher's or prober's statement, cancelled in the middle.
                let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
                              AND application_name ~ '^podlock/[abc]/(watch|control)$' AND state = 'active'";
                db.client.query(cancel, &[]).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        eventually(SOON, "a thousand probes", || async {
            db.client.execute("SELECT pg_notify(studio_channel(), 'look')", &[]).await.unwrap();
            let done = probes(&db).await - before;
            if done >= 1000 { Ok(()) } else { Err(format!("{done}")) }
        })
        .await;
        assert_eq!(
            db.client.roster().await,
            ["a", "b", "c", "ghost"],
            "nobody can prove that it lives, so nobody buries"
        );
        eventually(SOON, "nobody holds a key that is not its own", || async {
            let sql = "SELECT string_agg(s.application_name, ', ') FROM pg_stat_activity s, studio_pods p \
                       WHERE studio_holds(p.lock_key, s.pid) \
                       AND s.application_name <> 'podlock/' || p.pod_id || '/liveness' \
                          OR studio_holds(p.witness_key, s.pid) \
                          AND s.application_name <> 'podlock/' || p.pod_id || '/control'";
            match db.client.scalar::<Option<String>>(sql, &[]).await {
                None => Ok(()),
                Some(holders) => Err(holders),
            }
        })
        .await;
        for (pod, name) in [(a, "a"), (b, "b"), (c, "c")] {
            db.client.armed(name, SOON).await;
            drop(pod);
        }
    })
    .await;
}

/// How many probes of ours the server has answered: two advisory tries a row and look, counted by the calls of the
/// statement that makes them.
async fn probes(db: &Db) -> i64 {
    // Each look reads the event log's newest index once, by one index scan; so does each slice.
    db.client.execute("SELECT pg_stat_force_next_flush()", &[]).await.unwrap();
    db.client
        .scalar(
            "SELECT coalesce(idx_scan, 0) FROM pg_stat_user_indexes WHERE indexrelname = 'studio_pod_events_pkey'",
            &[],
        )
        .await
}

/// Two are to be buried in one transaction, and somebody holds the row of one of them, in the roster or in the history.
/// The other is buried, no burial waits for a row, and the log stays free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burial_passes_over_a_row_that_somebody_holds() {
    timed(async {
        for (held, table) in [("b", "studio_pods"), ("c", "studio_pods"), ("b", "studio_pod_sessions")] {
            let db = Db::new().await;
            let name = format!("{table}-{held}-{}", db.name);
            let a = start(db.config(&name)).await;
            let [b, c] = [db.pod("b").await, db.pod("c").await];
            tokio::time::sleep(lease() + Duration::from_millis(200)).await;
            let (held_one, other) =
                if held == "b" { (b.incarnation(), c.incarnation()) } else { (c.incarnation(), b.incarnation()) };
            let mut client = sql::connect(&db.url).await;
            let txn = client.transaction().await.unwrap();
            let lock = format!("SELECT FROM {table} WHERE pod_id = $1 FOR NO KEY UPDATE");
            assert_eq!(txn.query(&lock, &[&held]).await.unwrap().len(), 1);
            // Two of two are many, so they are buried together, after `settle`.
            drop((b, c));
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                         AND application_name LIKE 'podlock/%' AND wait_event = 'transactionid'";
            let buried = Some(("lost".to_owned(), Some(name.clone())));
            eventually(a.settings().worst_case().many_lost + SOON, "the other is buried", || async {
                assert_eq!(db.client.scalar::<i64>(waits, &[]).await, 0, "{held}: a row is waited for");
                let end = db.client.session_end(other).await;
                if end == buried { Ok(()) } else { Err(format!("{end:?}")) }
            })
            .await;
            // A row that is held for longer than a lease is reported once.
            eventually(lease() + SOON, "it is named", || async {
                assert_eq!(db.client.scalar::<i64>(waits, &[]).await, 0, "{held}: a row is waited for");
                let named = trace::events(&name).iter().any(|e| e.get("event").is_some_and(|e| e == "burial_held_up"));
                if named { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            assert_eq!(db.client.session_end(held_one).await, None, "{held}");
            let log_is_free = "BEGIN; LOCK TABLE studio_log_order IN EXCLUSIVE MODE NOWAIT; COMMIT";
            let free = db.client.batch_execute(log_is_free).await;
            assert!(free.is_ok(), "{held}: the log is held while a row is held");
            txn.rollback().await.unwrap();
            db.client.roster_is(&[&name], SOON).await;
            assert_eq!(db.client.session_end(held_one).await, buried);
            let said =
                trace::events(&name).iter().filter(|e| e.get("event").is_some_and(|e| e == "burial_held_up")).count();
            assert_eq!(said, 1);
            db.client.assert_fold_is_roster().await;
            a.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Pods that may bury, for whose runs two deaths in a row are nothing: what they take up they all take up.
async fn settled_and_trusting(db: &Db) -> [Pod; 3] {
    let mut pods = Vec::new();
    for name in ["a", "b", "c"] {
        pods.push(start(db.config(name).with(|c| c.max_crashes = 0)).await);
    }
    tokio::time::sleep(lease() + Duration::from_millis(200)).await;
    pods.try_into().expect("three")
}
