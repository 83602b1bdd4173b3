-- Reads the next chunks for each of several readers of streams, in one snapshot. Also reads which of their chunks were
-- taken back.
--
-- Arguments:
--   run_ids      uuid[]  the runs, and where the reader of each is (`protocol::stream::Position`):
--   generations  int4[]    the generation whose chunks it has, 0 for none
--   resets       int4[]    how many resets it knows of
--   nexts        int8[]    its next chunk
--   fences       int8[]    the fence of the chunk before, 0 if there is none
--   page_chunks  int8    how many chunks at most for each reader
--   page_bytes   int8    how many bytes at most for each reader, without the first chunk
--   error_chars  int4    how many characters of the run's error at most
--
-- Returns a row for each run that exists. `cut_from`: the first chunk of this generation that was taken back since the
-- reader's last query. `differs_from`: the first of the reader's chunks that was written again under another fence; 0
-- if it is not known which. `next`: the number after the stream's last chunk. The chunks are three parallel arrays,
-- NULL if there are none.
\set stream_length `cat part/stream_length.sql`
SELECT w.nth, r.state,
       r.stream_generation AS generation,
       r.stream_resets AS resets,
       CASE WHEN i.is_news
            THEN (SELECT min(s.from_seq)
                    FROM :"schema".studio_run_resets s
                   WHERE s.run_id = r.run_id AND s.reset > w.resets AND s.generation = r.stream_generation)
       END AS cut_from,
       CASE WHEN i.is_news THEN :stream_length ELSE w.next END AS next,
       -- After a failover that lost chunks, another attempt may have written others in their places.
       CASE WHEN i.is_news
                 AND w.fence <> 0
                 AND w.generation = r.stream_generation
                 AND w.fence <> (SELECT l.fence
                                   FROM :"schema".studio_run_chunks l
                                  WHERE l.run_id = r.run_id AND l.generation = w.generation AND l.seq = w.next - 1)
            THEN COALESCE((SELECT min(d.seq)
                             FROM :"schema".studio_run_chunks d
                            WHERE d.run_id = r.run_id AND d.generation = w.generation AND d.fence > w.fence), 0)
       END AS differs_from,
       c.seqs, c.fences, c.bodies, r.fence,
       CASE WHEN r.state <> 'running' THEN left(r.error, :'error_chars'::int4) END AS error
  FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'generations'::int4[]), unnest(:'resets'::int4[]),
                  unnest(:'nexts'::int8[]), unnest(:'fences'::int8[])) WITH ORDINALITY
       AS w (run_id, generation, resets, next, fence, nth)
  JOIN :"schema".studio_runs r ON r.run_id = w.run_id
  -- Most reads for a reader that is awake find nothing. So the rest is read only if there is a chunk after the reader's
  -- last one, or that one is not there any more, or the run or its stream is another than the reader knows.
 CROSS JOIN LATERAL (
    SELECT CASE WHEN r.state <> 'running'
                     OR w.generation <> r.stream_generation
                     OR w.resets <> r.stream_resets
                THEN true
                ELSE ARRAY(SELECT k.fence
                             FROM :"schema".studio_run_chunks k
                            WHERE k.run_id = w.run_id AND k.generation = w.generation AND k.seq >= w.next - 1
                            ORDER BY k.seq
                            LIMIT 2) IS DISTINCT FROM CASE WHEN w.next > 0 THEN ARRAY[w.fence] ELSE '{}'::int8[] END
           END AS is_news
    OFFSET 0
  ) AS i
 CROSS JOIN LATERAL (
    SELECT array_agg(b.seq) AS seqs, array_agg(b.fence) AS fences, array_agg(b.body) AS bodies
      FROM (SELECT p.seq, p.fence, p.body,
                   sum(octet_length(p.body)) OVER (ORDER BY p.seq ROWS UNBOUNDED PRECEDING)
                     - octet_length(p.body) AS before
              FROM (SELECT k.seq, k.fence, k.body
                      FROM :"schema".studio_run_chunks k
                     WHERE i.is_news
                       AND k.run_id = r.run_id
                       AND k.generation = r.stream_generation
                       AND k.seq >= w.next
                       -- Only if the reader's position still exists in the stream.
                       AND (w.generation = 0
                            OR (w.generation = r.stream_generation AND w.resets = r.stream_resets))
                     ORDER BY k.seq
                     LIMIT :'page_chunks'::int8) AS p) AS b
     WHERE b.before < :'page_bytes'::int8
  ) AS c;
