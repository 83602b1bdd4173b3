-- Webhooks: how far the alerts of the event log are delivered to each endpoint, and which pod delivers them.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE @.studio_webhooks (
    name        text    NOT NULL,
    idx         bigint  NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    incarnation uuid,
    rounds      bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (name),
    CONSTRAINT studio_webhooks_attempts_check CHECK (attempts >= 0)
) WITH (fillfactor = 50);
COMMENT ON TABLE  @.studio_webhooks IS 'The endpoints that get the alerts: one row for each name. One pod of the fleet delivers to it at a time, in the order of the log. Another pod takes over if this one is not in studio_pods, or if rounds stands still. A row of a name that no pod uses any more can be deleted.';
COMMENT ON COLUMN @.studio_webhooks.name IS 'The name of the endpoint, as the service gave it.';
COMMENT ON COLUMN @.studio_webhooks.idx IS 'The alerts up to this position of studio_pod_events are delivered or given up.';
COMMENT ON COLUMN @.studio_webhooks.attempts IS 'How many attempts for the next alert were begun.';
COMMENT ON COLUMN @.studio_webhooks.incarnation IS 'The pod that delivers. NULL: none yet.';
COMMENT ON COLUMN @.studio_webhooks.rounds IS 'The number of that pod''s rounds so far. If it does not grow, the pod stands still.';

-- Whoever may register a pod may also deliver alerts.
DO $function$
DECLARE
    writer record;
BEGIN
    FOR writer IN
        SELECT DISTINCT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC'::text
                             ELSE pg_catalog.format('%I'::text, pg_catalog.pg_get_userbyid(a.grantee)) END AS name
          FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = '@.studio_pods'::pg_catalog.regclass AND a.privilege_type = 'INSERT'::text
           AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE ON %s TO %s'::text,
            '@.studio_webhooks'::text, writer.name);
    END LOOP;
END $function$;

-- Whoever applies this, the table belongs to the owner of the tables that were there before.
DO $function$
DECLARE
    before text;
BEGIN
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) INTO before
      FROM pg_catalog.pg_class AS c
     WHERE c.oid = '@.studio_pods'::pg_catalog.regclass
       AND c.relowner <> (SELECT n.relowner FROM pg_catalog.pg_class AS n
                           WHERE n.oid = '@.studio_webhooks'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_webhooks'::text, ' OWNER TO '::text, before);
END $function$;
