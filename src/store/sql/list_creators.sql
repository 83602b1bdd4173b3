-- Lists the roles that may create objects in the schema, and own neither the schema nor podlock's tables. Superusers
-- are not listed.
--
-- Arguments:
--   schema_name  text  the schema of podlock's tables
--
-- Returns a row for each role, at most 100. `PUBLIC` is every role.
SELECT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END AS role
  FROM pg_namespace n
 CROSS JOIN LATERAL aclexplode(n.nspacl) a
  LEFT JOIN pg_roles r ON r.oid = a.grantee
 WHERE n.nspname = :'schema_name'::text::name
   AND a.privilege_type = 'CREATE'
   AND a.grantee <> n.nspowner
   AND r.rolsuper IS NOT TRUE
   AND NOT EXISTS (SELECT FROM pg_class c
                    WHERE c.relnamespace = n.oid
                      AND c.relname = 'studio_pods'
                      AND c.relowner = a.grantee)
 ORDER BY role
 LIMIT 100;
