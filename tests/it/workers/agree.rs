//! Random operations on three replicas and the store, until they agree.

use std::collections::BTreeMap;
use std::time::Duration;

use podlock::workers::{Health, NewWorker, Origin, WorkerSpec};
use podlock::{Pod, WorkerId};

use super::SOON;
use crate::support::{Db, eventually, timed};

/// What each pod must show: of each URL the worker, its owner and its health.
type Expected = BTreeMap<WorkerId, (String, Health, u32)>;

fn shown(pod: &Pod) -> Expected {
    let workers = pod.workers().list().into_iter();
    workers.map(|w| (w.id(), (w.owner_pod().to_string(), w.health(), w.spec().weight.unwrap_or(0)))).collect()
}

async fn play(seed: u64) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let db = Db::new().await;
    let mut pods = Vec::new();
    for name in ["a", "b", "c"] {
        let config = db.config(name).with(|c| {
            c.worker_report_interval = Duration::from_millis(300);
            c.worker_monitor_interval = Duration::from_millis(300);
        });
        pods.push(crate::support::start(config).await);
    }
    for pod in &pods {
        pod.workers().ready().await;
    }
    // What each pod has registered, by URL.
    let mut own: Vec<BTreeMap<String, (Health, u32)>> = vec![BTreeMap::new(); 3];
    for step in 0..400_u32 {
        let nth = dice.usize(..3);
        let (workers, own) = (pods[nth].workers(), &mut own[nth]);
        let url = format!("http://10.0.0.{}:8000", dice.u32(..12));
        let id = WorkerId::of(pods[nth].pod_id(), &url);
        match dice.u32(..10) {
            0..4 => {
                let spec = WorkerSpec::new().weight(step);
                workers.register_or_replace(NewWorker::new(url.as_str()).spec(spec)).unwrap();
                let health = own.get(&url).map_or(Health::Ready, |(health, _)| *health);
                own.insert(url, (health, step));
            }
            4..6 => {
                assert_eq!(workers.remove(id).unwrap_or(false), own.remove(&url).is_some());
            }
            6..8 => {
                let health = Health::ALL[dice.usize(..Health::ALL.len())];
                if workers.set_health(id, health).unwrap_or(false) {
                    own.get_mut(&url).unwrap().0 = health;
                }
            }
            8 => {
                let gone = workers.remove_unhealthy();
                own.retain(|_, (health, _)| *health != Health::Failed);
                assert!(gone.len() <= 12);
            }
            // What others do to the store.
            _ => match dice.u32(..4) {
                0 => {
                    _ = db
                        .client
                        .execute("DELETE FROM studio_workers WHERE worker_id = $1", &[&id.as_uuid()])
                        .await
                        .unwrap()
                }
                1 => {
                    let sql = "UPDATE studio_workers SET health = 'failed' WHERE worker_id = $1";
                    db.client.execute(sql, &[&id.as_uuid()]).await.unwrap();
                }
                2 => _ = db.client.terminate(["a", "b", "c"][nth], "control").await,
                _ => _ = db.client.terminate(["a", "b", "c"][nth], "pool").await,
            },
        }
        if dice.u32(..3) == 0 {
            tokio::time::sleep(Duration::from_micros(dice.u64(..8000))).await;
        }
    }
    for (nth, pod) in pods.iter().enumerate() {
        let mut expected = Expected::new();
        for url in (0..12).map(|n| format!("http://10.0.0.{n}:8000")) {
            let owners = (0..3).filter(|owner| own[*owner].contains_key(&url));
            let best = owners.min_by_key(|owner| (*owner != nth, WorkerId::of(pods[*owner].pod_id(), &url)));
            if let Some(owner) = best {
                let (health, weight) = own[owner][&url];
                let id = WorkerId::of(pods[owner].pod_id(), &url);
                expected.insert(id, (pods[owner].pod_id().to_string(), health, weight));
            }
        }
        eventually(SOON, "the replica agrees", || async {
            let shown = shown(pod);
            let differs = |id: &&WorkerId| shown.get(*id) != expected.get(*id);
            let wrong: Vec<_> = shown.keys().chain(expected.keys()).filter(differs).collect();
            if wrong.is_empty() {
                return Ok(());
            }
            let one = wrong[0];
            Err(format!("seed {seed}, pod {nth}: {one} is {:?}, expected {:?}", shown.get(one), expected.get(one)))
        })
        .await;
        for worker in pod.workers().list() {
            let is_own = worker.owner_pod() == pod.pod_id();
            assert_eq!(worker.origin() == Origin::Local, is_own, "seed {seed}: {worker:?}");
        }
    }
    eventually(SOON, "the store agrees", || async {
        let rows = db.client.query("SELECT owner_pod, url, health FROM studio_workers", &[]).await.unwrap();
        let rows: BTreeMap<(String, String), String> =
            rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        let mut expected = BTreeMap::new();
        for (own, pod) in own.iter().zip(["a", "b", "c"]) {
            expected.extend(own.iter().map(|(url, (h, _))| ((pod.to_owned(), url.clone()), h.to_string())));
        }
        if rows == expected { Ok(()) } else { Err(format!("seed {seed}: {rows:?}, expected {expected:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_and_the_store_agree_after_random_operations() {
    timed(async {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
        println!("SEED={seed}");
        play(seed).await;
    })
    .await;
}
