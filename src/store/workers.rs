//! Statements on the worker registry: `studio_workers`, its tombstones, and what pods report.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Result;
use crate::id::{Incarnation, PodId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::pg::txn::one;
use crate::protocol::worker::Liveness;
use crate::timestamp::Timestamp;

/// The most workers that one statement writes or reads. More make a statement that takes longer than others should wait;
/// fewer cost round trips.
pub(crate) const PORTION: usize = 500;
/// The most ids and marks that one statement reads: 20,000, about 480 KB. More make a long statement and a large reply.
/// Fewer cost round trips when many buckets differ.
const MARKS: i64 = 20_000;

/// A worker as its owner writes it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Put {
    pub(crate) worker_id: Uuid,
    pub(crate) url: String,
    pub(crate) health: &'static str,
    pub(crate) spec: Value,
    pub(crate) health_check: Option<Value>,
    /// Whether the owner has probed it, or need not.
    pub(crate) reported: bool,
}

/// The result of a write.
#[derive(Debug)]
pub(crate) struct Published {
    /// False: this incarnation is not in the roster, or a later write came first. Nothing was written.
    pub(crate) accepted: bool,
    /// Whether a row was written or deleted.
    pub(crate) changed: bool,
    pub(crate) told: bool,
    /// The workers that were written, with the marks of their rows, and whether the store calls them active.
    pub(crate) written: Vec<(Uuid, i64, bool)>,
    /// The workers that have no row any more.
    pub(crate) removed: Vec<Uuid>,
}

/// Writes and removes workers of this pod. `tells`: notify the other pods if something was written. `owes`: notify them
/// even if nothing was. A worker whose row another transaction has locked is in neither list of the result.
pub(crate) async fn publish(
    db: &Database,
    own: Incarnation,
    number: i64,
    puts: &[Put],
    removed: &[Uuid],
    (tells, owes): (bool, bool),
) -> Result<Published> {
    const SQL: &str = sql!("publish_workers", "worker_mark");
    let puts = serde_json::to_value(puts).unwrap_or_default();
    let params: [&(dyn ToSql + Sync); 6] = [&own.as_uuid(), &number, &puts, &removed, &tells, &owes];
    let step = "publishing workers";
    let row = one(step, db.query(step, SQL, &params).await?)?;
    let (written, marks): (Vec<Uuid>, Vec<i64>) = (row.at("written")?, row.at("marks")?);
    let active = row.at::<Vec<&str>>("liveness")?.into_iter().map(|word| word == Liveness::Active.as_str());
    Ok(Published {
        accepted: row.at("accepted")?,
        changed: row.at("changed")?,
        told: row.at("told")?,
        written: written.into_iter().zip(marks).zip(active).map(|((id, mark), active)| (id, mark, active)).collect(),
        removed: row.at("removed")?,
    })
}

/// A worker as a row has it.
#[derive(Clone, Debug)]
pub(crate) struct WorkerRow {
    pub(crate) worker_id: Uuid,
    pub(crate) url: String,
    pub(crate) owner_pod: String,
    pub(crate) owner: Incarnation,
    pub(crate) health: String,
    pub(crate) liveness: String,
    pub(crate) reported_at: Option<Timestamp>,
    pub(crate) since_report: i64,
    /// `None` in a row of the reading pod.
    pub(crate) spec: Option<Value>,
    pub(crate) health_check: Option<Value>,
    pub(crate) mark: i64,
    /// Whether the owner is in the roster. If not, the worker does not count.
    pub(crate) is_owned: bool,
}

impl WorkerRow {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            worker_id: row.at("worker_id")?,
            url: row.at("url")?,
            owner_pod: row.at("owner_pod")?,
            owner: Incarnation::from(row.at::<Uuid>("owner_incarnation")?),
            health: row.at("health")?,
            liveness: row.at("liveness")?,
            reported_at: row.at("reported_at")?,
            since_report: row.at("since_report")?,
            spec: row.at("spec")?,
            health_check: row.at("health_check")?,
            mark: row.at("mark")?,
            is_owned: row.at("is_owned")?,
        })
    }
}

