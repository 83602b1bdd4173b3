  -- Notifies the readers, other than `own`, of the runs in `told_runs`. Returns a row if it notified. A pod's row counts
  -- while the pod is in the roster; another reader says until when its row counts. The notice has the form of
  -- `protocol::notices::StreamNotice`: `by` names the sender, and `told_groups` has the group of each run. For more than
  -- `groups_most` groups it names all of them (`*`). It is only a hint (L11): readers query once a second anyway.
  SELECT pg_notify(:"schema".studio_stream_channel(),
                   concat(:'by'::text, ':',
                          CASE WHEN count(*) > :'groups_most'::int4 THEN '*'
                               ELSE string_agg(g.name, '') END)) AS told
    FROM (SELECT DISTINCT t.name
            FROM ROWS FROM (unnest(:'told_runs'::uuid[]), unnest(:'told_groups'::text[])) AS t (run_id, name)
           WHERE EXISTS (SELECT FROM :"schema".studio_stream_readers s
                          WHERE s.run_id = t.run_id
                            AND s.reader IS DISTINCT FROM :'own'::uuid
                            AND (s.until > clock_timestamp()
                                 OR EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = s.reader)))
         ) AS g
  HAVING count(*) > 0
