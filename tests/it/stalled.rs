//! Pods that run and make no progress.

use std::time::Duration;

use podlock::{Config, NewRun, OnStall, Operator, Pod, PodEvent};
use serde_json::json;

use crate::patience::SOON;
use crate::runs::stage::behind_proxy;
use crate::support::faults::OwnServer;
use crate::support::proxy::{ALL, Flow};
use crate::support::{Db, eventually, lease, start, timed, trace};

const BEAT: Duration = Duration::from_millis(300);

fn config(db: &Db, name: &str, on_stall: OnStall) -> Config {
    db.config(name).with(|c| {
        c.beat_interval = Some(BEAT);
        c.on_stall = on_stall;
    })
}

async fn three(db: &Db, on_stall: OnStall) -> [Pod; 3] {
    let pods = [
        start(config(db, "a", on_stall)).await,
        start(config(db, "b", on_stall)).await,
        start(config(db, "c", on_stall)).await,
    ];
    tokio::time::sleep(lease() + Duration::from_millis(200)).await;
    pods
}

/// The events of a kind about a pod: by whom, and the detail.
async fn events(db: &Db, kind: &str, pod: &Pod) -> Vec<(String, serde_json::Value)> {
    let sql = "SELECT by_pod, detail FROM studio_pod_events WHERE kind = $1 AND incarnation = $2 ORDER BY idx";
    let rows = db.client.query(sql, &[&kind, &pod.incarnation().as_uuid()]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn suspected(db: &Db, pod: &Pod) {
    eventually(SOON, "it is suspected", || async {
        let events = events(db, "suspected", pod).await;
        if events.is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// The default: it is told of, once although two peers see it, and left alone; and when it moves and stops again, told
/// of again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_source_stands_still_is_suspected_once_and_left_alone() {
    timed(async {
        let db = Db::new().await;
        let [a, b, c] = three(&db, OnStall::Report).await;
        let mut heard = b.events();
        let source = a.progress_source();
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        source.tick();
        suspected(&db, &a).await;
        let told = async {
            loop {
                if let PodEvent::Suspected { pod, incarnation } = heard.recv().await.unwrap() {
                    return (pod, incarnation);
                }
            }
        };
        assert_eq!(told.await, (a.pod_id().clone(), a.incarnation()));
        // Both others look on, many times.
        tokio::time::sleep(BEAT * 8).await;
        let once = events(&db, "suspected", &a).await;
        assert_eq!(once.len(), 1, "{once:?}");
        assert_eq!(once[0].1["looks"], 3, "stall_cycles");
        assert_eq!((events(&db, "suspected", &b).await, events(&db, "suspected", &c).await), (vec![], vec![]));
        assert_eq!(db.client.run(run).await.attempt, 1, "nobody took its run");
        assert!(a.status().attached);
        // It moves, and stands still anew.
        source.tick();
        eventually(SOON, "it is suspected again", || async {
            let n = events(&db, "suspected", &a).await.len();
            if n == 2 { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;
        assert_eq!(events(&db, "evicted", &a).await, []);
        db.client.assert_fold_is_roster().await;
        for pod in [a, b, c] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// What is no stall: a source with nothing to do, one that was dropped, and one that stands still while fenced writes
/// are accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_sources_dropped_ones_and_accepted_writes_are_no_stall() {
    timed(async {
        let db = Db::new().await;
        let [a, b, c] = three(&db, OnStall::Evict).await;
        let (idle, dropped, beside_a_run) = (a.progress_source(), b.progress_source(), c.progress_source());
        idle.tick();
        idle.idle();
        dropped.tick();
        drop(dropped);
        beside_a_run.tick();
        let steps = NewRun::new("steps").input(json!({ "steps": 60, "pause_ms": 50 }));
        let run = c.start(steps).await.unwrap().run_id;
        db.client.run_in_state(run, "succeeded", SOON).await;
        for pod in [&a, &b, &c] {
            assert_eq!(events(&db, "suspected", pod).await, [], "{pod:?}");
        }
        // And then its source is all that counts.
        suspected(&db, &c).await;
        drop(idle);
    })
    .await;
}

/// Any progress is progress: one of two busy sources that moves is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_one_of_whose_busy_sources_moves_is_not_suspected() {
    timed(async {
        let db = Db::new().await;
        let [a, b, c] = three(&db, OnStall::Report).await;
        let (moving, standing) = (a.progress_source(), a.progress_source());
        standing.tick();
        // For as long as would make it suspect three times over.
        for _ in 0..60 {
            moving.tick();
            tokio::time::sleep(BEAT / 4).await;
        }
        assert_eq!(events(&db, "suspected", &a).await, []);
        // And once nothing moves, it is. No required source is to blame, so none is named.
        suspected(&db, &a).await;
        assert_eq!(events(&db, "suspected", &a).await[0].1.get("source"), None);
        drop((b, c));
    })
    .await;
}

/// A required source alone makes the pod suspect, whatever else moves, and event, row and log name it; while it is
/// idle, it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_source_that_stands_still_makes_the_pod_suspect_and_is_named() {
    timed(async {
        let db = Db::new().await;
        let [a, b, c] = three(&db, OnStall::Report).await;
        let gpu = a.progress_source().named("the GPU of pod a").required();
        let queue = a.progress_source().named("queue");
        let run =
            a.start(NewRun::new("steps").input(json!({ "steps": 100_000, "pause_ms": 20 }))).await.unwrap().run_id;
        gpu.tick();
        gpu.idle();
        queue.tick();
        tokio::time::sleep(BEAT * 8).await;
        assert_eq!(events(&db, "suspected", &a).await, [], "it is idle, and a run writes");
        gpu.tick();
        eventually(SOON, "it is suspected", || async {
            queue.tick();
            let events = events(&db, "suspected", &a).await;
            if events.is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
        })
        .await;
        let told = events(&db, "suspected", &a).await;
        assert_eq!((told.len(), &told[0].1["source"]), (1, &json!("the GPU of pod a")), "{told:?}");
        let standing = "SELECT standing FROM studio_pods WHERE pod_id = 'a'";
        assert_eq!(db.client.scalar::<Option<String>>(standing, &[]).await.as_deref(), Some("the GPU of pod a"));
        eventually(SOON, "the log names it, once for each", || async {
            let of_source = trace::events("the GPU of pod a");
            let logged: Vec<_> = of_source.iter().map(|e| e["event"].as_str()).collect();
            if logged == ["standing", "suspected"] { Ok(()) } else { Err(format!("{logged:?}")) }
        })
        .await;
        assert_eq!(db.client.run(run).await.state, "running");
        gpu.tick();
        eventually(SOON, "its row says that it moved", || async {
            match db.client.scalar::<Option<String>>(standing, &[]).await {
                None => Ok(()),
                Some(source) => Err(source),
            }
        })
        .await;
        drop((b, c));
    })
    .await;
}

/// The policy: hung is turned into dead, the one burial path does the rest, and the pod stays away until it gets
/// somewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_pod_is_evicted_where_that_is_the_policy_and_stays_away_until_it_moves() {
    timed(async {
        let db = Db::new().await;
        let [a, b, c] = three(&db, OnStall::Evict).await;
        let source = a.progress_source();
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        let stalled = a.incarnation();
        source.tick();
        let end = eventually(a.settings().worst_case().stalled + SOON, "it was evicted and buried", || async {
            db.client.session_end(stalled).await.ok_or("not yet".to_owned())
        })
        .await;
        assert_eq!(end.0, "stalled");
        assert!(end.1.is_some(), "a peer buried it");
        let taken = eventually(SOON, "its run goes on elsewhere", || async {
            let run = db.client.run(run).await;
            if run.attempt == 2 { Ok(run) } else { Err(format!("{run:?}")) }
        })
        .await;
        assert_eq!(taken.crashes, 1, "a stall counts as a crash: {taken:?}");
        let evicted = "SELECT count(*), max((detail->>'backends')::int) FROM studio_pod_events WHERE kind = 'evicted'";
        let row = db.client.query_one(evicted, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<i32>>(1)), (1, Some(2)), "its two backends, once");
        // It lives, and is not given anything to stand still with.
        tokio::time::sleep(lease()).await;
        db.client.roster_is(&["b", "c"], SOON).await;
        assert_eq!(a.incarnation(), stalled);
        source.tick();
        db.client.roster_is(&["a", "b", "c"], SOON).await;
        eventually(SOON, "it knows itself as another", || async {
            if a.incarnation() != stalled { Ok(()) } else { Err(format!("{:?}", a.status())) }
        })
        .await;
        source.idle();
        db.client.assert_fold_is_roster().await;
        for pod in [a, b, c] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Several peers find the same pod stalled. The second one comes when the first has committed and the backends have not
/// ended yet: here they are stopped, so that they cannot. It writes nothing, and an operator may still evict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_pod_is_evicted_once_although_a_second_peer_finds_its_locks_held() {
    timed(async {
        // A backend that is stopped in the middle of a statement can hold up its whole server, so this test has its own.
        let server = OwnServer::start(&[]).await;
        let db = Db::on(&server).await;
        let a = start(config(&db, "a", OnStall::Report)).await;
        let of_a = "SELECT liveness_pid, control_pid, event_index FROM studio_pods WHERE pod_id = 'a' \
                    AND control_pid IS NOT NULL";
        let row = eventually(SOON, "both sessions are recorded", || async {
            db.client.query_opt(of_a, &[]).await.unwrap().ok_or("not yet".to_owned())
        })
        .await;
        let backends = [row.get::<_, i32>(0), row.get(1)];
        let signal = |signal| {
            for pid in backends {
                let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
                rustix::process::kill_process(pid, signal).expect("a backend of the test's own server");
            }
        };
        eventually(SOON, "both backends are idle", || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1) AND state = 'idle'";
            let idle: i64 = db.client.scalar(sql, &[&backends.as_slice()]).await;
            if idle == 2 { Ok(()) } else { Err(format!("{idle}")) }
        })
        .await;
        signal(rustix::process::Signal::STOP);
        let mut ended = Vec::new();
        for peer in ["b", "c"] {
            let sql = "SELECT studio_end_backends($1, $2, 'stalled', $3)";
            let row = db.client.query_one(sql, &[&a.incarnation().as_uuid(), &row.get::<_, i64>(2), &peer]).await;
            ended.push(row.map(|row| row.get::<_, Option<i32>>(0)));
        }
        let by_operator = db.client.query_one("SELECT studio_evict('a')", &[]).await;
        signal(rustix::process::Signal::CONT);
        let ended: Vec<_> = ended.into_iter().collect::<Result<_, _>>().expect("the function answers");
        assert_eq!(ended, [Some(2), None], "the first peer ends two backends, the second none");
        by_operator.expect("an operator may evict again");
        let by: Vec<_> = events(&db, "evicted", &a).await.into_iter().map(|(by, _)| by).collect();
        assert_eq!(by.len(), 2, "the first peer and the operator: {by:?}");
        assert_eq!(by[0], "b");
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// An operator puts a sound pod out: exactly its two lock-holding backends are ended, its runs go on elsewhere without
/// a crash on their record, and it comes back as another incarnation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_eviction_ends_the_two_sessions_and_the_one_burial_path_does_the_rest() {
    timed(async {
        let db = Db::new().await;
        let [a, b, c] = three(&db, OnStall::Report).await;
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        let out = a.incarnation();
        // Its predecessor in the ring waits for its lock at this moment, and is none of those to end.
        let watches = [db.client.backend("b", "watch").await, db.client.backend("c", "watch").await];
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        assert_eq!(operator.evict("a").await.unwrap(), out);
        db.client.run_in_state(run, "running", SOON).await;
        let end = eventually(SOON, "it is buried, or its next incarnation took its place", || async {
            db.client.session_end(out).await.ok_or("not yet".to_owned())
        })
        .await;
        assert_eq!(end.0, "evicted");
        let taken = eventually(SOON, "its run goes on", || async {
            let run = db.client.run(run).await;
            if run.attempt == 2 { Ok(run) } else { Err(format!("{run:?}")) }
        })
        .await;
        assert_eq!(taken.crashes, 0, "{taken:?}");
        assert_eq!([db.client.backend("b", "watch").await, db.client.backend("c", "watch").await], watches);
        let ended: i64 = db
            .client
            .scalar("SELECT (detail->>'backends')::bigint FROM studio_pod_events WHERE kind = 'evicted'", &[])
            .await;
        assert_eq!(ended, 2);
        eventually(SOON, "it is back as another", || async {
            if a.status().attached && a.incarnation() != out { Ok(()) } else { Err(format!("{:?}", a.status())) }
        })
        .await;
        let error = operator.evict("nobody").await.unwrap_err();
        assert_eq!(error.kind(), podlock::ErrorKind::NotFound);
        let evicted: Option<String> = db.client.scalar("SELECT evicted FROM studio_pods WHERE pod_id = 'a'", &[]).await;
        assert_eq!(evicted, None, "the mark went with the incarnation");
        db.client.assert_fold_is_roster().await;
        for pod in [a, b, c] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Evicted while it is cut off, a pod gives itself up before it can learn of it: it stays away all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_evicted_while_it_was_cut_off_stays_away_until_it_moves() {
    timed(async {
        let db = Db::new().await;
        let (proxy, through) = behind_proxy(&db, "a").await;
        let a = start(through).await;
        let source = a.progress_source();
        let out = a.incarnation();
        let mut heard = a.events();
        source.tick();
        proxy.all(&ALL, Flow::Hole);
        Operator::connect(&db.config("x")).await.unwrap().evict("a").await.unwrap();
        let given_up = async { while heard.recv().await.unwrap() != PodEvent::SelfFenced {} };
        tokio::time::timeout(SOON, given_up).await.expect("it gives itself up");
        proxy.all(&ALL, Flow::Pass);
        tokio::time::sleep(lease()).await;
        assert_eq!(a.incarnation(), out, "it came back to stand still");
        source.tick();
        eventually(SOON, "it is back as another", || async {
            if a.status().attached && a.incarnation() != out { Ok(()) } else { Err(format!("{:?}", a.status())) }
        })
        .await;
        assert_eq!(db.client.session_end(out).await.unwrap().0, "evicted");
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// The control session that carries the beats ends again and again, each time before a beat interval has passed. The
/// pod beats all the same: it makes progress, and its peers would count its silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_end_before_each_beat_delay_no_beat() {
    timed(async {
        let db = Db::new().await;
        let interval = Duration::from_secs(2);
        let pod = start(db.config("a").with(|c| c.beat_interval = Some(interval))).await;
        let index = "SELECT event_index FROM studio_pods WHERE pod_id = 'a'";
        let before: i64 = db.client.scalar(index, &[]).await;
        let began = std::time::Instant::now();
        let mut ended = 0;
        while began.elapsed() < interval * 5 {
            if let Some(control) = db.client.backend("a", "control").await {
                db.client.execute("SELECT pg_terminate_backend($1)", &[&control]).await.unwrap();
                ended += 1;
            }
            tokio::time::sleep(interval / 3).await;
        }
        assert!(ended >= 5, "{ended} sessions ended");
        let now: i64 = db.client.scalar(index, &[]).await;
        assert!(now >= before + 2, "{before} → {now}: it did not beat");
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}
