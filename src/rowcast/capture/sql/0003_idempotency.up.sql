-- Mutations that were done, by the id that the client gave them, so that one that is sent twice is done once.

CREATE TABLE rowcast.mutation (
    id text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
    outcome jsonb,
    settled boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX mutation_created_at ON rowcast.mutation (created_at);
COMMENT ON TABLE rowcast.mutation IS 'Mutations that were done; rowcast.purge_mutations() removes the old ones';

-- The functions run as their owner: the application's roles need no right on the table, and whoever asks for an
-- outcome has to know the mutation's id.

-- Whether the caller's transaction is to do the mutation, or its outcome. A second transaction with the same id waits
-- here until the first has ended. A claim that was committed without its end (by a connection in autocommit) is void.
CREATE FUNCTION rowcast.claim_mutation(mutation_id text, OUT claimed boolean, OUT outcome jsonb)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    INSERT INTO rowcast.mutation AS m (id) VALUES (mutation_id)
    ON CONFLICT (id) DO UPDATE SET created_at = now() WHERE NOT m.settled;
    claimed := FOUND;
    IF NOT claimed THEN
        SELECT m.outcome INTO outcome FROM rowcast.mutation AS m WHERE m.id = mutation_id;
    END IF;
    -- Said again at a retry as well: the client that retries may have missed it.
    PERFORM rowcast.confirm(mutation_id);
END;
$function$;

CREATE FUNCTION rowcast.settle_mutation(mutation_id text, mutation_outcome jsonb) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    UPDATE rowcast.mutation SET outcome = mutation_outcome, settled = true WHERE id = mutation_id;
$function$;

CREATE FUNCTION rowcast.mutation_status(mutation_id text) RETURNS text
LANGUAGE sql
STABLE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT CASE
        WHEN EXISTS (SELECT FROM rowcast.mutation AS m WHERE m.id = mutation_id AND m.settled) THEN 'committed'
        ELSE 'unknown'
    END;
$function$;
COMMENT ON FUNCTION rowcast.mutation_status(text) IS 'committed, or unknown: answers a client that lost the answer';

-- In bites, so that no transaction is long and no lock is held for long. Returns how many it removed.
CREATE FUNCTION rowcast.purge_mutations(older_than interval DEFAULT '1 day', at_most integer DEFAULT 10000) RETURNS bigint
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    WITH old AS (
        SELECT id FROM rowcast.mutation WHERE created_at < now() - older_than
        ORDER BY created_at LIMIT at_most FOR UPDATE SKIP LOCKED
    ), removed AS (
        DELETE FROM rowcast.mutation AS m USING old WHERE m.id = old.id RETURNING 1
    )
    SELECT count(*) FROM removed;
$function$;
-- Anybody may ask; only the owner, and whoever it grants this to, may forget.
REVOKE EXECUTE ON FUNCTION rowcast.purge_mutations(interval, integer) FROM PUBLIC;
