//! The worker registry of a world: how soon its replicas must agree, and whether they do.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::Said;
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::workers::{REPORTS, SAYS};
use crate::world::World;

impl World {
    /// How soon every attached replica must show what has become of workers, if every notification is lost and a
    /// connection stands still meanwhile: the connection is given up after a lease, a sweep follows, then the owner
    /// publishes or reports, and the replica compares, each within a report interval and its jitter.
    pub(crate) fn replicas_bound(&self) -> Duration {
        self.worst_case().host_lost + REPORTS.mul_f64(2.2)
    }

    /// How soon a replica says what a comparison has shown it: the comparison, its answer, and the replica's next word.
    pub(crate) fn comparison_bound(&self) -> Duration {
        REPORTS.mul_f64(1.1) + self.settings().ping_timeout + SAYS
    }

    /// When each of these pods shows so many workers of this incarnation.
    pub(crate) async fn show(&self, pods: &[&str], owner: &str, count: u32, since: u64, limit: Duration) -> u64 {
        let what = format!("it shows {count} workers of {owner}");
        self.each(pods, &what, limit, |said| {
            said.ev == "shows" && said.t >= since && said.shown.get(owner).copied().unwrap_or_default() == count
        })
        .await
    }

    /// At the end: waits until each pod of the roster shows exactly the workers of all pods of the roster.
    pub(crate) async fn replicas_agree(&self) {
        if self.workers.is_none() {
            return;
        }
        let sql = "SELECT incarnation::text FROM studio_pods ORDER BY 1";
        self.until(SOON, "the replicas of the worker registry agree", async |client| {
            let rows = client.query(sql, &[]).await.map_err(|e| e.to_string())?;
            let roster: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let fresh = now_ns().saturating_sub(5 * u64::try_from(SAYS.as_nanos()).unwrap());
            let last = |pod: &crate::process::Process| {
                pod.said().into_iter().rfind(|said| said.ev == "shows").filter(|said| said.t >= fresh)
            };
            let mut says: BTreeMap<String, Said> = BTreeMap::new();
            for pod in self.pods.values() {
                if let Some(said) = last(pod)
                    && let Some(by) = said.by.clone()
                {
                    says.insert(by, said);
                }
            }
            let expected = roster.iter().map(|owner| Some((owner.clone(), says.get(owner)?.registered?)));
            let expected: Option<BTreeMap<String, u32>> = expected.collect();
            let expected = expected.ok_or_else(|| format!("of {roster:?}, only {:?} speak", says.keys()))?;
            let differ: Vec<_> = says.values().filter(|said| said.shown != expected).collect();
            if differ.is_empty() { Ok(()) } else { Err(format!("{differ:?}, expected {expected:?}")) }
        })
        .await;
    }
}
