-- Capture without logical replication: triggers write every changed row into rowcast.outbox, and the server reads it.
--
-- One rule stands over all of it: a trigger may cost time, but it must never make the application's transaction fail.

-- `statement` orders a transaction's rows as they were changed: triggers of nested statements write before that of the
-- statement around them. `lsn` orders transactions, and the rows of a statement: it is taken after their locks, hence
-- after the commit records of all transactions whose rows they change, and each row is in the WAL before the next one.
CREATE TABLE rowcast.outbox (
    lsn pg_lsn NOT NULL DEFAULT pg_current_wal_insert_lsn(),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    statement bigint NOT NULL,
    table_oid oid NOT NULL,
    operation "char" NOT NULL,
    content text
)
-- Rows come and go all the time. What is dead has to be found soon, whatever the table's size.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0.5, toast_tuple_target = 8160,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_insert_threshold = -1);
COMMENT ON TABLE rowcast.outbox IS
    'I/D: a row, O/N: the old and new rows of an UPDATE, T: TRUNCATE, C: a mutation''s id, W: other tables are watched, '
    'G: rows of the table may be missing';
-- It lives for minutes: compressing it would cost the application more than the space is worth.
ALTER TABLE rowcast.outbox ALTER content SET STORAGE EXTERNAL;
CREATE INDEX outbox_xid ON rowcast.outbox (xid);

-- What the server has read: batch n holds the transactions that its snapshot sees and that of batch n - 1 does not.
CREATE TABLE rowcast.outbox_batch (
    number bigint PRIMARY KEY,
    snapshot pg_snapshot NOT NULL,
    row_count bigint NOT NULL,
    size_bytes bigint NOT NULL,
    changed oid[] NOT NULL  -- tables that are not what they were in the batch before
);

-- Tables with triggers; a partition has its own, for statements that name it. `signature` is that of outbox_signature()
-- as of the last batch in which it was looked at. Rows are kept while triggers are away, so that their return is noticed.
CREATE TABLE rowcast.outbox_table (
    table_oid regclass PRIMARY KEY,
    root_oid regclass NOT NULL,
    covered boolean NOT NULL,
    signature text NOT NULL
);

CREATE TABLE rowcast.outbox_state (
    incarnation text,
    origin text,  -- cluster, timeline and database that the batches are of
    overflow bigint NOT NULL DEFAULT 0,  -- value of outbox_overflow up to which nothing is missing
    limit_bytes bigint NOT NULL DEFAULT 4294967296
);
INSERT INTO rowcast.outbox_state DEFAULT VALUES;
-- Odd: the outbox has grown over its limit while nobody read it, and triggers write no more. A sequence, because its
-- value is seen at once by every transaction, however old its snapshot.
CREATE SEQUENCE rowcast.outbox_overflow MINVALUE 0 START 0;

-- A row's text, or NULL where PostgreSQL cannot write it in one piece (1 GB) or it is over what a server would keep.
CREATE FUNCTION rowcast.outbox_large_row(value record) RETURNS text
LANGUAGE plpgsql
STABLE
AS $function$
DECLARE
    written text;
BEGIN
    written := textin(record_out(value));
    RETURN CASE WHEN octet_length(written) <= 100000000 THEN written END;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END;
$function$;

-- Looks at the outbox's size now and then, so that it does not fill the disk when no server runs.
CREATE FUNCTION rowcast.outbox_check_size() RETURNS void
LANGUAGE plpgsql
AS $function$
DECLARE
    overflow bigint := coalesce(pg_sequence_last_value('rowcast.outbox_overflow'), 0);
BEGIN
    IF overflow % 2 = 0 AND pg_table_size('rowcast.outbox') > (SELECT max(limit_bytes) FROM rowcast.outbox_state) THEN
        PERFORM setval('rowcast.outbox_overflow', overflow + 1);
        RAISE WARNING 'rowcast.outbox has reached its limit and is not written any more: no Rowcast server reads it'
            USING HINT = 'Start the server, or remove the triggers: rowcast setup --down';
    END IF;
END;
$function$;

-- Who has written wakes the server. While it sleeps it holds the lock, and every transaction rings. Otherwise it is
-- awake, and cannot fall asleep before the transactions that got the lock have ended and been read: NOTIFY, for which
-- all commits queue up, is not needed. A full queue would fail the commit: the next look comes with the heartbeat.
CREATE FUNCTION rowcast.outbox_ring() RETURNS void
LANGUAGE plpgsql
AS $function$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(32210705887620204) AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('rowcast_outbox', '');
    END IF;
