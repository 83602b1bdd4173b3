//! What a recovery pass reads: own rows, orphans, and who could take them.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::crashes::{crash_reasons, crashed};
use crate::error::Result;
use crate::id::{Incarnation, RunId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::txn::{Param, Prepared};
use crate::protocol::recover::{Candidate, Seen};
use crate::protocol::share::{Fleet, Taker};

/// Its parameters are those of [`Wanted`]. One row for each running run of ours, one for the fleet, one for each orphan.
///
/// The fleet is counted only where there are orphans: the pods that have a handler for one of those at hand, with how
/// many runs they own and may own.
pub(crate) const CANDIDATES: Prepared = Prepared {
    template: concat!(
        "WITH orphans AS MATERIALIZED ( \
           SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.created_at \
             FROM @.studio_runs r \
            WHERE r.state = 'running' AND r.kind = ANY($2) \
              AND (r.owner_incarnation IS NULL OR r.owner_incarnation NOT IN (SELECT p.incarnation FROM @.studio_pods p)) \
              AND r.owner_incarnation IS DISTINCT FROM $1 AND r.run_id <> ALL($4) \
              AND (r.crashes < $5 - 1 OR (r.crashes < $5) <> EXISTS ( \
                     SELECT FROM @.studio_pod_sessions t WHERE t.incarnation = r.owner_incarnation AND ",
        crashed!("t", "$6"),
        ")) \
         ), oldest AS MATERIALIZED ( \
           SELECT * FROM orphans o ORDER BY o.created_at, o.run_id LIMIT $3 \
         ), sum AS MATERIALIZED ( \
           SELECT pg_catalog.sum(k.orphans)::pg_catalog.int8 AS orphans, pg_catalog.array_agg(k.kind) AS kinds \
             FROM (SELECT o.kind, pg_catalog.count(*) AS orphans FROM orphans o GROUP BY o.kind) AS k \
         ), takers AS MATERIALIZED ( \
           SELECT p.incarnation, p.capacity, \
                  (SELECT pg_catalog.count(*) FROM @.studio_runs r \
                    WHERE r.state = 'running' AND r.owner_incarnation = p.incarnation) AS running \
             FROM @.studio_pods p \
            WHERE p.state = 'active' AND EXISTS (SELECT FROM oldest) \
              AND (p.kinds IS NULL OR p.kinds && (SELECT m.kinds FROM sum m)) \
         ) \
         (SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, false AS crashed, \
                 NULL::pg_catalog.int8 AS orphans, NULL::pg_catalog.int8[] AS running, \
                 NULL::pg_catalog.int4[] AS capacity, NULL::pg_catalog.int4 AS me \
            FROM @.studio_runs r WHERE r.state = 'running' AND r.owner_incarnation = $1) \
         UNION ALL \
         (SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, (SELECT m.orphans FROM sum m), \
                 pg_catalog.array_agg(k.running ORDER BY k.incarnation), \
                 pg_catalog.array_agg(k.capacity ORDER BY k.incarnation), \
                 pg_catalog.array_position(pg_catalog.array_agg(k.incarnation ORDER BY k.incarnation), $1) \
            FROM takers k HAVING pg_catalog.count(*) > 0) \
         UNION ALL \
         (SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, ",
        crashed!("s", "$6"),
        " IS TRUE, NULL, NULL, NULL, NULL \
            FROM oldest r LEFT JOIN @.studio_pod_sessions s ON s.incarnation = r.owner_incarnation \
           ORDER BY r.created_at, r.run_id)"
    ),
    types: &[Type::UUID, Type::TEXT_ARRAY, Type::INT8, Type::UUID_ARRAY, Type::INT4, Type::TEXT_ARRAY],
};

/// Which runs a recovery pass looks for: every running run of ours, and orphans.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    own: Uuid,
    kinds: Vec<String>,
    limit: i64,
    passed_over: Vec<Uuid>,
    suspect_from: i32,
    crash_reasons: Vec<&'static str>,
}

impl Wanted {
    /// At most `limit` orphans of these kinds, without those in `passed_over`; and, if a number of crashes is given from
    /// which on a run is one, without suspects.
    pub(crate) fn new(
        own: Incarnation,
        kinds: Vec<String>,
        limit: usize,
        passed_over: &[RunId],
        suspect_from: Option<u32>,
    ) -> Self {
        Self {
            own: own.as_uuid(),
            kinds,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            passed_over: passed_over.iter().map(RunId::as_uuid).collect(),
            suspect_from: suspect_from.and_then(|n| i32::try_from(n).ok()).unwrap_or(i32::MAX),
            crash_reasons: crash_reasons(),
        }
    }

    /// The parameters of [`CANDIDATES`].
    pub(crate) fn params(&self) -> [Param<'_>; 6] {
        [
            (&self.own, Type::UUID),
            (&self.kinds, Type::TEXT_ARRAY),
            (&self.limit, Type::INT8),
            (&self.passed_over, Type::UUID_ARRAY),
            (&self.suspect_from, Type::INT4),
            (&self.crash_reasons, Type::TEXT_ARRAY),
        ]
    }
}

/// What a recovery pass looks at.
pub(crate) async fn candidates(db: &Database, wanted: &Wanted) -> Result<Seen> {
    let params: [&(dyn ToSql + Sync); 6] = wanted.params().map(|(value, _)| value);
    read(&db.query("looking for orphans", CANDIDATES.template, &params).await?)
}

pub(crate) fn read(rows: &[Row]) -> Result<Seen> {
    let mut seen = Seen::default();
    for row in rows {
        match row.at::<Option<Uuid>>(0)? {
            Some(run_id) => seen.rows.push(read_run(run_id.into(), row)?),
            None => seen.fleet = read_fleet(row)?,
        }
    }
    Ok(seen)
}

fn read_run(run_id: RunId, row: &Row) -> Result<Candidate> {
    let crashed = row.at(6)?;
    Ok(Candidate {
        run_id,
        kind: Arc::from(row.at::<&str>(1)?),
        owner: row.at::<Option<Uuid>>(2)?.map(Incarnation::from),
        fence: row.at::<i64>(3)?.into(),
        unbegun: row.at::<i32>(4)? == 0,
        crashes: u32::try_from(row.at::<i32>(5)?).unwrap_or(0) + u32::from(crashed),
        crashed,
    })
}

/// `None` where we are not among them: we drain, or are not in the roster, and claim nothing anyway.
fn read_fleet(row: &Row) -> Result<Option<Fleet>> {
    let number = |n: i64| usize::try_from(n).unwrap_or(0);
    let Some(me) = row.at::<Option<i32>>(10)? else { return Ok(None) };
    let (running, capacity): (Vec<i64>, Vec<Option<i32>>) = (row.at(8)?, row.at(9)?);
    let taker = |(running, capacity): (i64, Option<i32>)| Taker {
        running: number(running),
        capacity: capacity.map(|n| number(n.into())),
    };
    let takers = running.into_iter().zip(capacity).map(taker).collect();
    // An array's first element is its number 1.
    Ok(Some(Fleet { orphans: number(row.at(7)?), takers, me: number((me - 1).into()) }))
}
