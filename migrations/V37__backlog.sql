-- The backlog by kind, for autoscalers, and the trace that a run belongs to.

SET LOCAL search_path = pg_catalog, pg_temp;

ALTER TABLE @.studio_pods ADD COLUMN capacity_of jsonb;
COMMENT ON COLUMN @.studio_pods.capacity_of IS 'How many runs of a kind the pod executes at a time, at most, where that is fewer than capacity: an object of numbers by kind. NULL: no kind has a limit of its own, or a pod of an older version wrote the row.';

ALTER TABLE @.studio_runs ADD COLUMN traceparent text;
COMMENT ON COLUMN @.studio_runs.traceparent IS 'The trace that the run belongs to, as W3C Trace Context writes it. NULL: an older version, or another program, made the run.';

-- Both reads of the runs use the partial index on (owner_incarnation, run_id), so they read running runs alone, and at most
-- so many. More than that is a number for no autoscaler, and each reader would pay for it.
CREATE VIEW @.studio_backlog AS
WITH unowned AS MATERIALIZED (
    SELECT r.kind
      FROM @.studio_runs AS r
     WHERE r.state = 'running' AND r.owner_incarnation IS NULL
     LIMIT 100000
), owned AS MATERIALIZED (
    SELECT o.kind, o.owner_incarnation, count(*) AS runs
      FROM (SELECT r.kind, r.owner_incarnation
              FROM @.studio_runs AS r
             WHERE r.state = 'running' AND r.owner_incarnation IS NOT NULL
             LIMIT 100000) AS o
     GROUP BY o.kind, o.owner_incarnation
), loads AS (
    SELECT o.owner_incarnation, sum(o.runs) AS runs
      FROM owned AS o
     GROUP BY o.owner_incarnation
), counted AS (
    SELECT u.kind, count(*) AS waiting, 0 AS running
      FROM unowned AS u
     GROUP BY u.kind
    UNION ALL
    SELECT o.kind, CASE WHEN p.incarnation IS NULL THEN o.runs ELSE 0 END,
           CASE WHEN p.incarnation IS NULL THEN 0 ELSE o.runs END
      FROM owned AS o
      LEFT JOIN @.studio_pods AS p ON p.incarnation = o.owner_incarnation
), places AS (
    SELECT k.kind,
           -- A limit that is no number was written by hand, and counts as none.
           GREATEST(LEAST(COALESCE(p.capacity, 0) - COALESCE(l.runs, 0),
                          CASE WHEN jsonb_typeof(p.capacity_of -> k.kind) = 'number'
                               THEN (p.capacity_of -> k.kind)::numeric - COALESCE(o.runs, 0) END), 0) AS free
      FROM @.studio_pods AS p
     CROSS JOIN LATERAL unnest(p.kinds) AS k (kind)
      LEFT JOIN loads AS l ON l.owner_incarnation = p.incarnation
      LEFT JOIN owned AS o ON o.owner_incarnation = p.incarnation AND o.kind = k.kind
     WHERE p.state = 'active' AND p.cordoned_by IS NULL AND p.evicted IS NULL
), kinds AS (
    SELECT c.kind, c.waiting, c.running, 0::numeric AS free, 0 AS pods FROM counted AS c
    UNION ALL
    SELECT s.kind, 0, 0, s.free, 1 FROM places AS s
)
SELECT a.kind,
       sum(a.waiting)::bigint AS waiting,
       sum(a.running)::bigint AS running,
       sum(a.free)::bigint AS free_capacity,
       sum(a.pods)::bigint AS pods
  FROM kinds AS a
 GROUP BY a.kind;
COMMENT ON VIEW @.studio_backlog IS 'By kind: runs that wait for a pod, and the room for them. For autoscalers. It counts at most 100,000 running runs without an owner, and as many with one.';
COMMENT ON COLUMN @.studio_backlog.kind IS 'The kind. Each that a running run has, or that a pod takes.';
COMMENT ON COLUMN @.studio_backlog.waiting IS 'Its running runs that no pod of the roster owns.';
COMMENT ON COLUMN @.studio_backlog.running IS 'Its running runs that a pod of the roster owns.';
COMMENT ON COLUMN @.studio_backlog.free_capacity IS 'How many more runs of it the pods have room for that take it: active, not cordoned, not evicted. 0: no pod takes it, or all are full. A place that may go to several kinds counts for each of them. A pod of an older version does not state its limits by kind.';
COMMENT ON COLUMN @.studio_backlog.pods IS 'How many such pods there are.';

-- Whoever may read studio_orphans may also read the backlog.
DO $function$
DECLARE
    reader record;
BEGIN
    FOR reader IN
        SELECT DISTINCT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC'::text
                             ELSE pg_catalog.format('%I'::text, pg_catalog.pg_get_userbyid(a.grantee)) END AS name
          FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = '@.studio_orphans'::pg_catalog.regclass AND a.privilege_type = 'SELECT'::text
           AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %s'::text, '@.studio_backlog'::text, reader.name);
    END LOOP;
END $function$;

-- Whoever applies this, the view belongs to the owner of the tables that were there before.
DO $function$
DECLARE
    before text;
BEGIN
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) INTO before
      FROM pg_catalog.pg_class AS c
     WHERE c.oid = '@.studio_pods'::pg_catalog.regclass
       AND c.relowner <> (SELECT n.relowner FROM pg_catalog.pg_class AS n
                           WHERE n.oid = '@.studio_backlog'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER VIEW '::text, '@.studio_backlog'::text, ' OWNER TO '::text, before);
END $function$;
