//! Setting aside a run whose row fails every claim.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Result;
use crate::id::Incarnation;
use crate::pg::pool::Database;
use crate::protocol::recover::Candidate;

/// Quarantines a run that cannot be claimed, if it still is as it was read and its owner is gone. False: it is not.
///
/// The value that made the claim fail must not make this fail too, nor a claim after `studio_release`. So nothing is
/// computed from the row, and every number that is out of its bounds is brought back into them: the attempt continues
/// behind the attempts that are recorded, and a fence that no pod was given becomes a new one. What they were stands in
/// the run's error and in the event.
pub(crate) async fn quarantine(db: &Database, own: Incarnation, run: &Candidate, why: &str) -> Result<bool> {
    const SQL: &str = "WITH me AS MATERIALIZED ( \
           SELECT p.pod_id, p.incarnation FROM @.studio_pods p WHERE p.incarnation = $1 AND p.state = 'active' \
         ), bad AS MATERIALIZED ( \
           SELECT r.run_id, r.kind, r.key, r.attempt, r.crashes, r.fence, \
                  COALESCE((SELECT pg_catalog.max(a.attempt) FROM @.studio_run_attempts a \
                             WHERE a.run_id = r.run_id AND a.attempt BETWEEN 1 AND 2147483645), 0) AS attempts, \
                  r.fence - COALESCE(pg_catalog.pg_sequence_last_value('@.studio_fence'::pg_catalog.regclass), 0)::pg_catalog.numeric \
                    > $5::pg_catalog.int8 AS is_beyond \
             FROM @.studio_runs r CROSS JOIN me \
            WHERE r.run_id = $2 AND r.state = 'running' AND r.owner_incarnation IS NOT DISTINCT FROM $3 AND r.fence = $4 \
              AND ($3 IS NULL OR $3 = $1 OR NOT EXISTS (SELECT FROM @.studio_pods p WHERE p.incarnation = $3)) \
            FOR NO KEY UPDATE OF r SKIP LOCKED \
         ), aside AS ( \
           UPDATE @.studio_runs r SET state = 'quarantined', finished_at = pg_catalog.clock_timestamp(), \
                  error = pg_catalog.format('no pod can claim it: %s (attempt %s, crashes %s, fence %s)', $6::pg_catalog.text, \
                    b.attempt, b.crashes, b.fence), \
                  attempt = CASE WHEN b.attempt >= 2147483646 THEN b.attempts ELSE GREATEST(b.attempt, b.attempts) END, \
                  crashes = CASE WHEN b.crashes BETWEEN 0 AND 2147483645 THEN b.crashes ELSE 0 END, \
                  fence = CASE WHEN b.is_beyond OR b.fence < 0 \
                    THEN pg_catalog.nextval('@.studio_fence'::pg_catalog.regclass) ELSE b.fence END, \
                  written = GREATEST(r.written, 0), checkpoint_seq = GREATEST(r.checkpoint_seq, 0), \
                  stream_generation = GREATEST(r.stream_generation, 1), stream_resets = GREATEST(r.stream_resets, 0), \
                  stream_furthest = GREATEST(r.stream_furthest, 0) \
             FROM bad b WHERE r.run_id = b.run_id \
           RETURNING r.run_id, r.error, b.kind, b.key, b.attempt, b.crashes, b.fence \
         ), closed AS ( \
           UPDATE @.studio_run_attempts a SET ended_at = pg_catalog.clock_timestamp(), reason = 'lost' \
             FROM aside s WHERE a.run_id = s.run_id AND a.ended_at IS NULL AND a.attempt >= 1 RETURNING a.run_id \
         ), first AS MATERIALIZED ( \
           SELECT pg_catalog.count(*) AS rows FROM closed \
         ) SELECT @.studio_append_event('quarantined'::pg_catalog.text, me.pod_id, me.incarnation, me.pod_id, \
                    pg_catalog.jsonb_build_object('run', s.run_id, 'kind', s.kind, 'key', s.key, 'crashes', s.crashes, \
                      'attempt', s.attempt, 'fence', s.fence, 'why', $6::pg_catalog.text)) \
             FROM aside s CROSS JOIN me CROSS JOIN first WHERE first.rows >= 0";
    let expected: Option<Uuid> = run.owner.map(|owner| owner.as_uuid());
    let params: [&(dyn ToSql + Sync); 6] =
        [&own.as_uuid(), &run.run_id.as_uuid(), &expected, &run.fence.get(), &crate::protocol::fences::JUMP, &why];
    Ok(db.query_opt("quarantining a run that cannot be claimed", SQL, &params).await?.is_some())
}
