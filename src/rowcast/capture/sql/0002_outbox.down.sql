DROP FUNCTION rowcast.confirm(text);
ALTER FUNCTION rowcast.confirm_wal(text) RENAME TO confirm;
GRANT EXECUTE ON FUNCTION rowcast.confirm(text) TO PUBLIC;
DROP FUNCTION rowcast.grant_to(regrole);
ALTER FUNCTION rowcast.grant_wal_to(regrole) RENAME TO grant_to;
DROP FUNCTION rowcast.unwatch(name, regclass);
ALTER FUNCTION rowcast.unwatch_wal(name, regclass) RENAME TO unwatch;
DROP FUNCTION rowcast.watch(name, regclass, boolean);
ALTER FUNCTION rowcast.watch_wal(name, regclass, boolean) RENAME TO watch;
DROP FUNCTION rowcast.watch_outbox(name, regclass);
DROP FUNCTION rowcast.outbox_uncover(regclass);
DROP FUNCTION rowcast.outbox_cover(regclass);
DROP FUNCTION rowcast.outbox_drop_triggers(regclass);
DROP FUNCTION rowcast.outbox_signature(oid);
DROP FUNCTION rowcast.outbox_note("char", oid, text);
-- Without CASCADE: a trigger that is still there stops this, and names its table.
DROP FUNCTION
    rowcast.outbox_insert(), rowcast.outbox_update(), rowcast.outbox_delete(), rowcast.outbox_truncate(),
    rowcast.outbox_statement();
DROP FUNCTION rowcast.outbox_ring();
DROP FUNCTION rowcast.outbox_check_size();
DROP FUNCTION rowcast.outbox_large_row(record);
DROP TABLE rowcast.outbox, rowcast.outbox_batch, rowcast.outbox_table, rowcast.outbox_state;
DROP SEQUENCE rowcast.outbox_statement, rowcast.outbox_overflow;