END;
$function$;

-- What follows runs with every statement of the application. In a transaction's first, PL/pgSQL prepares each expression
-- anew, and takes a snapshot for it unless the function is STABLE; RETURN NEW, which is null here, is none.

-- Before every statement: its number, where outbox_insert() and the others find it after nested statements have had
-- theirs. It runs as whoever writes, which takes less time than changing roles: it may do no more than count.
CREATE SEQUENCE rowcast.outbox_statement CACHE 1000;
GRANT USAGE ON SEQUENCE rowcast.outbox_statement TO PUBLIC;
CREATE FUNCTION rowcast.outbox_statement() RETURNS trigger
LANGUAGE plpgsql
STABLE
AS $function$
DECLARE
    number text := pg_catalog.set_config(
        pg_catalog.concat('rowcast.statement_', pg_catalog.pg_trigger_depth()),
        pg_catalog.concat(pg_catalog.nextval('rowcast.outbox_statement')),
        true
    );
BEGIN
    RETURN NEW;
END;
$function$;

-- Four functions that write. Columns are not named: a row is written as the record's text, so that no change of the
-- table can make them fail. r.* is the record even where a column is named r, a variable is meant even where a column
-- has its name, and record_out() is no cast, which the table's owner could define. The settings are those of
-- rowcast.values. There is no number while the outbox is over its limit, nor any row then; and one of its own, if
-- somebody has disabled the trigger before statements.
DO $migration$
DECLARE
    row_text CONSTANT text := 'CASE WHEN pg_column_size(r.*) > 1000000 THEN rowcast.outbox_large_row(r.*) '
        'ELSE textin(record_out(r.*)) END';
    selected record;
BEGIN
    FOR selected IN VALUES
        ('outbox_insert', format('SELECT number, TG_RELID, ''I'', %s FROM new_rows AS r WHERE number IS NOT NULL', row_text)),
        ('outbox_delete', format('SELECT number, TG_RELID, ''D'', %s FROM old_rows AS r WHERE number IS NOT NULL', row_text)),
        ('outbox_update', format('SELECT number, TG_RELID, ''O'', %s FROM old_rows AS r WHERE number IS NOT NULL UNION ALL '
            'SELECT number, TG_RELID, ''N'', %1$s FROM new_rows AS r WHERE number IS NOT NULL', row_text)),
        ('outbox_truncate', 'SELECT number, TG_RELID, ''T'', NULL WHERE number IS NOT NULL')
    LOOP
        EXECUTE format($format$
            CREATE FUNCTION rowcast.%I() RETURNS trigger
            LANGUAGE plpgsql
            SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp
            SET datestyle = 'ISO' SET timezone = 'UTC' SET intervalstyle = 'postgres' SET extra_float_digits = 1
            SET bytea_output = 'hex' SET lc_monetary = 'C'
            AS $function$
            #variable_conflict use_variable
            DECLARE
                number bigint := CASE WHEN pg_sequence_last_value('rowcast.outbox_overflow') %% 2 = 1 THEN NULL ELSE
                    coalesce(
                        nullif(current_setting(concat('rowcast.statement_', pg_trigger_depth()), true), '')::bigint,
                        nextval('rowcast.outbox_statement')
                    )
                END;
                row_count bigint;
            BEGIN
                INSERT INTO rowcast.outbox (statement, table_oid, operation, content)
                %s;
                GET DIAGNOSTICS row_count = ROW_COUNT;
                -- The size about once in a thousand rows, however they come: 631 is 1021 times the golden ratio.
                IF row_count > 0 AND (
                    NOT pg_try_advisory_xact_lock_shared(32210705887620204) OR number * 631 %% 1021 < row_count
                ) THEN
                    PERFORM rowcast.outbox_ring();
                    IF number * 631 %% 1021 < row_count THEN
                        PERFORM rowcast.outbox_check_size();
                    END IF;
                END IF;
                RETURN NEW;
            END;
            $function$
        $format$, selected.column1, selected.column2);
    END LOOP;
END;
$migration$;

CREATE FUNCTION rowcast.outbox_note(operation "char", table_oid oid, content text) RETURNS void
LANGUAGE plpgsql
AS $function$
BEGIN
    INSERT INTO rowcast.outbox (statement, table_oid, operation, content)
    VALUES (nextval('rowcast.outbox_statement'), table_oid, operation, content);
    PERFORM rowcast.outbox_ring();
END;
$function$;

