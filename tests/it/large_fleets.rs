//! Fleets that are so large that pods take turns and look at their neighbours only (`pod::admission`,
//! `protocol::neighbours`).

use std::time::{Duration, Instant};

use podlock::{NewRun, Pod};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::patience::{SOON, slack};
use crate::runs::stage::orphan;
use crate::support::process::Process;
use crate::support::{Db, eventually, lease, sql, start, timed, trace};

/// Takes every slot of the admission, as pods that start would.
async fn take_all_slots(db: &Db) -> sql::Client {
    let client = sql::connect(&db.url).await;
    let sql = "SELECT count(*) FROM generate_series(0, 3) n \
                WHERE pg_try_advisory_lock(hashtextextended('podlock/admission/public', n))";
    assert_eq!(client.scalar::<i64>(sql, &[]).await, 4, "the slots of a fleet that does not start");
    client
}

/// A boot that is rationed: a pod without a slot waits, says so, and does not exit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_a_slot_waits_and_says_so_until_one_is_free() {
    timed(async {
        let db = Db::new().await;
        let others = take_all_slots(&db).await;
        let name = format!("waits-{}", db.name);
        let starting = tokio::spawn(start(db.config(&name)));
        eventually(SOON, "the pod says that it waits", || async {
            let said = trace::events(&name).iter().any(|e| e.get("event").is_some_and(|e| e == "start_waits"));
            if said { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        assert!(!starting.is_finished());
        assert_eq!(db.client.roster().await, Vec::<String>::new(), "it is not registered");
        drop(others);
        let pod = starting.await.unwrap();
        db.client.roster_is(&[&name], SOON).await;
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// L2: a return is not rationed. No limit on how many may come back can make a living pod look dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_pod_that_comes_back_waits_for_no_slot() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let run = a.start(NewRun::new("wait")).await.unwrap();
        let before = a.incarnation();
        let others = take_all_slots(&db).await;
        let liveness = db.client.backend("a", "liveness").await.expect("a session");
        db.client.execute("SELECT pg_terminate_backend($1)", &[&liveness]).await.unwrap();
        eventually(SOON, "the pod is back on another session", || async {
            match db.client.backend("a", "liveness").await {
                Some(now) if now != liveness => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        db.client.armed("a", SOON).await;
        assert_eq!(a.incarnation(), before);
        db.client.run_owned_by(run.run_id, before, SOON).await;
        drop(others);
        a.shutdown(SOON).await.unwrap();
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Twenty-two pods, so each probes its sixteen neighbours. Five that follow each other in the ring die at once: the one
/// before them finds them, none but them is buried, and each run goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_in_the_ring_that_die_at_once_are_buried_and_nobody_else_is() {
    timed(async {
        let db = Db::new().await;
        let mut starting = JoinSet::new();
        for i in 0..22 {
            let config = db.config(&format!("p{i:02}")).with(|c| c.pool_size = 1);
            starting.spawn(async move { start(config).await });
        }
        let mut pods: Vec<Pod> = starting.join_all().await;
        // Three whole probes make sure that a fleet is large, and the pods must have been up for `settle`.
        tokio::time::sleep(lease() * 2).await;
        // L6: a run whose owner is in no roster, and of which no event tells, is found although most passes of a large
        // fleet read only runs without an owner.
        let (left, ghost) = orphan(&db.client, "wait").await;
        let bound = pods[0].settings().orphan_claimed(pods.len());
        eventually(slack(bound), "the run of the unknown owner goes on", || async {
            let owner = db.client.run(left).await.owner;
            if owner == Some(ghost.as_uuid()) { Err("not yet") } else { Ok(()) }.map_err(str::to_owned)
        })
        .await;
        let by_key = db
            .client
            .query("SELECT pod_id FROM studio_pods ORDER BY lock_key LIMIT 5", &[])
            .await
            .unwrap()
            .iter()
            .map(|row| row.get::<_, String>(0))
            .collect::<Vec<_>>();
        let (dead, living): (Vec<Pod>, Vec<Pod>) =
            pods.drain(..).partition(|pod| by_key.iter().any(|name| name == pod.pod_id().as_str()));
        assert_eq!((dead.len(), living.len()), (5, 17));
        let mut runs = Vec::new();
        for pod in &dead {
            runs.push(pod.start(NewRun::new("wait")).await.unwrap().run_id);
        }
        let incarnations: Vec<_> = dead.iter().map(|pod| pod.incarnation().as_uuid()).collect();
        drop(dead);
        eventually(living[0].settings().worst_case().process_killed + SOON, "the five are buried", || async {
            let sql = "SELECT count(*) FROM studio_pod_events WHERE kind = 'buried' AND incarnation = ANY ($1)";
            let buried: i64 = db.client.scalar(sql, &[&incarnations]).await;
            if buried == 5 { Ok(()) } else { Err(format!("{buried} of 5")) }
        })
        .await;
        for run_id in runs {
            eventually(SOON, "the run goes on at a pod that lives", || async {
                let sql = "SELECT owner_incarnation IN (SELECT incarnation FROM studio_pods) FROM studio_runs \
                            WHERE run_id = $1";
                let is_owned: Option<bool> = db.client.scalar(sql, &[&run_id.as_uuid()]).await;
                if is_owned == Some(true) { Ok(()) } else { Err(format!("{is_owned:?}")) }
            })
            .await;
        }
        let buried: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_events WHERE kind = 'buried'", &[]).await;
        assert_eq!(buried, 5, "only the dead");
        db.client.assert_fold_is_roster().await;
        let mut stopping = JoinSet::new();
        for pod in living {
            stopping.spawn(pod.shutdown(Duration::from_secs(20)));
        }
        for stopped in stopping.join_all().await {
            stopped.unwrap();
        }
    })
    .await;
}

/// Freezes the burier while its watch waits for its successor's lock, in a slice that has just begun. Returns `false`,
/// and thaws the burier, if the freeze fell between two slices.
async fn freezes_in_a_slice(db: &Db, burier: &Process, name: &str) -> bool {
    burier.freeze();
    let sql = "SELECT count(*) FROM pg_stat_activity \
                WHERE application_name = $1 AND state = 'active' AND wait_event = 'advisory' \
                  AND clock_timestamp() - query_start < interval '100 ms'";
    let waits: i64 = db.client.scalar(sql, &[&format!("podlock/{name}/watch")]).await;
    if waits == 0 {
        burier.signal(Signal::CONT);
    }
    waits > 0
}

/// In a large fleet, nobody is told that a lock came free. If the pod that was granted it freezes before it buries, the
/// sweeps of the others find the dead pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burier_that_freezes_is_replaced_by_those_who_sweep_the_row_and_nobody_was_told() {
    timed(async {
        let db = Db::new().await;
        let names: Vec<String> = (0..22).map(|i| format!("p{i:02}")).collect();
        let sql = "SELECT n FROM unnest($1::text[]) n ORDER BY studio_lock_key(n)";
        let ring: Vec<String> = db.client.query(sql, &[&names]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let (burier_name, dead_name) = (ring[10].clone(), ring[11].clone());
        let (url, name) = (db.pod_url.clone(), burier_name.clone());
        let burier = tokio::task::spawn_blocking(move || Process::start(&url, &name, lease()));
        let mut starting = JoinSet::new();
        for name in names.iter().filter(|name| **name != burier_name) {
            let config = db.config(name).with(|c| c.pool_size = 1);
            starting.spawn(async move { start(config).await });
        }
        let mut living: Vec<Pod> = starting.join_all().await;
        let burier = burier.await.unwrap();
        // Three whole probes make sure that a fleet is large, and the pods must have been up for `settle`.
        tokio::time::sleep(lease() * 2).await;
        let at = living.iter().position(|pod| pod.pod_id().as_str() == dead_name).expect("it lives");
        let dead = living.swap_remove(at);
        let incarnation = dead.incarnation();
        let (ears, mut heard) = sql::listening(&db.url).await;
        let channel: String = ears.scalar("SELECT quote_ident(studio_channel())", &[]).await;
        ears.batch_execute(&format!("LISTEN {channel}")).await.unwrap();
        eventually(SOON, "the burier is frozen while it waits for the lock", || async {
            if freezes_in_a_slice(&db, &burier, &burier_name).await { Ok(()) } else { Err("not in a slice".to_owned()) }
        })
        .await;
        let from = Instant::now();
        drop(dead);
        let by = eventually(SOON, "another pod buries it", || async {
            db.client.session_end(incarnation).await.and_then(|(_, by)| by).ok_or("not yet".to_owned())
        })
        .await;
        let took = from.elapsed();
        burier.signal(Signal::CONT);
        assert_ne!(by, burier_name, "the frozen one did not bury");
        // Sixteen pods sweep the row, each within a sweep interval and a quarter of it.
        let bound = living[0].settings().sweep_interval.mul_f64(1.25) + Duration::from_secs(1);
        assert!(took < slack(bound), "{took:?}");
        while let Ok(notice) = heard.try_recv() {
            assert_ne!(notice, "free", "the whole fleet was told");
        }
        let mut stopping = JoinSet::new();
        for pod in living {
            stopping.spawn(pod.shutdown(Duration::from_secs(20)));
        }
        for stopped in stopping.join_all().await {
            stopped.unwrap();
        }
    })
    .await;
}
