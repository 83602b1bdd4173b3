-- Reads a piece of the input or the checkpoint of a run for its owner, as UTF-8 text. So each statement ends in time,
-- however large the value is.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--   start   int4  the piece's first byte, from 1 on
--   bytes   int4  how many bytes at most
--   column  text  input or checkpoint
--
-- Returns the length of the whole text and the piece, both NULL if the column is NULL. No row: the owner is fenced.
\set owned_by `cat part/owned_by.sql`
SELECT octet_length(t.bytes) AS whole,
       substr(t.bytes, :'start'::int4, :'bytes'::int4) AS piece
  FROM (SELECT convert_to((CASE :'column'::text WHEN 'input' THEN r.input ELSE r.checkpoint END)::text, 'UTF8')
                 AS bytes
          FROM :"schema".studio_runs r
         WHERE :owned_by
           -- OFFSET 0 makes the server compute the text once, and not for each of the two columns above.
           OFFSET 0) AS t;
