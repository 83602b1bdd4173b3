-- Lists runs. An argument that is NULL or false does not filter.
--
-- Arguments:
--   in_state        text         `running`, `succeeded`, `failed`, `cancelled` or `quarantined`
--   kind            text         the run's kind
--   key             text         the run's key
--   owner_pod       text         the name of its owner, now or at its end
--   owner           uuid         the incarnation of its owner
--   is_orphan       bool         only running runs without an owner in the roster
--   after_at        timestamptz  only runs after one run in the list: when that run was created
--   after_id        uuid         the id of that run
--   most            int8         how many runs at most
--   is_unclaimable  bool         only orphans of a kind that no pod takes now
--   crashes         text[]       the reasons that count as a crash of the owner
--
-- Returns a row for each run, the newest first.
\set run_columns `cat part/run_columns.sql`
\set owners_that_died `cat part/owners_that_died.sql`
\set died_with `cat part/died_with.sql`
SELECT :run_columns
  FROM :"schema".studio_runs r
  :owners_that_died
 WHERE (:'in_state'::text IS NULL OR r.state = :'in_state'::text)
   AND (:'kind'::text IS NULL OR r.kind = :'kind'::text)
   AND (:'key'::text IS NULL OR r.key = :'key'::text)
   AND (:'owner_pod'::text IS NULL OR r.owner_pod = :'owner_pod'::text)
   AND (:'owner'::uuid IS NULL OR r.owner_incarnation = :'owner'::uuid)
   AND (NOT :'is_orphan'::bool OR r.run_id IN (SELECT o.run_id FROM :"schema".studio_orphans o))
   -- The newest run comes first, and of equally old ones the least id. The index serves the first comparison.
   AND (:'after_at'::timestamptz IS NULL
        OR (r.created_at <= :'after_at'::timestamptz
            AND (r.created_at < :'after_at'::timestamptz OR r.run_id > :'after_id'::uuid)))
   -- L6: such an orphan stays in the table and can be listed. A pod that names no kinds accepts any. A pod that drains or
   -- is cordoned takes none.
   AND (NOT :'is_unclaimable'::bool
        OR (r.run_id IN (SELECT o.run_id FROM :"schema".studio_orphans o)
            AND NOT EXISTS (SELECT FROM :"schema".studio_pods p
                             WHERE p.state = 'active' AND p.cordoned_by IS NULL
                               AND (p.kinds IS NULL OR r.kind = ANY (p.kinds)))))
 ORDER BY r.created_at DESC, r.run_id
 LIMIT :'most'::int8;
