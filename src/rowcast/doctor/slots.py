"""Checks of replication slots: that ours can be, lives, and fills no disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rowcast.doctor.report import Database, Problem, check, error, quote_literal, size, warning

_IDLE_TIMEOUT_VERSION: Final = 180000  # the first that can end a slot for idleness


@check("a replication slot is free or ours", wal=True)
def replication_slots(database: Database) -> Iterator[Problem]:
    slots = [str(row["slot_name"]) for row in database.rows("SELECT slot_name FROM pg_replication_slots")]
    limit = int(database.setting("max_replication_slots"))
    if database.settings.slot not in slots and len(slots) >= limit:
        yield error(
            f"all {limit} replication slots are taken ({', '.join(slots) or 'the limit is zero'}), none is left for "
            f"{database.settings.slot}",
            f"ALTER SYSTEM SET max_replication_slots = {limit + 5};\n-- then restart PostgreSQL",
        )


@check("the slot is in good health", wal=True)
def slot(database: Database) -> Iterator[Problem]:
    name = database.settings.slot
    for slot in database.rows("SELECT * FROM pg_replication_slots WHERE slot_name = %s", name):
        drop = f"SELECT pg_drop_replication_slot({quote_literal(name)});"
        if slot["plugin"] != "pgoutput" or slot["database"] != database.direct.info.dbname:
            yield error(
                f"the slot {name} belongs to something else (database {slot['database']}, plugin {slot['plugin']})",
                "export ROWCAST_SLOT=rowcast_2  # any name that is not taken",
            )
        elif slot["wal_status"] == "lost":
            yield warning(
                f"the slot {name} was invalidated by PostgreSQL, the WAL that it needs is gone; the next start makes "
                "a new one and every client takes a new snapshot",
                drop,
            )
        elif slot["wal_status"] == "unreserved":
            yield error(
                f"the slot {name} is about to be invalidated: it lags further behind than max_slot_wal_keep_size",
                "rowcast serve  # so that the slot is read; or raise max_slot_wal_keep_size",
            )


@check("no slot retains much WAL", wal=True)
def retained_wal(database: Database) -> Iterator[Problem]:
    bound = database.settings.max_slot_wal_bytes
    if database.value("SELECT pg_is_in_recovery()"):
        return
    for slot in database.rows(
        "SELECT slot_name, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS bytes "
        "FROM pg_replication_slots WHERE restart_lsn IS NOT NULL AND NOT temporary ORDER BY slot_name"
    ):
        name, retained = str(slot["slot_name"]), int(slot["bytes"])
        drop = f"SELECT pg_drop_replication_slot({quote_literal(name)});"
        if name == database.settings.slot:
            if retained > bound // 2:
                yield (error if retained > bound else warning)(
                    f"the slot {name} retains {size(retained)} of WAL; above {size(bound)} the server lets it go",
                    "rowcast serve  # so that the slot is read",
                )
        elif not slot["active"]:
            yield warning(
                f"nobody reads the slot {name}; it retains {size(retained)} of WAL, and more with every write",
                f"{drop}  -- unless its reader comes back",
            )
        elif retained > bound:
            yield warning(
                f"the slot {name} retains {size(retained)} of WAL",
                "SELECT pid, application_name, replay_lsn FROM pg_stat_replication;  -- find out why its reader lags",
            )


@check("max_slot_wal_keep_size keeps slots from filling the disk", wal=True)
def max_slot_wal_keep_size(database: Database) -> Iterator[Problem]:
    megabytes = int(database.value("SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"))
    bound = database.settings.max_slot_wal_bytes
    fix = (
        f"ALTER SYSTEM SET max_slot_wal_keep_size = '{max(1, 2 * bound >> 20)}MB';  -- twice max_slot_wal_bytes\n"
        "SELECT pg_reload_conf();"
    )
    if megabytes < 0:
        yield warning("max_slot_wal_keep_size is unlimited: a slot that nobody reads fills the disk", fix)
    elif megabytes << 20 < bound:
        yield warning(
            f"max_slot_wal_keep_size ({size(megabytes << 20)}) is under max_slot_wal_bytes ({size(bound)}): "
            "PostgreSQL gives the slot up before Rowcast would",
            fix,
        )


@check("slots outlive a server that is down", wal=True)
def idle_replication_slot_timeout(database: Database) -> Iterator[Problem]:
    if database.direct.info.server_version < _IDLE_TIMEOUT_VERSION:
        return
    timeout = database.setting("idle_replication_slot_timeout")
    if timeout != "0":
        yield warning(
            f"idle_replication_slot_timeout is {timeout}: when Rowcast is down for longer, its slot is lost and every "
            "client takes a new snapshot",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0;\nSELECT pg_reload_conf();",
        )
