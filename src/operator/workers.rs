//! The workers of the fleet, as the store has them.

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::Operator;
use crate::error::Result;
use crate::id::{Incarnation, WorkerId};
use crate::pg::reply::Reply as _;
use crate::protocol::worker::{Health, Liveness};
use crate::store::queries::{self, WorkersWanted};
use crate::timestamp::Timestamp;

/// Which workers [`Operator::workers`] returns.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct WorkerFilter {
    wanted: WorkersWanted,
}

impl WorkerFilter {
    /// All of them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only those of the pod with this name.
    pub fn pod(mut self, name: impl Into<String>) -> Self {
        self.wanted.pod = Some(name.into());
        self
    }

    /// Only those of this health.
    pub fn health(mut self, health: Health) -> Self {
        self.wanted.health = Some(health.as_str().to_owned());
        self
    }

    /// Only those of this liveness.
    pub fn liveness(mut self, liveness: Liveness) -> Self {
        self.wanted.liveness = Some(liveness.as_str().to_owned());
        self
    }

    /// Only those after this worker in the order of [`Operator::workers`]: the next page.
    pub fn after(mut self, worker: &WorkerRow) -> Self {
        self.wanted.after = Some((worker.owner_pod.clone(), worker.url.clone(), worker.worker_id.as_uuid()));
        self
    }

    /// At most this many: the first ones.
    pub fn limit(mut self, limit: i64) -> Self {
        self.wanted.limit = Some(limit.max(0));
        self
    }
}

/// A worker whose owner is in the roster, as the store has it: the view `studio_worker_status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkerRow {
    /// The worker.
    pub worker_id: WorkerId,
    /// Where it is.
    pub url: String,
    /// The name of the pod that registered it.
    pub owner_pod: String,
    /// The registration of that pod.
    pub owner_incarnation: Incarnation,
    /// `pending`, `not_ready`, `ready`, `failed` or `draining`, as its owner's probe sees it.
    pub health: String,
    /// `active` or `inactive`, as the monitor last wrote it.
    pub liveness: String,
    /// When its owner last reported it, by the server's clock. `None`: never. For people only.
    pub reported_at: Option<Timestamp>,
    /// What its owner says of it, without its secrets.
    pub spec: Value,
    /// How its owner probes it. `None`: it does not.
    pub health_check: Option<Value>,
}

impl WorkerRow {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            worker_id: row.at::<Uuid>("worker_id")?.into(),
            url: row.at("url")?,
            owner_pod: row.at("owner_pod")?,
            owner_incarnation: row.at::<Uuid>("owner_incarnation")?.into(),
            health: row.at("health")?,
            liveness: row.at("liveness")?,
            reported_at: row.at("reported_at")?,
            spec: row.at("spec")?,
            health_check: row.at("health_check")?,
        })
    }
}

impl Operator {
    /// Lists the workers of the pods in the roster, by the names of these pods and by the workers' URLs. It shows what
    /// the store has: two pods may have registered the same URL, and both workers are listed.
    /// [`Workers::list`](crate::workers::Workers::list) shows what a pod chooses from.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn workers(&self, filter: WorkerFilter) -> Result<Vec<WorkerRow>> {
        queries::workers(&self.database, &filter.wanted).await?.iter().map(WorkerRow::read).collect()
    }

    /// Returns one worker. `None` if there is none with this id, or if its owner is not in the roster.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn worker(&self, id: WorkerId) -> Result<Option<WorkerRow>> {
        let wanted = WorkersWanted { worker: Some(id.as_uuid()), limit: Some(1), ..WorkersWanted::default() };
        queries::workers(&self.database, &wanted).await?.first().map(WorkerRow::read).transpose()
    }
}
