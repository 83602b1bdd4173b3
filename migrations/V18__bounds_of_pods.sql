-- As version 16, for names in the roster.

ALTER TABLE studio_pods
    ADD CONSTRAINT studio_pods_name_check
        CHECK ((pod_id COLLATE pg_catalog."C") OPERATOR(pg_catalog.!~) '[\u0001-\u001f\u007f-\u009f]'::pg_catalog.text) NOT VALID;
