  -- How many chunks the stream of the run `r` has.
  COALESCE((SELECT max(c.seq) + 1
              FROM :"schema".studio_run_chunks c
             WHERE c.run_id = r.run_id AND c.generation = r.stream_generation), 0)
