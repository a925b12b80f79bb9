"""Every order in which a client, a network and a database can act, up to a small scope; see `exploration`.

Over three mutations and three foreign commits, faults multiply the states beyond what a test run has time for. So each
scenario here leaves something out, and together they have everything with everything: three mutations with three
commits; two with one under each fault; one with one under all faults of the stream. `make explore` adds those that leave
nothing out.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from tests.client.exploration import explore
from tests.client.naive import PatchAndIgnore, SnapshotRollback
from tests.client.scope import (
    CREATE,
    DELETE,
    INSERT,
    SET_A,
    SET_B,
    BrokenRuleError,
    Budget,
    Client,
    Scenario,
    Write,
)

INVALIDATE_A = Write("set", "a", "invalidate")
STREAM_ONLY_A = Write("set", "a", "stream-only")

NO_FAULT = Budget(refreshes=0, resyncs=0, disconnects=0, losses=0, refusals=1, timeouts=0)
REFRESH = Budget(refreshes=1, resyncs=0, disconnects=0, losses=0, refusals=1, timeouts=0)
RESYNC = Budget(refreshes=0, resyncs=1, disconnects=0, losses=0, refusals=1, timeouts=0)
DISCONNECT = Budget(refreshes=0, resyncs=0, disconnects=1, losses=0, refusals=1, timeouts=0)
LOST_ANSWER = Budget(refreshes=0, resyncs=0, disconnects=0, losses=1, refusals=1, timeouts=1)
STREAM_FAULTS = Budget(refreshes=1, resyncs=1, disconnects=1, losses=0, refusals=1, timeouts=0)
ALL_FAULTS = Budget()

SMALL = [
    Scenario((SET_A, SET_A, SET_A), (SET_A, SET_A, SET_A), NO_FAULT),
    Scenario((SET_A, SET_B, DELETE), (SET_B, DELETE, SET_A), NO_FAULT),
    Scenario((DELETE, INSERT), (SET_A, INSERT), NO_FAULT),
    Scenario((SET_A, SET_A), (SET_A,), REFRESH),
    Scenario((SET_A, SET_A), (SET_A,), RESYNC),
    Scenario((SET_A, SET_A), (SET_A,), DISCONNECT),
    Scenario((SET_A, SET_A), (SET_A,), LOST_ANSWER),
    Scenario((STREAM_ONLY_A, SET_A), (SET_A,), RESYNC),
    Scenario((INVALIDATE_A, SET_A), (SET_A,), RESYNC, servers_lag=False),
    Scenario((SET_A,), (SET_A,), STREAM_FAULTS),
    Scenario((SET_A,), (SET_B,), STREAM_FAULTS),
    Scenario((SET_A,), (DELETE,), STREAM_FAULTS),
    Scenario((DELETE,), (SET_A,), STREAM_FAULTS),
    Scenario((INSERT,), (INSERT,), STREAM_FAULTS),
    Scenario((CREATE,), (SET_A,), STREAM_FAULTS),
    Scenario((INVALIDATE_A,), (SET_A,), STREAM_FAULTS, servers_lag=False),
    Scenario((SET_A,), (), ALL_FAULTS),
    Scenario((CREATE,), (), ALL_FAULTS),
]
# All of it at once; see `exploration`.
FULL = [
    Scenario((SET_A, SET_A, SET_A), (SET_A, SET_A, SET_A), STREAM_FAULTS),
    Scenario((SET_A, SET_B, DELETE), (SET_B, DELETE, SET_A), STREAM_FAULTS),
    Scenario((CREATE, SET_A, INSERT), (SET_A, INSERT, DELETE), STREAM_FAULTS),
    Scenario((SET_A, SET_A), (SET_A,), ALL_FAULTS),
    Scenario((CREATE, SET_A), (DELETE,), ALL_FAULTS),
]
EVERYTHING = os.environ.get("ROWCAST_EXPLORE") == "full"


@pytest.mark.timeout(14400 if EVERYTHING else 600)
def test_in_every_state_no_value_goes_backwards_and_every_run_ends_with_the_databases_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenarios = SMALL + (FULL if EVERYTHING else [])
    total_states = total_steps = 0

    def tell(states: int, steps: int) -> None:
        with capsys.disabled():
            print(f"  … {states:,} states, {steps:,} steps", flush=True)

    for number, scenario in enumerate(scenarios, 1):
        states, steps = explore(scenario, progress=tell)
        total_states += states
        total_steps += steps
        if EVERYTHING:
            with capsys.disabled():
                print(f"\n{number} of {len(scenarios)}: {states:,} states, {steps:,} steps", flush=True)
    with capsys.disabled():
        print(f"\nexplored {len(scenarios)} scenarios: {total_states:,} states, {total_steps:,} steps")
    assert total_states > 50_000


@pytest.mark.parametrize("scenario", [SMALL[3], SMALL[6], SMALL[9], SMALL[14], SMALL[15]])
def test_a_client_as_a_table_takes_the_same_steps_as_one_that_is_worked_out_each_time(
    scenario: Scenario,
) -> None:
    assert explore(scenario) == explore(scenario, remember=False)


@pytest.mark.parametrize("strategy", [PatchAndIgnore, SnapshotRollback])
@pytest.mark.parametrize("commit", [SET_A, SET_B])
@pytest.mark.parametrize("remember", [True, False])
def test_the_same_exploration_finds_the_faults_of_naive_strategies(
    strategy: Callable[[], Client], commit: Write, *, remember: bool
) -> None:
    with pytest.raises(BrokenRuleError, match=r"older|the database has"):
        explore(Scenario((SET_A,), (commit,), NO_FAULT), strategy, remember=remember)


def test_a_window_that_ignores_ones_own_echo_loses_what_others_wrote_in_it() -> None:
    """Without a step of the clock there is nothing else to find: the window is open to the end."""
    with pytest.raises(BrokenRuleError, match=r"the end shows .*'m0', '0'.*the database has .*'m0', 'f0'"):
        explore(Scenario((SET_A,), (SET_B,), Budget(0, 0, 0, 0, 0, 0)), PatchAndIgnore)


def test_rolling_back_to_a_snapshot_undoes_what_others_wrote_since() -> None:
    with pytest.raises(BrokenRuleError, match=r"row 1: \('0', 'f0'\) became \('0', '0'\), which is older"):
        explore(Scenario((INSERT,), (SET_B,), NO_FAULT), SnapshotRollback)