/// One page of the workers that changed since an earlier read.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// The snapshot of this read.
    pub(crate) snapshot: String,
    pub(crate) rows: Vec<WorkerRow>,
    pub(crate) removed: Vec<Uuid>,
    /// The last worker of the page, if further ones may follow.
    pub(crate) next: Option<Uuid>,
}

/// Reads the workers that were written or removed after the snapshot `seen`.
/// Returns at most `most` of them.
pub(crate) async fn changed(
    db: &Database,
    own: Incarnation,
    seen: &str,
    after: Option<Uuid>,
    most: usize,
) -> Result<Changed> {
    const SQL: &str = sql!("read_changed_workers", "worker_mark", "worker_columns");
    let page = i64::try_from(most).unwrap_or(i64::MAX);
    let params: [&(dyn ToSql + Sync); 4] = [&own.as_uuid(), &seen, &after, &page];
    let rows = db.query("reading changed workers", SQL, &params).await?;
    let mut changed = Changed::default();
    for row in &rows {
        changed.snapshot = row.at("snapshot")?;
        let Some(worker) = row.at::<Option<Uuid>>("worker_id")? else { continue };
        if rows.len() >= most {
            changed.next = Some(worker);
        }
        match row.at::<Option<&str>>("url")? {
            Some(_) => changed.rows.push(WorkerRow::read(row)?),
            None => changed.removed.push(worker),
        }
    }
    Ok(changed)
}

/// What a pod reports of its own workers.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Whether it has workers to report.
    pub(crate) reports: bool,
    /// How often it does, in milliseconds.
    pub(crate) report_ms: i32,
    /// Its workers that it could not probe.
    pub(crate) unprobed: Vec<Uuid>,
    /// Those of them that the report before included.
    pub(crate) newly: Vec<Uuid>,
    /// The snapshot of the pod's last read.
    pub(crate) read_to: Option<String>,
}

/// The last report of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    pub(crate) number: i64,
    /// How often the pod reports, as it says itself.
    pub(crate) every: Duration,
    /// When it did, by the server's clock. For people only.
    pub(crate) at: Option<Timestamp>,
}

/// The state of the store, as one statement saw it.
#[derive(Debug)]
pub(crate) struct Overview {
    pub(crate) snapshot: String,
    /// When the server started. If it has changed, the server may lack what this pod has read.
    pub(crate) server: Timestamp,
    /// Whether this incarnation is in the roster. If not, nothing was written.
    pub(crate) is_member: bool,
    pub(crate) own_report: Option<i64>,
    /// The rows of `newly`, with their marks from now on.
    pub(crate) kept: Vec<(Uuid, i64)>,
    /// Of each bucket that is not empty: the sum of its workers' marks.
    pub(crate) sums: BTreeMap<i32, i64>,
    /// The last report of each pod of the roster that has made one, and how often it reports.
    pub(crate) reports: BTreeMap<Incarnation, Reported>,
    /// The workers that the reports do not include.
    pub(crate) unprobed: Vec<Uuid>,
    /// Whether a pod of the roster looks after the liveness of workers.
    pub(crate) is_monitored: bool,
    /// The number of the monitor's rounds so far. If it does not grow, the monitor stands still.
    pub(crate) looks: i64,
}

/// Reports, says how far this pod has read, and returns what is needed to compare its copy with the store.
pub(crate) async fn reconcile(db: &Database, own: Incarnation, report: &Report) -> Result<Overview> {
    const SQL: &str = sql!("reconcile_workers", "worker_mark");
    let Report { reports, report_ms, unprobed, newly, read_to } = report;
    let params: [&(dyn ToSql + Sync); 6] = [&own.as_uuid(), reports, report_ms, unprobed, newly, read_to];
    let step = "reconciling workers";
    let row = one(step, db.query(step, SQL, &params).await?)?;
    let (kept, marks): (Vec<Uuid>, Vec<i64>) = (row.at("kept")?, row.at("kept_marks")?);
    let (buckets, sums): (Vec<i32>, Vec<i64>) = (row.at("buckets")?, row.at("sums")?);
    let pods = row.at::<Vec<Uuid>>("pods")?.into_iter().map(Incarnation::from);
    let (numbers, every): (Vec<i64>, Vec<i32>) = (row.at("reports")?, row.at("report_ms")?);
    let every = every.into_iter().map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
    let at: Vec<Option<Timestamp>> = row.at("reported_at")?;
    let reports = numbers.into_iter().zip(every).zip(at).map(|((number, every), at)| Reported { number, every, at });
    Ok(Overview {
        snapshot: row.at("snapshot")?,
        server: row.at("server")?,
        is_member: row.at("is_member")?,
        own_report: row.at("own_report")?,
        kept: kept.into_iter().zip(marks).collect(),
        sums: buckets.into_iter().zip(sums).collect(),
        reports: pods.zip(reports).collect(),
        unprobed: row.at("unprobed")?,
        is_monitored: row.at("is_monitored")?,
        looks: row.at("looks")?,
    })
}

