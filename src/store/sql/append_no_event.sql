-- Appends to the event log in a transaction that is rolled back, so that the server has compiled and planned the
-- function. The rollback leaves a gap in the log's numbers, as every rollback does.
SELECT :"schema".studio_append_event('claimed'::text, ''::text, gen_random_uuid(), ''::text, '{}'::jsonb) AS idx;
