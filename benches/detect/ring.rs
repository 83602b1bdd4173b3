//! Who watches whom: read from the server, so that a pod is killed only when its neighbour waits for its lock.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, Statement};

use crate::process::SOON;
use crate::{Result, floor};

/// Questions to the server about locks and names.
pub(crate) struct Server {
    client: Client,
    waits: Statement,
    waited_for: Statement,
}

/// The advisory lock keys that a session waits for.
const WAITS: &str = "SELECT ((l.classid::bigint << 32) | l.objid::bigint) FROM pg_locks l \
     JOIN pg_stat_activity a ON a.pid = l.pid \
     WHERE l.locktype = 'advisory' AND NOT l.granted AND a.application_name = $1";
const WAITED_FOR: &str = "SELECT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND NOT l.granted \
     AND ((l.classid::bigint << 32) | l.objid::bigint) = $1)";

impl Server {
    pub(crate) async fn new(client: Client) -> Result<Self> {
        let (waits, waited_for) = (client.prepare(WAITS).await?, client.prepare(WAITED_FOR).await?);
        Ok(Self { client, waits, waited_for })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Some names in the order of the ring, each with its lock key: each pod watches the next, the last the first.
    pub(crate) async fn in_ring_order(&self, names: &[&str]) -> Result<Vec<(String, i64)>> {
        let mut places = Vec::new();
        for name in names {
            let row = self.client.query_one("SELECT studio_lock_key($1)", &[name]).await?;
            places.push(((*name).to_owned(), row.get(0)));
        }
        places.sort_by_key(|(_, key)| *key);
        Ok(places)
    }

    /// The key of the lock that the floor's pod holds.
    pub(crate) async fn floor_key(&self) -> Result<i64> {
        let sql = format!("SELECT {}.studio_lock_key($1)", floor::POD_SCHEMA);
        Ok(self.client.query_one(&sql, &[&floor::POD]).await?.get(0))
    }

    /// Resolves when every pod's watch session waits for the lock of the next.
    pub(crate) async fn closed_ring(&self, ring: &[(String, i64)]) -> Result<()> {
        let began = Instant::now();
        let successors = ring.iter().cycle().skip(1);
        for ((name, _), (successor, key)) in ring.iter().zip(successors) {
            let watch = format!("podlock/{name}/watch");
            while !self.client.query(&self.waits, &[&watch]).await?.iter().any(|row| row.get::<_, i64>(0) == *key) {
                pause(began, &format!("{name} to watch {successor}")).await?;
            }
        }
        Ok(())
    }

    /// Resolves when somebody waits for a lock.
    pub(crate) async fn somebody_waits(&self, key: i64) -> Result<()> {
        let began = Instant::now();
        while !self.client.query_one(&self.waited_for, &[&key]).await?.get::<_, bool>(0) {
            pause(began, "a waiter").await?;
        }
        Ok(())
    }
}

async fn pause(began: Instant, waiting_for: &str) -> Result<()> {
    if began.elapsed() > SOON {
        return Err(format!("waited {SOON:?} for {waiting_for}").into());
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(())
}
