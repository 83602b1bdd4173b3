-- Makes the partitions for samples of today, of the next two days, and of so many days back, if they are missing.
--
-- Arguments:
--   back  int4  the days back
--
-- Returns one row: how many were made. NULL: another transaction makes them, or has locked the table.
SELECT :"schema".studio_add_sample_days(:'back'::int4) AS made;
