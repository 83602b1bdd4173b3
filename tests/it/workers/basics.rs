//! Register, publish, import, remove; and what happens when the owner dies.

use podlock::WorkerId;
use podlock::workers::{Filter, Health, Liveness, Origin, WorkerSpec};
use uuid::Uuid;

use super::{SOON, chooses_among, shows, worker};
use crate::support::{Db, eventually, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_pod_registers_every_pod_sees_until_it_is_removed() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a").await, db.pod("b").await);
        let (at_a, at_b) = (a.workers(), b.workers());
        let id = at_a.register(worker("http://10.0.0.1:8000")).unwrap();
        assert_eq!(id, WorkerId::of(a.pod_id(), "http://10.0.0.1:8000"));
        assert_eq!(at_a.get(id).unwrap().origin(), Origin::Local);
        chooses_among(&a, 1).await;
        chooses_among(&b, 1).await;
        let seen = at_b.get(id).unwrap();
        assert_eq!((seen.origin(), seen.health(), seen.liveness()), (Origin::Mesh, Health::Ready, Liveness::Active));
        assert_eq!((seen.owner_pod(), seen.owner_incarnation()), (a.pod_id(), a.incarnation()));
        assert_eq!(seen.spec(), &WorkerSpec::new().kind("llm").model("m"));
        assert!(at_a.published(SOON).await);
        assert!(at_a.remove(id).unwrap());
        assert!(at_a.get(id).is_none());
        shows(&b, &[]).await;
        assert!(!at_a.remove(id).unwrap());
        let rows: i64 = db.client.scalar("SELECT count(*) FROM studio_workers", &[]).await;
        assert_eq!(rows, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workers_of_a_dead_pod_go_with_its_burial() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let dead = db.pod("dead").await;
        let (at_a, at_b) = (a.workers(), b.workers());
        let mut ids: Vec<WorkerId> = Vec::new();
        for n in 0..1000 {
            ids.push(dead.workers().register(worker(&format!("http://10.1.0.1:{}", 1000 + n))).unwrap());
        }
        let kept = at_a.register(worker("http://10.0.0.1:8000")).unwrap();
        ids.push(kept);
        shows(&a, &ids).await;
        shows(&b, &ids).await;
        drop(dead);
        shows(&a, &[kept]).await;
        shows(&b, &[kept]).await;
        assert!(at_b.available(&Filter::new()).iter().all(|w| w.id() == kept));
        eventually(SOON, "their rows are deleted", || async {
            let rows: Vec<Uuid> = db
                .client
                .query("SELECT worker_id FROM studio_workers", &[])
                .await
                .unwrap()
                .iter()
                .map(|r| r.get(0))
                .collect();
            if rows == [kept.as_uuid()] { Ok(()) } else { Err(format!("{} rows", rows.len())) }
        })
        .await;
    })
    .await;
}
