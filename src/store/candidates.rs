//! Reads the input of a recovery pass: own runs, orphans, and the pods that could claim them.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::crashes::crash_reasons;
use crate::error::Result;
use crate::id::{Incarnation, RunId};
use crate::pg::pool::{Database, Late};
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::pg::txn::{Param, Prepared};
use crate::protocol::recover::{Candidate, Seen};
use crate::protocol::share::{FleetLoad, Taker};

/// Its parameters are the fields of [`Wanted`]. A burial also sends it, after its commit (`super::burials`).
pub(crate) const CANDIDATES: Prepared = Prepared {
    template: sql!("read_candidates", "crashed"),
    types: &[
        Type::UUID,
        Type::TEXT_ARRAY,
        Type::INT8,
        Type::UUID_ARRAY,
        Type::INT4,
        Type::TEXT_ARRAY,
        Type::BOOL,
        Type::INT8,
    ],
};

/// How many orphans beyond its share a pod reads. With fewer, a pod that passes over suspects, or runs that others took
/// meanwhile, takes less than its share and needs another pass. With more, each pod reads more of what other pods take.
const SPARE: i64 = 128;

/// The runs that a recovery pass reads: every running run of ours, and orphans.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    own: Uuid,
    kinds: Vec<String>,
    limit: i64,
    passed_over: Vec<Uuid>,
    suspect_from: i32,
    crash_reasons: Vec<&'static str>,
    whole: bool,
    spare: Option<i64>,
}

impl Wanted {
    /// Asks for at most `limit` orphans of these kinds, without those in `passed_over`. If `suspect_from` is given, a
    /// run with at least that many crashes is a suspect and is left out. Only if `whole`, orphans that still name an
    /// owner are read. Only if `wide`, orphans beyond this pod's share are read.
    pub(crate) fn new(
        own: Incarnation,
        kinds: Vec<String>,
        limit: usize,
        passed_over: &[RunId],
        suspect_from: Option<u32>,
        whole: bool,
        wide: bool,
    ) -> Self {
        Self {
            own: own.as_uuid(),
            kinds,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            passed_over: passed_over.iter().map(RunId::as_uuid).collect(),
            suspect_from: suspect_from.and_then(|n| i32::try_from(n).ok()).unwrap_or(i32::MAX),
            crash_reasons: crash_reasons(),
            whole,
            spare: (!wide).then_some(SPARE),
        }
    }

    /// The parameters of [`CANDIDATES`].
    pub(crate) fn params(&self) -> [Param<'_>; 8] {
        [
            (&self.own, Type::UUID),
            (&self.kinds, Type::TEXT_ARRAY),
            (&self.limit, Type::INT8),
            (&self.passed_over, Type::UUID_ARRAY),
            (&self.suspect_from, Type::INT4),
            (&self.crash_reasons, Type::TEXT_ARRAY),
            (&self.whole, Type::BOOL),
            (&self.spare, Type::INT8),
        ]
    }

    /// The same, for the pool.
    fn late(&self) -> Vec<Late> {
        let Self { own, kinds, limit, passed_over, suspect_from, crash_reasons, whole, spare } = self.clone();
        vec![
            Box::new(own),
            Box::new(kinds),
            Box::new(limit),
            Box::new(passed_over),
            Box::new(suspect_from),
            Box::new(crash_reasons),
            Box::new(whole),
            Box::new(spare),
        ]
    }
}

/// Reads what a recovery pass plans with.
pub(crate) async fn candidates(db: &Database, wanted: &Wanted) -> Result<Seen> {
    read(&db.query_by_index("looking for orphans", CANDIDATES.template, || wanted.late()).await?)
}

pub(crate) fn read(rows: &[Row]) -> Result<Seen> {
    let mut seen = Seen { rows: Vec::with_capacity(rows.len()), ..Seen::default() };
    for row in rows {
        match row.at::<Option<Uuid>>("run_id")? {
            Some(run_id) => seen.rows.push(read_run(run_id.into(), row)?),
            None => {
                seen.fleet = read_fleet(row)?;
                seen.takers = row.at("pods")?;
                // Own rows come before this row, orphans after it.
                let listed = rows.len() - seen.rows.len() - 1;
                seen.unlisted = number(row.at("orphans")?).saturating_sub(listed);
                let kinds: Option<Vec<&str>> = row.at("ownerless")?;
                seen.ownerless = kinds.unwrap_or_default().into_iter().map(Arc::from).collect();
            }
        }
    }
    Ok(seen)
}

fn read_run(run_id: RunId, row: &Row) -> Result<Candidate> {
    let crashed = row.at("crashed")?;
    Ok(Candidate {
        run_id,
        kind: Arc::from(row.at::<&str>("kind")?),
        owner: row.at::<Option<Uuid>>("owner_incarnation")?.map(Incarnation::from),
        fence: row.at::<i64>("fence")?.into(),
        unbegun: row.at::<i32>("attempt")? == 0,
        crashes: u32::try_from(row.at::<i32>("crashes")?).unwrap_or(0) + u32::from(crashed),
        crashed,
    })
}

/// `None` if this pod is not among the pods that claim. It drains or is not in the roster then, and claims nothing.
fn read_fleet(row: &Row) -> Result<Option<FleetLoad>> {
    let Some(me) = row.at::<Option<i32>>("me")? else { return Ok(None) };
    let (running, capacity): (Vec<i64>, Vec<Option<i32>>) = (row.at("running")?, row.at("capacity")?);
    let taker = |(running, capacity): (i64, Option<i32>)| Taker {
        running: number(running),
        capacity: capacity.map(|n| number(n.into())),
    };
    let takers = running.into_iter().zip(capacity).map(taker).collect();
    // In PostgreSQL the first element of an array has the number 1.
    Ok(Some(FleetLoad { orphans: number(row.at("orphans")?), takers, me: number((me - 1).into()) }))
}

fn number(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}
