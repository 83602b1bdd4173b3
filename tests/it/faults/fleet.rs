//! Many pods at once.

use std::time::Duration;

use crate::patience::SOON;
use crate::support::faults::OwnServer;
use crate::support::{Db, start, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_pods_boot_at_once_on_an_empty_database() {
    timed(async {
        const PODS: usize = 50;
        let server = OwnServer::start(&[("max_connections", "600")]).await;
        let db = Db::on(&server).await;
        let config = |i| db.config(&format!("p{i:02}")).lease(Duration::from_secs(10)).with(|c| c.pool_size = 1);
        let pods = futures_util::future::join_all((0..PODS).map(|i| start(config(i)))).await;
        let names: Vec<String> = (0..PODS).map(|i| format!("p{i:02}")).collect();
        assert_eq!(db.client.roster().await, names);
        let sql = "SELECT version FROM studio_schema_history ORDER BY 1";
        let versions: Vec<i32> = db.client.query(sql, &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
        let known = podlock::migrate::status(&config(0)).await.unwrap();
        assert_eq!(versions, known.iter().map(|v| v.version).collect::<Vec<_>>(), "each was applied once");
        let kinds: Vec<String> = db
            .client
            .query("SELECT kind FROM studio_pod_events", &[])
            .await
            .unwrap()
            .iter()
            .map(|r| r.get(0))
            .collect();
        assert_eq!(kinds, vec!["joined"; PODS]);
        let alive: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_status WHERE alive AND witness", &[]).await;
        assert_eq!(alive, 50);
        for name in &names {
            db.client.armed(name, SOON).await;
        }
        db.client.assert_fold_is_roster().await;
        for done in futures_util::future::join_all(pods.into_iter().map(|p| p.shutdown(SOON))).await {
            done.expect("a clean stop");
        }
        db.client.assert_fold_is_roster().await;
        // Whoever was not buried by another says that it drained.
        let active: i64 = db.client.scalar("SELECT count(*) FROM studio_pods WHERE state <> 'draining'", &[]).await;
        let lost: i64 =
            db.client.scalar("SELECT count(*) FROM studio_pod_sessions WHERE reason <> 'shutdown'", &[]).await;
        assert_eq!((active, lost), (0, 0));
    })
    .await;
}
