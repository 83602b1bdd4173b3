-- Reads which pod delivers the alerts to an endpoint.
--
-- Arguments:
--   name  text  the name of the endpoint
--
-- Returns one row, or none if no pod has delivered to it yet. `is_held`: the pod is in the roster.
SELECT w.incarnation, w.rounds,
       EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.incarnation) AS is_held
  FROM :"schema".studio_webhooks w
 WHERE w.name = :'name'::text;
