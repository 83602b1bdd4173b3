//! What the server hides: a role that logs in and then is another (`ALTER ROLE … SET role`) may not see in
//! `pg_stat_activity` when its own backends began.

use std::time::Duration;

use podlock::{Config, NewRun, Operator};

use crate::patience::SOON;
use crate::support::{Db, eventually, lease, server, start, timed};

/// A URL of a role that logs in, and then is the pods' role.
async fn masked(db: &Db) -> String {
    let role = format!("masked_{}", db.name);
    let create = format!(
        "CREATE ROLE {role} LOGIN NOINHERIT PASSWORD 'hunter2secret' IN ROLE podlock_pod; ALTER ROLE {role} \
         SET role = podlock_pod"
    );
    db.client.batch_execute(&create).await.unwrap();
    let url = format!("postgresql://{role}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
    let as_masked = crate::support::sql::connect(&url).await;
    let hidden = "SELECT backend_start IS NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    assert!(as_masked.scalar::<bool>(hidden, &[]).await, "the server hides it");
    url
}

fn config(url: &str, pod: &str) -> Config {
    Config::new(url).name(pod).lease(lease()).with(|c| c.connect_timeout = Some(lease()))
}

/// L2: the burial's proof holds where the start of the burier's own backend is hidden from the burier, in both
/// directions of a fleet in which it is hidden from some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_pods_under_a_masked_role_start_bury_and_are_buried() {
    timed(async {
        let db = Db::new().await;
        let url = masked(&db).await;
        assert!(!podlock::migrate::status(&config(&url, "x")).await.expect("it is told").is_empty());
        // The run makes no progress, and two of its three owners die: the last pod takes it all the same.
        let quarantines_nothing = |config: Config| config.with(|c| c.max_crashes = 0);
        let masked = start(quarantines_nothing(config(&url, "masked"))).await;
        let plain = start(config(&db.pod_url, "plain")).await;
        let other = start(config(&url, "other")).await;
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        let run = plain.start(NewRun::new("wait")).await.unwrap().run_id;
        db.client.run_owned_by(run, plain.incarnation(), SOON).await;
        drop(plain);
        db.client.roster_is(&["masked", "other"], SOON).await;
        drop(other);
        db.client.roster_is(&["masked"], SOON).await;
        db.client.run_owned_by(run, masked.incarnation(), SOON).await;
        let plain = start(config(&db.pod_url, "plain")).await;
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        drop(masked);
        db.client.roster_is(&["plain"], SOON).await;
        db.client.assert_fold_is_roster().await;
        let operator = Operator::connect(&config(&url, "x")).await.unwrap();
        assert_eq!(operator.pods(podlock::operator::PodFilter::new()).await.unwrap().len(), 1);
        plain.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// A pod that returns ends its own former backends, which only the login role may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_under_a_masked_role_ends_its_own_former_backends() {
    timed(async {
        let db = Db::new().await;
        let url = masked(&db).await;
        let proxy = crate::support::proxy::Proxy::before(server().port()).await;
        let pod = start(config(&proxy.url(&url, server().port()), "cut")).await;
        let incarnation = pod.incarnation();
        // The server hears nothing of the cut: without an end by ourselves the lock would be held for a lease.
        let pid: i32 = db.client.scalar("SELECT liveness_pid FROM studio_pods", &[]).await;
        proxy.present(&["liveness"], crate::support::proxy::Flow::Hole);
        eventually(SOON, "the pod returned", || async {
            match db.client.scalar::<i64>("SELECT session FROM studio_pods", &[]).await {
                2 => Ok(()),
                n => Err(format!("session {n}")),
            }
        })
        .await;
        let still: i64 = db.client.scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", &[&pid]).await;
        assert_eq!(still, 0, "the former backend was ended");
        assert_eq!(pod.incarnation(), incarnation);
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}