-- Changes whenever the rows of a table may be written in another form than before, or some may not have been written:
-- with its names and columns, its triggers, what it is a partition of. Row versions (xmin) tell what was changed and
-- changed back.
CREATE FUNCTION rowcast.outbox_signature(relation oid) RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT md5(concat_ws('/', c.relnamespace, c.relname,
        (SELECT string_agg(concat_ws(' ', attnum, attname, xmin), ',' ORDER BY attnum)
            FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0),
        (SELECT string_agg(concat_ws(' ', oid, xmin), ',' ORDER BY oid)
            FROM pg_trigger WHERE tgrelid = c.oid AND tgname LIKE 'rowcast\_%'),
        (SELECT string_agg(concat_ws(' ', inhparent, xmin), ',' ORDER BY inhparent)
            FROM pg_inherits WHERE inhrelid = c.oid),
        (SELECT string_agg(concat_ws(' ', indexrelid, indimmediate), ',') FROM pg_index
            WHERE indrelid = c.oid AND indisprimary)))
    FROM pg_class AS c WHERE c.oid = relation;
$function$;

CREATE FUNCTION rowcast.outbox_drop_triggers(watched regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    trigger_name name;
BEGIN
    FOR trigger_name IN
        SELECT tgname FROM pg_trigger WHERE tgrelid = watched AND tgname LIKE 'rowcast\_%' AND NOT tgisinternal
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', trigger_name, watched);
    END LOOP;
    UPDATE rowcast.outbox_table SET covered = false WHERE table_oid = watched;
END;
$function$;

-- Gives triggers to a watched table and its partitions where they are missing, and takes them from partitions that
-- left. Statement triggers with transition tables are not inherited: the server calls this for partitions that came
-- later. CREATE TRIGGER waits for the table's writers and others queue behind it: the caller sets lock_timeout.
CREATE FUNCTION rowcast.outbox_cover(watched regclass) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    member regclass;
    added integer := 0;
    is_known CONSTANT boolean := EXISTS (SELECT FROM rowcast.outbox_table AS t WHERE t.table_oid = watched);
    may_lack_rows boolean := false;
BEGIN
    FOR member IN
        SELECT t.table_oid FROM rowcast.outbox_table AS t
        WHERE t.root_oid = watched AND t.table_oid <> watched AND t.covered
            AND NOT EXISTS (SELECT FROM pg_partition_tree(watched) WHERE relid = t.table_oid)
    LOOP
        PERFORM rowcast.outbox_drop_triggers(member);
        may_lack_rows := true;
    END LOOP;
    FOR member IN
        SELECT c.oid
        FROM (SELECT relid FROM pg_partition_tree(watched) UNION SELECT watched) AS tree
        JOIN pg_class AS c ON c.oid = tree.relid
        WHERE c.relkind IN ('r', 'p') AND (
            NOT EXISTS (SELECT FROM rowcast.outbox_table AS t WHERE t.table_oid = c.oid AND t.covered)
            OR (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid AND tgname LIKE 'rowcast\_%') < 5
        )
    LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER rowcast_statement BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
            'FOR EACH STATEMENT EXECUTE FUNCTION rowcast.outbox_statement()', member);
        EXECUTE format('CREATE OR REPLACE TRIGGER rowcast_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows '
            'FOR EACH STATEMENT EXECUTE FUNCTION rowcast.outbox_insert()', member);
        EXECUTE format('CREATE OR REPLACE TRIGGER rowcast_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows '
            'NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION rowcast.outbox_update()', member);
        EXECUTE format('CREATE OR REPLACE TRIGGER rowcast_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS old_rows '
            'FOR EACH STATEMENT EXECUTE FUNCTION rowcast.outbox_delete()', member);
        EXECUTE format('CREATE OR REPLACE TRIGGER rowcast_truncate AFTER TRUNCATE ON %s '
            'FOR EACH STATEMENT EXECUTE FUNCTION rowcast.outbox_truncate()', member);
        -- Also for what runs with session_replication_role = replica, a restored dump for example.
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER rowcast_statement, ENABLE ALWAYS TRIGGER rowcast_insert, '
            'ENABLE ALWAYS TRIGGER rowcast_update, ENABLE ALWAYS TRIGGER rowcast_delete, '
            'ENABLE ALWAYS TRIGGER rowcast_truncate', member);
        -- A partition that has never held a row has none that was not seen.
        may_lack_rows := may_lack_rows OR (is_known AND (member = watched OR pg_relation_size(member) > 0));
        INSERT INTO rowcast.outbox_table VALUES (member, watched, true, rowcast.outbox_signature(member))
        ON CONFLICT (table_oid) DO UPDATE
            SET root_oid = excluded.root_oid, covered = true, signature = excluded.signature;
        added := added + 1;
    END LOOP;
    IF added > 0 OR may_lack_rows THEN
        PERFORM rowcast.outbox_note('W', 0, NULL);
    END IF;
    IF may_lack_rows THEN
        PERFORM rowcast.outbox_note('G', watched, NULL);
    END IF;
    RETURN added;
