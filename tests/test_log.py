"""The replay log answers completely or says that it cannot."""

from __future__ import annotations

from hypothesis import given, strategies as st

from rowcast.log import MemoryLog
from rowcast.model import Gap, Position, Progress, Transaction, make_position

EPOCH = "00000000000000aa"


def at(number: int) -> Position:
    return make_position(EPOCH, number)


def transaction(number: int, *, size: int = 100, xid: int | None = None) -> Transaction:
    return Transaction(at(number), number if xid is None else xid, 0, [], (), size)


def log(*, max_bytes: int = 10_000_000, max_seconds: float = 1000.0, first_xid: int = 0) -> MemoryLog:
    return MemoryLog(at(0), max_bytes=max_bytes, max_seconds=max_seconds, first_xid=first_xid)


def numbers(memory: MemoryLog, after: int) -> list[int] | None:
    entries = memory.after(at(after))
    return None if entries is None else [int(entry.position[-16:], 16) for entry in entries]


def test_everything_after_a_position_is_told_in_order() -> None:
    memory = log()
    for number in (10, 20, 30):
        memory.append(transaction(number), 0.0)
    assert numbers(memory, 0) == [10, 20, 30]
    assert numbers(memory, 10) == [20, 30]
    assert numbers(memory, 15) == [20, 30]
    assert numbers(memory, 30) == []
    assert memory.head == at(30)
    assert memory.floor == at(0)


def test_a_log_over_its_bytes_drops_the_oldest_and_says_so() -> None:
    memory = log(max_bytes=1500)
    for number in range(1, 6):
        memory.append(transaction(number), 0.0)
    assert memory.trim(0.0) == at(2)
    assert numbers(memory, 1) is None
    assert numbers(memory, 2) == [3, 4, 5]
    assert memory.newest_evicted_xid == 2


def test_an_old_entry_goes_by_its_age_and_the_newest_stays() -> None:
    memory = log(max_seconds=10)
    memory.append(transaction(1), 0.0)
    memory.append(transaction(2), 8.0)
    memory.append(transaction(3), 16.0)
    assert memory.trim(11.0) == at(1)
    assert memory.trim(1000.0) == at(2)
    assert numbers(memory, 2) == [3]


def test_a_transaction_larger_than_the_bound_is_kept_until_the_next_one() -> None:
    memory = log(max_bytes=1000)
    memory.append(transaction(1, size=1_000_000), 0.0)
    memory.trim(0.0)
    assert numbers(memory, 0) == [1]
    memory.append(transaction(2), 0.0)
    memory.trim(0.0)
    assert numbers(memory, 0) is None
    assert numbers(memory, 1) == [2]


def test_progress_moves_the_head_and_ages_the_floor_but_is_not_told() -> None:
    memory = log(max_seconds=10)
    memory.append(Progress(at(5)), 0.0)
    memory.append(Progress(at(6)), 0.5)
    memory.append(Progress(at(6)), 0.6)
    memory.append(Progress(at(4)), 0.7)
    assert memory.head == at(6)
    memory.append(Progress(at(7)), 5.0)
    assert numbers(memory, 0) == []
    assert memory.trim(12.0) == at(6)


def test_a_gap_is_told_where_it_happened() -> None:
    memory = log()
    memory.append(transaction(1), 0.0)
    gap = Gap(at(2), "transaction_too_large", frozenset({7}))
    memory.append(gap, 0.0)
    memory.append(transaction(3), 0.0)
    entries = memory.after(at(1))
    assert entries is not None
    assert list(entries) == [gap, transaction(3)]


def test_reset_forgets_everything_but_which_transactions_there_were() -> None:
    memory = log(first_xid=3)
    assert memory.newest_evicted_xid == 3
    memory.append(transaction(1, xid=9), 0.0)
    memory.append(Progress(at(2)), 0.0)
    memory.reset(at(50))
    assert memory.newest_evicted_xid == 9
    assert memory.floor == memory.head == at(50)
    assert memory.size_bytes == 0


def test_which_transactions_were_dropped_is_remembered() -> None:
    memory = log(max_bytes=500, first_xid=3)
    for number in range(10, 15):
        memory.append(transaction(number), 0.0)
    memory.append(Gap(at(15), "transaction_too_large", frozenset({7}), xid=15), 0.0)
    memory.append(transaction(16), 0.0)
    memory.trim(0.0)
    assert [memory.has_evicted(xid) for xid in (3, 4, 10, 14, 15, 16, 17)] == [
        *(None, False),  # from before its time, and from elsewhere
        *(True, True, True),
        *(False, False),
    ]
    memory.reset(at(50))
    assert memory.has_evicted(16)


def test_positions_of_another_epoch_are_not_answered_however_they_are_ordered() -> None:
    memory = log()
    memory.append(transaction(10), 0.0)
    for epoch in ("0" * 16, "f" * 16):
        assert memory.after(make_position(epoch, 10)) is None


def test_ids_of_another_cluster_say_nothing() -> None:
    memory = log(first_xid=1_000)
    memory.append(transaction(1, xid=2_000), 0.0)
    memory.reset(make_position("00000000000000bb", 5))
    assert memory.newest_evicted_xid == 0
    assert memory.has_evicted(2_000) is False


def test_what_was_dropped_is_remembered_in_bounded_memory() -> None:
    memory = log(max_bytes=1)
    for number in range(300):
        memory.append(transaction(number + 1, xid=number * 65_536 + 7), 0.0)
    memory.trim(0.0)
    assert memory.has_evicted(7) is None
    assert memory.has_evicted(100 * 65_536 + 7)
    assert memory.has_evicted(100 * 65_536 + 8) is False


def test_a_reader_is_not_disturbed_by_what_is_dropped_meanwhile() -> None:
    memory = log(max_bytes=3_000_000)
    for number in range(1, 10_001):
        memory.append(transaction(number), 0.0)
    reading = memory.after(at(5000))
    assert reading is not None
    first = next(reading)
    for number in range(10_001, 30_001):
        memory.append(transaction(number), 0.0)
        memory.trim(0.0)
    assert first.position == at(5001)
    assert [entry.position for entry in reading] == [at(number) for number in range(5002, 10_001)]
    assert memory.size_bytes <= 3_000_000


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2000), st.floats(0, 20)), max_size=60),
    st.integers(0, 200),
)
def test_what_is_told_is_always_complete(steps: list[tuple[int, int, float]], asked: int) -> None:
    memory = log(max_bytes=4000, max_seconds=30)
    told: list[int] = []
    number, now = 0, 0.0
    for advance, size, seconds in steps:
        number += advance
        now += seconds
        memory.append(transaction(number, size=size), now)
        told.append(number)
        memory.trim(now)
    answer = numbers(memory, asked)
    if answer is None:
        assert at(asked) < memory.floor
    else:
        assert answer == [each for each in told if each > asked]
