//! The statements of the floors. They write the same rows as podlock does, under the same conditions on owner and
//! fence. They ask for nothing else: whether the pod lives, why a write found no row, whether a fence is in reach.

use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::{Result, connect};

/// The statements, for one run or for many.
pub(crate) struct Texts {
    /// Run, input, owner. Returns run and fence.
    start: &'static str,
    /// Run, input.
    submit: &'static str,
    /// Run, owner. Returns run and fence.
    claim: &'static str,
    /// Run, fence, owner, number, checkpoint.
    checkpoint: &'static str,
    /// Run, fence, owner, result.
    end: &'static str,
}

pub(crate) const ONE: Texts = Texts {
    start: "WITH run AS (
              INSERT INTO studio_runs (run_id, kind, input, owner_pod, owner_incarnation, fence, attempt)
              VALUES ($1, 'work', $2::jsonb, 'by hand', $3::uuid, nextval('studio_fence'), 1) RETURNING run_id, fence
            )
            INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
            SELECT run_id, 1, 'by hand', $3::uuid, fence FROM run RETURNING run_id, fence",
    submit: "INSERT INTO studio_runs (run_id, kind, input) VALUES ($1, 'work', $2::jsonb)",
    claim: "WITH run AS (
              UPDATE studio_runs SET owner_pod = 'by hand', owner_incarnation = $2::uuid, attempt = attempt + 1,
                     fence = nextval('studio_fence')
               WHERE run_id = $1 AND state = 'running' AND owner_incarnation IS NULL RETURNING run_id, fence, attempt
            )
            INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
            SELECT run_id, attempt, 'by hand', $2::uuid, fence FROM run RETURNING run_id, fence",
    checkpoint: "UPDATE studio_runs SET checkpoint = $5::jsonb, crashes = 0, written = $4::int8
                  WHERE run_id = $1 AND fence = $2 AND owner_incarnation = $3::uuid AND state = 'running'",
    end: "WITH run AS (
            UPDATE studio_runs SET state = 'succeeded', result = $4::jsonb, finished_at = clock_timestamp()
             WHERE run_id = $1 AND fence = $2 AND owner_incarnation = $3::uuid AND state = 'running'
            RETURNING run_id, attempt
          )
          UPDATE studio_run_attempts a SET ended_at = clock_timestamp(), reason = 'succeeded'
            FROM run WHERE a.run_id = run.run_id AND a.attempt = run.attempt",
};

/// Each row is looked up by its key, and written at its place. As a plain join, the server would read all runs that go
/// on, because it expects few.
pub(crate) const MANY: Texts = Texts {
    start: "WITH run AS (
              INSERT INTO studio_runs (run_id, kind, input, owner_pod, owner_incarnation, fence, attempt)
              SELECT u.run_id, 'work', u.input, 'by hand', $3::uuid, nextval('studio_fence'), 1
                FROM unnest($1::uuid[], $2::jsonb[]) AS u (run_id, input) RETURNING run_id, fence
            )
            INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
            SELECT run_id, 1, 'by hand', $3::uuid, fence FROM run RETURNING run_id, fence",
    submit: "INSERT INTO studio_runs (run_id, kind, input)
             SELECT u.run_id, 'work', u.input FROM unnest($1::uuid[], $2::jsonb[]) AS u (run_id, input)",
    claim: "WITH u AS MATERIALIZED (
              SELECT (SELECT r.ctid FROM studio_runs r WHERE r.run_id = u.run_id) AS place
                FROM unnest($1::uuid[]) AS u (run_id)
            ), run AS (
              UPDATE studio_runs r SET owner_pod = 'by hand', owner_incarnation = $2::uuid, attempt = r.attempt + 1,
                     fence = nextval('studio_fence')
                FROM u WHERE r.ctid = u.place AND r.finished_at IS NULL AND r.owner_incarnation IS NULL
              RETURNING r.run_id, r.fence, r.attempt
            )
            INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
            SELECT run_id, attempt, 'by hand', $2::uuid, fence FROM run RETURNING run_id, fence",
    checkpoint: "WITH u AS MATERIALIZED (
                   SELECT u.*, (SELECT r.ctid FROM studio_runs r WHERE r.run_id = u.run_id) AS place
                     FROM unnest($1::uuid[], $2::int8[], $5::jsonb[]) AS u (run_id, fence, checkpoint)
                 )
                 UPDATE studio_runs r SET checkpoint = u.checkpoint, crashes = 0, written = $4::int8
                   FROM u WHERE r.ctid = u.place AND r.fence = u.fence AND r.owner_incarnation = $3::uuid
                    AND r.finished_at IS NULL",
    end: "WITH u AS MATERIALIZED (
            SELECT u.*, (SELECT r.ctid FROM studio_runs r WHERE r.run_id = u.run_id) AS place
              FROM unnest($1::uuid[], $2::int8[], $4::jsonb[]) AS u (run_id, fence, result)
          ), run AS (
            UPDATE studio_runs r SET state = 'succeeded', result = u.result, finished_at = clock_timestamp()
              FROM u WHERE r.ctid = u.place AND r.fence = u.fence AND r.owner_incarnation = $3::uuid
               AND r.finished_at IS NULL
            RETURNING r.run_id, r.attempt
          ), place AS MATERIALIZED (
            SELECT (SELECT a.ctid FROM studio_run_attempts a WHERE a.run_id = run.run_id AND a.attempt = run.attempt)
                   AS place FROM run
          ), closed AS (
            UPDATE studio_run_attempts a SET ended_at = clock_timestamp(), reason = 'succeeded'
              FROM place WHERE a.ctid = place.place
          )
          SELECT run_id FROM run",
};

/// A connection with the statements, prepared.
pub(crate) struct Hand {
    pub(crate) client: Client,
    pub(crate) own: Uuid,
    pub(crate) start: Statement,
    pub(crate) submit: Statement,
    pub(crate) claim: Statement,
    pub(crate) checkpoint: Statement,
    pub(crate) end: Statement,
}

impl Hand {
    pub(crate) async fn new(url: &str, texts: &Texts) -> Result<Self> {
        let client = connect(url).await?;
        // As the connections of a pod's pool.
        client.batch_execute("SET jit = off; SET plan_cache_mode = force_generic_plan").await?;
        Ok(Self {
            own: Uuid::now_v7(),
            start: client.prepare(texts.start).await?,
            submit: client.prepare(texts.submit).await?,
            claim: client.prepare(texts.claim).await?,
            checkpoint: client.prepare(texts.checkpoint).await?,
            end: client.prepare(texts.end).await?,
            client,
        })
    }
}