END;
$function$;

-- Nobody watches the table through the outbox any more.
CREATE FUNCTION rowcast.outbox_uncover(watched regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $function$
BEGIN
    IF EXISTS (SELECT FROM rowcast.outbox_table WHERE root_oid = watched AND covered) THEN
        PERFORM rowcast.outbox_drop_triggers(table_oid) FROM rowcast.outbox_table WHERE root_oid = watched;
        PERFORM rowcast.outbox_note('W', 0, NULL);
        RAISE NOTICE 'rowcast: removed the outbox triggers of %', watched;
    END IF;
END;
$function$;

CREATE FUNCTION rowcast.watch_outbox(publication name, watched regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $function$
BEGIN
    IF EXISTS (
        SELECT FROM pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid
        WHERE p.pubname = publication AND r.prrelid = watched
    ) THEN
        PERFORM rowcast.unwatch_wal(publication, watched);
    END IF;
    INSERT INTO rowcast.watched VALUES (publication, watched) ON CONFLICT DO NOTHING;
    IF rowcast.outbox_cover(watched) > 0 THEN
        RAISE NOTICE 'rowcast: % is watched now, by triggers that write into rowcast.outbox', watched;
    ELSE
        RAISE NOTICE 'rowcast: % is watched already', watched;
    END IF;
END;
$function$;

-- What the first migration made goes on under names of its own, with the outbox's part around it.
ALTER FUNCTION rowcast.watch(name, regclass, boolean) RENAME TO watch_wal;
CREATE FUNCTION rowcast.watch(publication name, watched regclass, full_identity boolean) RETURNS void
LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM rowcast.watch_wal(publication, watched, full_identity);
    PERFORM rowcast.outbox_uncover(watched);
END;
$function$;

ALTER FUNCTION rowcast.unwatch(name, regclass) RENAME TO unwatch_wal;
CREATE FUNCTION rowcast.unwatch(publication name, watched regclass) RETURNS void
LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM rowcast.unwatch_wal(publication, watched);
    IF NOT EXISTS (SELECT FROM rowcast.watched AS w WHERE w.table_oid = unwatch.watched) THEN
        PERFORM rowcast.outbox_uncover(watched);
    END IF;
END;
$function$;

ALTER FUNCTION rowcast.grant_to(regrole) RENAME TO grant_wal_to;
CREATE FUNCTION rowcast.grant_to(server_role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format('GRANT SELECT, DELETE ON rowcast.outbox TO %s', server_role);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON rowcast.outbox_batch TO %s', server_role);
    EXECUTE format('GRANT SELECT, UPDATE ON rowcast.outbox_state, rowcast.outbox_table TO %s', server_role);
    EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE rowcast.outbox_overflow TO %s', server_role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION rowcast.outbox_cover(regclass) TO %s', server_role);
    PERFORM rowcast.grant_wal_to(server_role);
END;
$function$;

ALTER FUNCTION rowcast.confirm(text) RENAME TO confirm_wal;
CREATE FUNCTION rowcast.confirm(mutation_id text) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM rowcast.confirm_wal(mutation_id);
    IF EXISTS (SELECT FROM rowcast.outbox_table WHERE covered) THEN
        PERFORM rowcast.outbox_note('C', 0, mutation_id);
    END IF;
END;
$function$;
COMMENT ON FUNCTION rowcast.confirm(text) IS
    'Says to subscribed clients, with this transaction''s commit, that the mutation of that id is in the data now';

REVOKE EXECUTE ON FUNCTION
    rowcast.outbox_large_row, rowcast.outbox_check_size, rowcast.outbox_statement,
    rowcast.outbox_insert, rowcast.outbox_update, rowcast.outbox_delete, rowcast.outbox_truncate, rowcast.outbox_note,
    rowcast.outbox_drop_triggers, rowcast.outbox_cover, rowcast.outbox_uncover, rowcast.watch_outbox, rowcast.watch,
    rowcast.unwatch, rowcast.grant_to, rowcast.confirm_wal
FROM PUBLIC;
