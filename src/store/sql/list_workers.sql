-- Lists the workers of the pods in the roster, each with its last report. It is for people: no pod reads it. An argument
-- that is NULL does not filter.
--
-- Arguments:
--   worker     uuid  one worker
--   pod        text  the name of its owner
--   health     text  `pending`, `not_ready`, `ready`, `failed` or `draining`
--   liveness   text  `active` or `inactive`
--   after_pod  text  only workers after one in the list: the name of that worker's owner
--   after_url  text  its URL
--   after_id   uuid  its id
--   most       int8  how many workers at most
--
-- Returns a row for each worker, in the order of their owners' names and their URLs.
SELECT s.worker_id, s.url, s.owner_pod, s.owner_incarnation, s.health, s.liveness, s.reported_at, s.spec, s.health_check
  FROM :"schema".studio_worker_status s
 WHERE (:'worker'::uuid IS NULL OR s.worker_id = :'worker'::uuid)
   AND (:'pod'::text IS NULL OR s.owner_pod = :'pod'::text)
   AND (:'health'::text IS NULL OR s.health = :'health'::text)
   AND (:'liveness'::text IS NULL OR s.liveness = :'liveness'::text)
   AND (:'after_id'::uuid IS NULL
        OR (s.owner_pod, s.url, s.worker_id) > (:'after_pod'::text, :'after_url'::text, :'after_id'::uuid))
 ORDER BY s.owner_pod, s.url, s.worker_id
 LIMIT :'most'::int8;
