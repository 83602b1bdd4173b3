-- Reads how many runs wait, by kind, and the room for them (the view `studio_backlog`).
--
-- Arguments:
--   most   int8    how many kinds at most
--
-- Returns a row for each kind, those with the most waiting runs first.
SELECT b.kind, b.waiting, b.running, b.free_capacity, b.pods
  FROM :"schema".studio_backlog b
 ORDER BY b.waiting DESC, b.kind
 LIMIT :'most'::int8;
