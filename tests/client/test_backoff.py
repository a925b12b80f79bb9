"""Waiting between attempts: the ladder, the jitter, the limit."""

from __future__ import annotations

import random

from hypothesis import given, strategies as st

from rowcast.client.backoff import STEPS_SECONDS, Backoff


def test_the_ladder_is_1_2_4_8_16_30_and_stays_there() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next_delay() for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]


@given(st.integers(0, 2**32))
def test_every_delay_is_drawn_from_the_whole_of_its_step(seed: int) -> None:
    backoff = Backoff(random.Random(seed).random)
    for step in (*STEPS_SECONDS, 30.0):
        delay = backoff.next_delay()
        assert delay is not None
        assert 0 <= delay < step


def test_a_thousand_clients_spread_over_the_step() -> None:
    source = random.Random(7)
    delays = sorted(Backoff(source.random).next_delay() or 0.0 for _ in range(1000))
    assert delays[100] < 0.15
    assert delays[900] > 0.85


def test_at_the_limit_there_is_no_next_attempt_until_reset() -> None:
    backoff = Backoff(lambda: 0.5, limit=2)
    assert [backoff.next_delay() for _ in range(3)] == [0.5, 1.0, None]
    assert backoff.exhausted
    backoff.reset()
    assert (backoff.exhausted, backoff.next_delay()) == (False, 0.5)
