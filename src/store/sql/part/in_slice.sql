  -- The key is in this slice of all keys.
  (hashtextextended(k.key, 0) & 9223372036854775807) % :'slices'::int4 = :'slice'::int4
