//! How the end of an incarnation is recorded: its cause, written by the pod itself if it can, otherwise by its burier;
//! and the log lines about it.

use std::time::Duration;

use podlock::protocol::cause::Cause;
use podlock::{Config, Incarnation, NewRun, Operator, Outcome, Pod, Run};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::patience::SOON;
use crate::runs::stage::behind_proxy;
use crate::support::process::Process;
use crate::support::proxy::{ALL, Flow};
use crate::support::trace::{self, Event};
use crate::support::{Db, eventually, lease, start, timed};

const BEAT: Duration = Duration::from_millis(300);

fn config(db: &Db, name: &str) -> Config {
    db.config(name).with(|c| c.beat_interval = Some(BEAT))
}

/// A pod that may bury.
async fn settled(db: &Db, name: &str) -> Pod {
    let pod = start(config(db, name)).await;
    tokio::time::sleep(lease() + Duration::from_millis(200)).await;
    pod
}

/// A process of its own that beats often.
async fn process(db: &Db, name: &'static str) -> (Process, Incarnation) {
    let url = db.url.clone();
    let beats = [("PODLOCK_BEAT_INTERVAL", "300ms")];
    let started = tokio::task::spawn_blocking(move || Process::start_with(&url, name, lease(), &beats)).await.unwrap();
    let incarnation: uuid::Uuid =
        db.client.scalar("SELECT incarnation FROM studio_pods WHERE pod_id = $1", &[&name]).await;
    (started, incarnation.into())
}