/// Reads the ids and marks of all workers in these buckets. The pages are statements of their own.
pub(crate) async fn marks(db: &Database, buckets: &[i32]) -> Result<BTreeMap<Uuid, i64>> {
    const SQL: &str = sql!("read_worker_marks", "worker_mark");
    let mut marks = BTreeMap::new();
    let mut after: Option<Uuid> = None;
    loop {
        let params: [&(dyn ToSql + Sync); 3] = [&buckets, &after, &MARKS];
        let rows = db.query("reading the marks of workers", SQL, &params).await?;
        for row in &rows {
            let worker: Uuid = row.at("worker_id")?;
            marks.insert(worker, row.at("mark")?);
            after = Some(worker);
        }
        if i64::try_from(rows.len()).unwrap_or(i64::MAX) < MARKS {
            return Ok(marks);
        }
    }
}

/// Reads workers by their ids: at most [`PORTION`].
pub(crate) async fn read(db: &Database, own: Incarnation, workers: &[Uuid]) -> Result<Vec<WorkerRow>> {
    const SQL: &str = sql!("read_workers", "worker_mark", "worker_columns");
    let params: [&(dyn ToSql + Sync); 2] = [&own.as_uuid(), &workers];
    db.query("reading workers", SQL, &params).await?.iter().map(WorkerRow::read).collect()
}

/// Makes this pod the monitor, or lets it stay so. `stuck`: the number of looks at which the present one stands still.
/// Returns false if another pod is the monitor.
pub(crate) async fn hold_monitor(db: &Database, own: Incarnation, stuck: Option<i64>) -> Result<bool> {
    const SQL: &str = sql!("hold_worker_monitor");
    Ok(db.query_opt("becoming the monitor of workers", SQL, &[&own.as_uuid(), &stuck]).await?.is_some())
}

/// A worker whose liveness is in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    pub(crate) worker: Uuid,
    /// Whether this statement wrote it.
    pub(crate) is_new: bool,
    /// The mark of its row.
    pub(crate) mark: i64,
}

/// Writes the liveness of workers, each with the owner that it is for. Returns those whose liveness is that one now. A row
/// that another transaction has locked is passed over.
pub(crate) async fn write_liveness(
    db: &Database,
    own: Incarnation,
    by: &PodId,
    liveness: Liveness,
    workers: &[(Uuid, Incarnation)],
) -> Result<Vec<Noted>> {
    const SQL: &str = sql!("write_worker_liveness", "worker_mark");
    let (ids, owners): (Vec<Uuid>, Vec<Uuid>) = workers.iter().map(|(id, owner)| (*id, owner.as_uuid())).unzip();
    let params: [&(dyn ToSql + Sync); 5] = [&own.as_uuid(), &by.as_str(), &liveness.as_str(), &ids, &owners];
    let rows = db.query("writing the liveness of workers", SQL, &params).await?;
    let noted =
        |row: &Row| Ok(Noted { worker: row.at("worker_id")?, is_new: row.at("is_new")?, mark: row.at("mark")? });
    rows.iter().map(noted).collect()
}

/// Deletes at most `most` rows of each kind that no pod needs any more. Returns the largest of the numbers.
pub(crate) async fn clear(db: &Database, most: i64) -> Result<i64> {
    const SQL: &str = sql!("clear_workers");
    let step = "clearing the worker registry";
    let row = one(step, db.query(step, SQL, &[&most]).await?)?;
    let counts: [i64; 3] = [row.at("workers")?, row.at("pods")?, row.at("tombstones")?];
    Ok(counts.into_iter().max().unwrap_or(0))
}
