"""The journal of recent transactions, the rows' versions, and which transactions a read has seen."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from rowcast.client.cache import ChangeEvent, Snapshot, parse_snapshot
from rowcast.client.cache.journal import Journal, News, Versions, tables_of
from rowcast.errors import ClientError


def change(key: int, op: str = "UPDATE", table: str = "projects", **values: object) -> ChangeEvent:
    new = None if op in {"DELETE", "TRUNCATE"} else {"id": key, **values}
    return ChangeEvent(table, op, {} if op == "TRUNCATE" else {"id": key}, new)  # type: ignore[arg-type]


def admit(versions: Versions, number: int, *changes: ChangeEvent) -> News:
    return versions.admit(f"e1-{number:04}", changes)


def entries(journal: Journal, *snapshots: str) -> tuple[list[int], bool]:
    replay = journal.unseen([parse_snapshot(text) for text in snapshots])
    return [entry.txid for entry in replay.entries], replay.complete


class TestSnapshot:
    @pytest.mark.parametrize(
        ("txid", "seen"),
        [(9, True), (10, False), (11, True), (14, False), (19, True), (20, False), (99, False)],
    )
    def test_it_sees_what_had_ended(self, txid: int, seen: bool) -> None:  # noqa: FBT001
        assert parse_snapshot("10:20:10,14").sees(txid) is seen

    def test_nothing_may_be_in_progress(self) -> None:
        assert parse_snapshot("10:10:") == Snapshot(10, 10, frozenset())

    @pytest.mark.parametrize("text", ["", "10", "10:20", "a:b:c", "10:20:x", "1:2:3:4"])
    def test_what_is_no_snapshot_is_refused(self, text: str) -> None:
        with pytest.raises(ClientError, match=r"is not the text of pg_current_snapshot"):
            parse_snapshot(text)

    @given(*[st.tuples(st.integers(1, 6), st.integers(0, 5), st.sets(st.integers(1, 11)))] * 2)
    def test_one_covers_another_if_it_sees_everything_that_the_other_sees(
        self, left: tuple[int, int, set[int]], right: tuple[int, int, set[int]]
    ) -> None:
        def snapshot(xmin: int, length: int, among: set[int]) -> Snapshot:
            return Snapshot(
                xmin, xmin + length, frozenset(txid for txid in among if xmin <= txid < xmin + length)
            )

        one, other = snapshot(*left), snapshot(*right)
        assert one.covers(other) == all(one.sees(txid) for txid in range(15) if other.sees(txid))


class TestJournal:
    def test_it_replays_what_came_after_a_mark(self) -> None:
        journal = Journal()
        for number in (1, 2):
            journal.append(number, tables_of([change(number)]))
        mark = journal.last_number
        journal.append(3, tables_of([change(3)]))
        replay = journal.since(mark)
        assert ([entry.txid for entry in replay.entries], replay.complete) == ([3], True)

    def test_it_replays_what_a_read_has_not_seen(self) -> None:
        journal = Journal()
        for txid in (5, 7, 6, 9):
            journal.append(txid, tables_of([change(txid)]))
        assert entries(journal, "6:8:6") == ([6, 9], True)
        assert entries(journal, "10:10:") == ([], True)

    def test_with_several_reads_it_replays_everything_from_the_first_that_one_has_not_seen(self) -> None:
        journal = Journal()
        for txid in (5, 6, 7):
            journal.append(txid, tables_of([change(txid)]))
        assert entries(journal, "8:8:", "6:6:") == ([6, 7], True)
        assert entries(journal, "8:8:", "9:9:") == ([], True)

    def test_over_its_bound_it_forgets_the_oldest_and_says_when_that_matters(self) -> None:
        journal = Journal(maximum_changes=3)
        journal.append(5, tables_of([change(1), change(2)]))
        journal.append(6, tables_of([change(3), change(4)]))
        assert not journal.since(0).complete
        assert journal.since(1).complete
        assert entries(journal, "5:5:") == ([6], False)
        assert entries(journal, "6:6:") == ([6], True)

    def test_a_transaction_over_the_bound_is_forgotten_whole(self) -> None:
        journal = Journal(maximum_changes=1)
        journal.append(5, tables_of([change(1), change(2)]))
        assert not journal.since(0).complete
        assert journal.since(0).entries == []

    def test_after_a_loss_reads_must_have_seen_what_came_before_the_next_transaction(self) -> None:
        journal = Journal()
        journal.append(5, tables_of([change(1)]))
        journal.lose()
        assert not journal.since(0).complete
        assert entries(journal, "6:6:") == ([], True)  # nothing is known of what was lost
        journal.append(9, tables_of([change(1)]))
        assert entries(journal, "7:7:") == ([9], False)
        assert entries(journal, "10:10:") == ([], True)

    def test_cleared_it_knows_nothing_of_what_was(self) -> None:
        journal = Journal()
        journal.append(5, tables_of([change(1)]))
        journal.clear()
        assert not journal.since(0).complete
        assert journal.since(journal.last_number).complete


class TestVersions:
    def test_a_transaction_that_comes_again_is_no_news(self) -> None:
        versions = Versions()
        again = [change(1), change(2)]
        assert admit(versions, 5, *again).changes == again
        assert admit(versions, 5, *again) == ([], set())

    def test_a_row_that_changes_twice_in_a_transaction_is_news_twice(self) -> None:
        both = [change(1, "INSERT"), change(1, name="x")]
        assert admit(Versions(), 5, *both).changes == both

    def test_an_older_change_is_no_news_for_its_row_but_for_others(self) -> None:
        versions = Versions()
        admit(versions, 5, change(1))
        assert admit(versions, 4, change(1), change(2)).changes == [change(2)]

    def test_a_deleted_row_is_not_revived_by_an_older_change(self) -> None:
        versions = Versions()
        admit(versions, 5, change(1, "DELETE"))
        assert admit(versions, 4, change(1, "INSERT")).changes == []
        assert admit(versions, 6, change(1, "INSERT")).changes == [change(1, "INSERT")]

    def test_nor_is_one_of_a_truncated_table(self) -> None:
        versions = Versions()
        admit(versions, 5, change(0, "TRUNCATE"))
        assert admit(versions, 4, change(1, "INSERT")).changes == []
        assert admit(versions, 6, change(1, "INSERT")).changes == [change(1, "INSERT")]

    def test_nor_one_that_has_got_another_key(self) -> None:
        versions = Versions()
        moved = ChangeEvent("projects", "UPDATE", {"id": 2}, {"id": 2}, {"id": 1})
        admit(versions, 5, moved)
        assert admit(versions, 4, change(1)).changes == []
        assert admit(versions, 5, moved).changes == []

    def test_what_is_older_than_everything_remembered_is_doubtful(self) -> None:
        versions = Versions(maximum_keys=2)
        for key in (1, 2, 3):
            admit(versions, 10 + key, change(key))
        assert admit(versions, 5, change(1)) == ([], {"projects"})
        assert admit(versions, 20, change(9)).changes == [change(9)]

    def test_cleared_everything_is_news(self) -> None:
        versions = Versions()
        admit(versions, 5, change(1))
        versions.clear()
        assert admit(versions, 1, change(1)).changes == [change(1)]
