-- What every capture needs: who has done what here, and the functions that watch a table and confirm a mutation.

CREATE SCHEMA rowcast;
COMMENT ON SCHEMA rowcast IS 'Rowcast: made by `rowcast setup`, removed by `rowcast setup --down`';
-- Any role of the application may confirm its mutations; tables are granted one by one to the server's role.
GRANT USAGE ON SCHEMA rowcast TO PUBLIC;

CREATE TABLE rowcast.migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- A slot that was made anew continues nothing: each making has an incarnation, which is part of the epoch.
CREATE TABLE rowcast.incarnation (
    slot_name text PRIMARY KEY,
    incarnation text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rowcast.watched (
    publication_name name NOT NULL,
    table_oid regclass NOT NULL,
    PRIMARY KEY (publication_name, table_oid)
);

-- What setup has changed, so that it can be put back. One row for the table and one for each partition.
CREATE TABLE rowcast.replica_identity (
    table_oid regclass PRIMARY KEY,
    watched_oid regclass NOT NULL,
    previous_replica_identity "char" NOT NULL,
    previous_index regclass
);

CREATE FUNCTION rowcast.confirm(mutation_id text) RETURNS void
LANGUAGE sql
AS $function$
    SELECT pg_catalog.pg_logical_emit_message(true, 'rowcast', 'confirm ' || mutation_id);
$function$;
COMMENT ON FUNCTION rowcast.confirm(text) IS
    'Says to subscribed clients, with this transaction''s commit, that the mutation of that id is in the data now';

CREATE FUNCTION rowcast.publish(publication name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = publication) THEN
        EXECUTE format('CREATE PUBLICATION %I', publication);
        RAISE NOTICE 'rowcast: created publication %', publication;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_publication
        WHERE pubname = publication AND pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot
    ) THEN
        EXECUTE format(
            'ALTER PUBLICATION %I SET (publish = ''insert, update, delete, truncate'', publish_via_partition_root = true)',
            publication
        );
    END IF;
END;
$function$;

CREATE FUNCTION rowcast.unpublish(publication name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF EXISTS (SELECT FROM pg_publication WHERE pubname = publication) THEN
        EXECUTE format('DROP PUBLICATION %I', publication);
        RAISE NOTICE 'rowcast: dropped publication %', publication;
    END IF;
END;
$function$;

-- REPLICA IDENTITY needs an exclusive lock for a moment. Everybody queues behind one who waits for it, so give up
-- soon rather than hold up the application behind a long transaction.
CREATE FUNCTION rowcast.watch(publication name, watched regclass, full_identity boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $function$
DECLARE
    member record;
BEGIN
    IF full_identity THEN
        FOR member IN
            SELECT c.oid::regclass AS name, c.relreplident, i.indexrelid::regclass AS index
            FROM (SELECT relid FROM pg_partition_tree(watched) UNION SELECT watched) AS tree
            JOIN pg_class AS c ON c.oid = tree.relid
            LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisreplident
            WHERE c.relreplident <> 'f' AND c.relkind IN ('r', 'p')
        LOOP
            INSERT INTO rowcast.replica_identity VALUES (member.name, watched, member.relreplident, member.index)
            ON CONFLICT (table_oid) DO NOTHING;
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', member.name);
            RAISE NOTICE 'rowcast: set REPLICA IDENTITY FULL on % (it was %)', member.name,
                CASE member.relreplident WHEN 'd' THEN 'default' WHEN 'n' THEN 'nothing' ELSE 'an index' END;
        END LOOP;
    END IF;
    INSERT INTO rowcast.watched VALUES (publication, watched) ON CONFLICT DO NOTHING;
    IF EXISTS (
        SELECT FROM pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid
        WHERE p.pubname = publication AND r.prrelid = watched
    ) THEN
        RAISE NOTICE 'rowcast: % is watched already', watched;
    ELSE
        EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s', publication, watched);
        PERFORM pg_logical_emit_message(true, 'rowcast', 'tables'::text);
        RAISE NOTICE 'rowcast: % is watched now', watched;
    END IF;
END;
$function$;

CREATE FUNCTION rowcast.unwatch(publication name, watched regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $function$
DECLARE
    member record;
BEGIN
    IF EXISTS (
        SELECT FROM pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid
        WHERE p.pubname = publication AND r.prrelid = watched
    ) THEN
        EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', publication, watched);
        PERFORM pg_logical_emit_message(true, 'rowcast', 'tables'::text);
        RAISE NOTICE 'rowcast: % is not watched any more', watched;
    END IF;
    DELETE FROM rowcast.watched AS w WHERE w.publication_name = publication AND w.table_oid = watched;
    IF EXISTS (SELECT FROM rowcast.watched AS w WHERE w.table_oid = watched) THEN
        RETURN;  -- another publication still needs the full old rows
    END IF;
    FOR member IN
        SELECT r.table_oid AS name, c.oid AS existing, c.relreplident, r.previous_replica_identity AS previous,
            x.relname AS index
        FROM rowcast.replica_identity AS r
        LEFT JOIN pg_class AS c ON c.oid = r.table_oid
        LEFT JOIN pg_class AS x ON x.oid = r.previous_index
        WHERE r.watched_oid = watched
    LOOP
        IF member.existing IS NOT NULL AND member.relreplident = 'f' THEN
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY ', member.name) || CASE
                WHEN member.previous = 'n' THEN 'NOTHING'
                WHEN member.previous = 'i' AND member.index IS NOT NULL THEN format('USING INDEX %I', member.index)
                ELSE 'DEFAULT'
            END;
            RAISE NOTICE 'rowcast: put the replica identity of % back', member.name;
        END IF;
    END LOOP;
    DELETE FROM rowcast.replica_identity AS r WHERE r.watched_oid = watched;
END;
$function$;

-- What the role of `rowcast serve` needs. A later migration that adds tables replaces this function.
CREATE FUNCTION rowcast.grant_to(server_role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON rowcast.incarnation TO %s', server_role);
    EXECUTE format('GRANT SELECT ON rowcast.migration, rowcast.watched TO %s', server_role);
    RAISE NOTICE 'rowcast: granted to role % what the server needs', server_role;
    IF NOT (SELECT rolreplication OR rolsuper FROM pg_roles WHERE oid = server_role) THEN
        RAISE WARNING 'role % lacks the REPLICATION right that capture="wal" needs: ALTER ROLE % REPLICATION',
            server_role, server_role;
    END IF;
END;
$function$;

REVOKE EXECUTE ON FUNCTION
    rowcast.publish, rowcast.unpublish, rowcast.watch, rowcast.unwatch, rowcast.grant_to
FROM PUBLIC;