/// Waits until this incarnation has ended with this reason and cause.
async fn ended(db: &Db, incarnation: Incarnation, reason: &str, cause: Option<&str>) {
    eventually(SOON, &format!("it ended as {reason}, {cause:?}"), || async {
        let sql = "SELECT reason, cause FROM studio_pod_sessions WHERE incarnation = $1";
        let row = db.client.query_one(sql, &[&incarnation.as_uuid()]).await.unwrap();
        let seen: (Option<String>, Option<String>) = (row.get(0), row.get(1));
        if (seen.0.as_deref(), seen.1.as_deref()) == (Some(reason), cause) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// The detail of the one burial of this incarnation.
async fn burial(db: &Db, incarnation: Incarnation) -> Value {
    let sql = "SELECT detail FROM studio_pod_events WHERE kind = 'buried' AND incarnation = $1";
    db.client.scalar(sql, &[&incarnation.as_uuid()]).await
}

/// The detail with which a process that came back told of its former incarnation.
async fn told_on_return(db: &Db, former: Incarnation) -> Value {
    eventually(SOON, "it came back and told of its former incarnation", || async {
        let sql = "SELECT detail FROM studio_pod_events WHERE kind = 'joined' AND detail->>'former' = $1";
        let row = db.client.query_opt(sql, &[&former.to_string()]).await.unwrap();
        row.map(|row| row.get(0)).ok_or("not yet".to_owned())
    })
    .await
}

/// The names of the causes are those that the table takes, and no other.
#[tokio::test]
async fn every_cause_of_the_code_is_one_of_the_tables() {
    timed(async {
        let db = Db::new().await;
        let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, cause) VALUES (gen_random_uuid(), 'x', $1)";
        for cause in Cause::ALL {
            db.client.execute(sql, &[&cause.as_str()]).await.unwrap_or_else(|e| panic!("{cause:?}: {e:?}"));
        }
        db.client.execute(sql, &[&"meteorite"]).await.expect_err("what no version knows is refused");
    })
    .await;
}

/// The burier cannot know more than that the lease cannot have ended; the age of the last beat is in the evidence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pod_is_recorded_as_closed_with_the_age_of_its_last_beat_and_what_was_seen() {
    timed(async {
        let db = Db::new().await;
        let (a, dead) = process(&db, "a").await;
        let b = settled(&db, "b").await;
        a.signal(Signal::KILL);
        ended(&db, dead, "lost", Some("closed")).await;
        let detail = burial(&db, dead).await;
        let evidence = &detail["evidence"];
        assert_eq!(detail["cause"], "closed");
        assert_eq!((&evidence["liveness_free"], &evidence["witness_free"]), (&json!(true), &json!(true)), "{detail}");
        assert_eq!(evidence["many_lost"], json!(false), "{detail}");
        let beat_age = evidence["beat_age_ms"].as_u64().expect("the age of its last beat");
        assert!(beat_age < 2400, "{detail}");
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// A process that is frozen past its deadline is buried as silent; when it wakes, it says that it was frozen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_pod_that_returns_writes_that_it_was_frozen() {
    timed(async {
        let db = Db::new().await;
        let (a, frozen) = process(&db, "a").await;
        let b = settled(&db, "b").await;
        a.freeze();
        ended(&db, frozen, "lost", Some("silent")).await;
        let detail = burial(&db, frozen).await;
        assert!(detail["evidence"]["beat_age_ms"].as_u64().is_some_and(|age| age > 2000), "{detail}");
        a.signal(Signal::CONT);
        let told = told_on_return(&db, frozen).await;
        assert_eq!(told["cause"], "frozen", "{told}");
        ended(&db, frozen, "lost", Some("frozen")).await;
        db.client.assert_fold_is_roster().await;
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_cut_off_and_one_whose_sessions_were_ended_say_so_on_their_return() {
    timed(async {
        for (flow, cause) in [(Flow::Hole, "cut_off"), (Flow::Cut, "sessions_ended")] {
            let db = Db::new().await;
            let (proxy, through) = behind_proxy(&db, "a").await;
            let a = start(through).await;
            let b = settled(&db, "b").await;
            let was = a.incarnation();
            proxy.all(&ALL, flow);
            eventually(SOON, "it is buried", || async { db.client.session_end(was).await.ok_or("not yet".to_owned()) })
                .await;
            proxy.all(&ALL, Flow::Pass);
            let told = told_on_return(&db, was).await;
            assert_eq!(told["cause"], cause, "{told}");
            ended(&db, was, "lost", Some(cause)).await;
            for pod in [a, b] {
                pod.shutdown(SOON).await.unwrap();
            }
        }
    })
    .await;
}

/// Somebody closes the pod's connections, and the pod cannot open them again by its deadline. The recorded cause is
/// then `cut_off`, however the loss began. When the pod returns, it records its end even if no peer buried it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_reconnect_by_its_deadline_was_cut_off_also_where_nobody_buried_it() {
    timed(async {
        let db = Db::new().await;
        let (proxy, through) = behind_proxy(&db, "alone-and-cut").await;
        let a = start(through).await;
        let was = a.incarnation();
        proxy.all(&ALL, Flow::Cut);
        logged("alone-and-cut", "self_fenced").await;
        proxy.all(&ALL, Flow::Pass);
        let told = told_on_return(&db, was).await;
        assert_eq!((&told["cause"], &told["reason"]), (&json!("cut_off"), &json!("detached")), "{told}");
        ended(&db, was, "detached", Some("cut_off")).await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// It is written before the sessions end, for the runtime may never run again: here it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_runtime_is_blocked_writes_it_before_it_ends_its_sessions() {
    timed(async {
        let db = Db::new().await;
        let b = settled(&db, "b").await;
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = std::sync::Arc::new(std::sync::Mutex::new(blocked));
        let one_thread =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let blocks = move |_: Run| {
            let blocked = std::sync::Arc::clone(&blocked);
            async move {
                // Never awaits: the one thread of its runtime is taken.
                let _ = blocked.lock().unwrap().recv();
                Ok(Outcome::Done(json!(null)))
            }
        };
        let building = Pod::builder(config(&db, "a")).handler("blocks", blocks).start();
        let a = one_thread.spawn(building).await.unwrap().expect("the pod starts");
        let was = a.incarnation();
        a.submit(NewRun::new("blocks")).await.unwrap();
        ended(&db, was, "lost", Some("runtime_blocked")).await;
        assert_eq!(burial(&db, was).await["cause"], "runtime_blocked");
        drop(release);
        let told = told_on_return(&db, was).await;
        assert_eq!(told["cause"], "runtime_blocked", "{told}");
        for pod in [a, b] {
            pod.shutdown(SOON).await.unwrap();
        }
        one_thread.shutdown_background();
    })
    .await;
}

/// An end that the pod itself brings about is told before its sessions end: dropped without a shutdown. A clean stop
/// has no cause, its reason says it all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_dropped_says_so_and_a_clean_stop_needs_no_cause() {
    timed(async {
        let db = Db::new().await;
        let (a, c) = (start(config(&db, "a")).await, start(config(&db, "c")).await);
        let b = settled(&db, "b").await;
        let (dropped, stopped) = (a.incarnation(), c.incarnation());
        drop(a);
        ended(&db, dropped, "lost", Some("dropped")).await;
        c.shutdown(SOON).await.unwrap();
        ended(&db, stopped, "shutdown", None).await;
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// What a process writes of its former end never holds up its way back, nor touches another incarnation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_row_that_somebody_holds_keeps_no_pod_from_its_return() {
    timed(async {
        let mut db = Db::new().await;
        let url = db.url.clone();
        let (proxy, through) = behind_proxy(&db, "a").await;
        let a = start(through).await;
        let b = settled(&db, "b").await;
        let was = a.incarnation();
        proxy.all(&ALL, Flow::Cut);
        eventually(SOON, "it is buried", || async { db.client.session_end(was).await.ok_or("not yet".to_owned()) })
            .await;
        let held = db.client.transaction().await.unwrap();
        held.execute("SELECT FROM studio_pod_sessions WHERE incarnation = $1 FOR UPDATE", &[&was.as_uuid()])
            .await
            .unwrap();
        proxy.all(&ALL, Flow::Pass);
        eventually(SOON, "it is back as another", || async {
            if a.status().attached && a.incarnation() != was { Ok(()) } else { Err(format!("{:?}", a.status())) }
        })
        .await;
        held.rollback().await.unwrap();
        let eyes = crate::support::sql::connect(&url).await;
        let others: i64 = eyes
            .scalar("SELECT count(*) FROM studio_pod_sessions WHERE ended_at IS NULL AND cause IS NOT NULL", &[])
            .await;
        assert_eq!(others, 0, "nobody that lives has a cause of death");
        for pod in [a, b] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Waits for an event of the log of a pod, and returns the last of that kind.
async fn logged(pod: &str, event: &str) -> Event {
    eventually(SOON, &format!("{event} of {pod} is logged"), || async {
        let of_pod = trace::events(pod);
        let found = of_pod.iter().rev().find(|e| e.get("event").is_some_and(|kind| kind == event));
        found.cloned().ok_or_else(|| format!("{of_pod:?}"))
    })
    .await
}

/// Evicted while it is healthy: the log does not say that its runtime is blocked, and counts the run that it lost, also
/// where that met the peer's claim before the pod knew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_healthy_pod_that_was_evicted_says_nothing_false() {
    timed(async {
        let db = Db::new().await;
        let (proxy, through) = behind_proxy(&db, "healthy").await;
        let a = start(through).await;
        let b = settled(&db, "b-of-healthy").await;
        let source = a.progress_source();
        source.tick();
        let steps = NewRun::new("steps").input(json!({ "steps": 2000, "pause_ms": 10 }));
        let run = a.start(steps).await.unwrap();
        let was = a.incarnation();
        // It cannot come back before its run was taken over and has met its fence.
        proxy.future(&["liveness"], Flow::Hole);
        Operator::connect(&db.config("x")).await.unwrap().evict("healthy").await.unwrap();
        db.client.run_owned_by(run.run_id, b.incarnation(), SOON).await;
        eventually(SOON, "its attempt met the fence and ended", || async {
            let runs = a.status().runs;
            if runs == 0 { Ok(()) } else { Err(format!("{runs} runs")) }
        })
        .await;
        eventually(SOON, "its control session is there again", || async {
            db.client.backend("healthy", "control").await.ok_or("it is not".to_owned())
        })
        .await;
        proxy.all(&["liveness"], Flow::Pass);
        let fenced = logged("healthy", "self_fenced").await;
        assert_eq!(fenced["incarnation"], was.to_string());
        assert_eq!(fenced["runs"], "1", "one run was stopped: {fenced:?}");
        logged("healthy", "put_out").await;
        // Both of its sessions were ended; whichever ends after that, ends because it was evicted.
        let causes: Vec<String> = trace::events("healthy")
            .iter()
            .filter(|e| e.get("event").is_some_and(|kind| kind == "control_lost"))
            .map(|e| e["cause"].clone())
            .collect();
        assert!(!causes.is_empty(), "its control session was ended");
        source.tick();
        eventually(SOON, "it is back as another", || async {
            if a.status().attached && a.incarnation() != was { Ok(()) } else { Err(format!("{:?}", a.status())) }
        })
        .await;
        let all = format!("{:?}", trace::events("healthy"));
        assert!(!all.contains("runtime is blocked"), "its runtime ran: {all}");
        assert!(all.contains("the pod was evicted"), "{all}");
        ended(&db, was, "evicted", None).await;
        for pod in [a, b] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}
