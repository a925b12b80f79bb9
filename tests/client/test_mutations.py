"""Mutations: shown at once, sent, retried with the same id, confirmed by the stream or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
import psycopg
import pytest
from tests.client.scripted import ScriptedServer, position, until

from rowcast.client.client import Client, connect
from rowcast.client.connection import Connection
from rowcast.client.events import Event, MutationTold
from rowcast.client.live import Change, LiveRows
from rowcast.client.mutations import Answer, RejectedError
from rowcast.client.rows import Row
from rowcast.errors import ClientError
from rowcast.server import Addresses


class Api:
    """The application's server, as a sender sees it: remembers ids, and does what the test tells it to."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.received: list[str] = []
        self.done: set[str] = set()
        self.errors: list[Exception] = []
        self.lose_answers = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.confirms = True

    def renames(self, key: int, name: str) -> Callable[[str], Coroutine[None, None, str]]:
        """A sender that sets a project's name."""

        async def send(mutation: str) -> str:
            return await self._update(mutation, key, name)

        return send

    async def _update(self, mutation: str, key: int, name: str) -> str:
        self.received.append(mutation)
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        if mutation not in self.done:
            self.done.add(mutation)
            confirms = (mutation,) if self.confirms else ()
            await self.server.commit(("UPDATE", "projects", {"id": key, "name": name}), confirms=confirms)
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionResetError("the connection broke off")
        return "done"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rowcast.client.backoff.STEPS_SECONDS", (0.02,))


@pytest.fixture
async def api(scripted: ScriptedServer) -> Api:
    await scripted.commit(
        ("INSERT", "projects", {"id": 1, "name": "old"}), ("INSERT", "projects", {"id": 2, "name": "two"})
    )
    return Api(scripted)


def client(scripted: ScriptedServer, **options: Any) -> Client:
    return connect(scripted.url, confirm_seconds=options.pop("confirm_seconds", 0.1), **options)


def names(projects: LiveRows[Row]) -> list[object]:
    return [row["name"] for row in projects]


class TestLifecycle:
    async def test_it_is_shown_at_once_and_confirmed_by_the_stream(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async with client(scripted) as rc, rc.live("projects") as projects:
            told: list[Change[Row]] = []
            projects.on_change(told.append)
            api.gate.clear()
            states: list[str] = []
            mutation = projects.mutate({"id": 1, "name": "new"}, send=api.renames(1, "new"))
            mutation.on_state(states.append)
            assert names(projects) == ["new", "two"]
            assert [each.id for each in projects.pending(1)] == [mutation.id]
            assert [each.id for each in rc.mutations] == [mutation.id]
            api.gate.set()
            assert await mutation == "done"
            assert states == ["sent", "confirmed"]
            assert projects.pending(1) == rc.mutations == []
            assert [change.cause for change in told] == ["overlay"], (
                "the confirmation changes nothing on the screen"
            )

    async def test_a_refusal_takes_back_this_one_and_nobody_elses(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async with client(scripted) as rc, rc.live("projects") as projects:
            api.gate.clear()
            api.errors = [RejectedError("the name is taken")]
            refused = projects.mutate(projects.updating(1, name="mine"), send=api.renames(1, "mine"))
            await until(lambda: len(api.received) == 1)
            await scripted.commit(("UPDATE", "projects", {"id": 1, "name": "theirs"}))
            await scripted.commit(("UPDATE", "projects", {"id": 2, "name": "theirs too"}))
            await until(lambda: names(projects) == ["mine", "theirs too"])
            api.gate.set()
            with pytest.raises(RejectedError, match="the name is taken"):
                await refused
            assert names(projects) == ["theirs", "theirs too"]
            assert (refused.state, str(refused.error)) == ("rejected", "the name is taken")

    async def test_new_rows_get_the_key_that_the_server_makes(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async def send(mutation: str) -> Answer:
            await scripted.commit(("INSERT", "projects", {"id": 77, "name": "three"}), confirms=(mutation,))
            return Answer(77, keys={"made up": 77})

        async with client(scripted) as rc, rc.live("projects", order_by="name") as projects:
            told: list[list[Any]] = []
            projects.on_change(lambda _: told.append(names(projects)))
            mutation = projects.mutate(projects.inserting({"name": "three"}, key="made up"), send=send)
            assert projects.get("made up") == {"name": "three"}
            answer = await mutation
            assert answer is not None
            assert answer.value == 77
            assert projects.get(77) == projects.get("made up") == {"id": 77, "name": "three"}
            assert all(each.count("three") == 1 for each in told), "never two of them, never none"

    async def test_a_deleted_row_is_hidden_until_the_stream_takes_it(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async def send(mutation: str) -> None:
            await scripted.commit(("DELETE", "projects", {"id": 1}), confirms=(mutation,))

        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.deleting(1), send=send)
            assert names(projects) == ["two"]
            await mutation
            assert names(projects) == ["two"]

    async def test_one_mutation_over_two_channels(self, scripted: ScriptedServer, api: Api) -> None:
        await scripted.commit(("INSERT", "jobs", {"id": 5, "name": "job"}))

        async def send(mutation: str) -> None:
            await scripted.commit(
                ("UPDATE", "projects", {"id": 1, "name": "new"}),
                ("DELETE", "jobs", {"id": 5}),
                confirms=(mutation,),
            )

        async with client(scripted) as rc, rc.live("projects") as projects, rc.live("jobs") as jobs:
            mutation = rc.mutate([projects.updating(1, name="new"), jobs.deleting(5)], send=send)
            assert (names(projects), len(jobs)) == (["new", "two"], 0)
            await mutation
            assert (names(projects), len(jobs)) == (["new", "two"], 0)

    async def test_whoever_wants_only_the_answer_need_not_wait_for_the_stream(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.confirms = False
        async with client(scripted, confirm_seconds=60) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            assert await mutation.answered() == "done"
            assert mutation.state == "sent"

    async def test_an_answer_that_names_its_transaction_confirms_without_the_servers_help(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async def send(mutation: str) -> Answer:
            at = await scripted.commit(("UPDATE", "projects", {"id": 1, "name": "new"}))
            return Answer(txid=int(at[-8:], 16))

        async with client(scripted) as rc, rc.live("projects") as projects:
            await projects.mutate(projects.updating(1, name="new"), send=send)

    async def test_a_patch_without_its_key_says_what_is_missing(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async with client(scripted) as rc, rc.live("projects") as projects:
            with pytest.raises(ClientError, match="the key column id is missing"):
                projects.mutate({"name": "new"}, send=api.renames(1, "new"))
            assert rc.mutations == []


class TestTrouble:
    async def test_a_lost_answer_is_asked_for_with_the_same_id_and_done_once(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        """The commit went through, the answer did not arrive, and the confirm did not either."""
        api.lose_answers = 2
        api.confirms = False
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            assert await mutation == "done"
        assert api.received == [mutation.id] * 3
        assert len(scripted.history) == 2

    async def test_a_confirm_before_the_lost_answer_is_enough(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.lose_answers = 100
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            assert await mutation is None
            assert mutation.state == "confirmed"
        assert len(api.received) == 1

    async def test_what_rowcasts_server_knows_to_be_done_is_not_sent_again(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        """The answer was lost, and so was the confirm."""
        api.confirms = False
        api.lose_answers = 1
        scripted.committed = api.done
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            assert await mutation is None
            assert mutation.state == "confirmed"
            assert names(projects) == ["new", "two"]
        assert api.received == [mutation.id]

    @pytest.mark.parametrize("status", [500, 503, 429, 408])
    async def test_http_statuses_that_mean_try_again(
        self, scripted: ScriptedServer, api: Api, status: int
    ) -> None:
        request = httpx.Request("POST", "http://api")
        api.errors = [
            httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))
        ]
        async with client(scripted) as rc, rc.live("projects") as projects:
            await projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
        assert len(api.received) == 2

    @pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
    async def test_http_statuses_that_mean_no(self, scripted: ScriptedServer, api: Api, status: int) -> None:
        request = httpx.Request("POST", "http://api")
        api.errors = [
            httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))
        ]
        async with client(scripted) as rc, rc.live("projects") as projects:
            with pytest.raises(RejectedError) as refused:
                await projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            assert isinstance(refused.value.cause, httpx.HTTPStatusError)
            assert names(projects) == ["old", "two"]
        assert len(api.received) == 1

    async def test_a_server_that_is_away_for_long_leaves_it_unconfirmed_and_shown(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.errors = [httpx.ConnectError("refused") for _ in range(3)]
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(
                projects.updating(1, name="new"), send=api.renames(1, "new"), attempts=3
            )
            await until(lambda: len(api.received) == 3 and mutation.state == "unconfirmed")
            await asyncio.sleep(0.25)  # two rounds of asking: nothing more is sent
            assert len(api.received) == 3
            assert names(projects) == ["new", "two"]
            mutation.retry()
            assert await mutation == "done"
        assert set(api.received) == {mutation.id}

    async def test_a_refused_mutation_can_be_sent_again_with_the_same_id(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.errors = [RejectedError("not yet")]
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            with pytest.raises(RejectedError):
                await mutation
            mutation.retry()
            assert names(projects) == ["new", "two"]
            assert mutation.error is None
            assert await mutation == "done"
            with pytest.raises(ClientError):
                mutation.retry()
        assert api.received == [mutation.id] * 2

    async def test_edits_of_one_row_are_sent_one_after_the_other(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.gate.clear()
        async with client(scripted, confirm_seconds=5) as rc, rc.live("projects") as projects:
            edits = [
                projects.mutate(projects.updating(1, name=name), send=api.renames(1, name))
                for name in ("a", "b", "c")
            ]
            other = projects.mutate(projects.updating(2, name="z"), send=api.renames(2, "z"))
            assert names(projects) == ["c", "z"]
            await until(lambda: len(api.received) == 2)
            assert api.received == [edits[0].id, other.id]
            api.gate.set()
            await asyncio.gather(*edits, other)
            assert api.received == [edits[0].id, other.id, edits[1].id, edits[2].id]
            assert names(projects) == ["c", "z"]

    async def test_a_status_that_can_be_asked_spares_sending_again(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.lose_answers, api.confirms = 1, False
        asked: list[str] = []

        async def status(mutation: str) -> Any:
            asked.append(mutation)
            if len(asked) == 1:
                raise ConnectionResetError
            return "committed" if mutation in api.done else "unknown"

        async with client(scripted, status=status) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            assert await mutation is None
        assert len(api.received) == 1
        assert asked == [mutation.id] * 2

    async def test_a_server_that_never_saw_it_gets_it_again(self, scripted: ScriptedServer, api: Api) -> None:
        api.errors = [ConnectionResetError()]

        async def status(mutation: str) -> Any:
            return "unknown"

        async with client(scripted, status=status) as rc, rc.live("projects") as projects:
            assert (
                await projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new")) == "done"
            )

    async def test_an_application_that_never_confirms_is_believed_after_a_while(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.confirms = False
        async with client(scripted, confirm_seconds=0.05) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            states: list[str] = []
            mutation.on_state(states.append)
            assert await mutation == "done"
            assert states == ["sent", "unconfirmed", "confirmed"]
        assert len(api.received) == 1, "what was answered is not sent again"

    async def test_what_is_queued_waits_for_the_connection(self, scripted: ScriptedServer, api: Api) -> None:
        async with client(scripted) as rc, rc.live("projects") as projects:
            await scripted.stop()
            await until(lambda: projects.state == "stale")
            mutation = projects.mutate(
                projects.updating(1, name="new"), send=api.renames(1, "new"), queued=True
            )
            assert names(projects) == ["new", "two"]
            await asyncio.sleep(0.15)
            assert (api.received, mutation.state) == ([], "pending")
            await scripted.start()
            assert await mutation == "done"

    async def test_closing_the_client_ends_the_wait(self, scripted: ScriptedServer, api: Api) -> None:
        api.gate.clear()
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            await until(lambda: len(api.received) == 1)
        with pytest.raises(ClientError, match="was closed before"):
            await mutation

    async def test_closing_the_client_before_the_sending_began_leaves_nothing_behind(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        """Not even a warning of a coroutine that nobody awaited, which would fail the test."""
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
        with pytest.raises(ClientError, match="was closed before"):
            await mutation
        assert not api.received

    async def test_cancelling_the_wait_does_not_cancel_the_mutation(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        api.gate.clear()
        async with client(scripted) as rc, rc.live("projects") as projects:
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(mutation, 0.01)
            api.gate.set()
            assert await mutation == "done"

    async def test_the_confirm_of_a_mutation_that_a_resync_swallowed_is_found_in_the_new_snapshot(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async with client(scripted, confirm_seconds=0.05) as rc, rc.live("projects") as projects:
            shown: list[list[object]] = []
            projects.on_change(lambda _: shown.append(names(projects)))
            (peer,) = scripted.clients
            watching, peer.watching = peer.watching, {}
            api.confirms = False
            mutation = projects.mutate(projects.updating(1, name="new"), send=api.renames(1, "new"))
            await mutation.answered()
            peer.watching = watching
            await peer.send({
                "type": "resync", "id": "1", "shape": 1, "channel": "projects", "reason": "slow_client",
                "after_ms": 1, "position": position(scripted.head),
            })  # fmt: skip
            await mutation
            assert all(each[0] == "new" for each in shown)
            assert names(projects) == ["new", "two"]


class TestStrategies:
    async def test_stream_only_shows_nothing_before_the_stream(
        self, scripted: ScriptedServer, api: Api
    ) -> None:
        async with client(scripted) as rc, rc.live("projects") as projects:
            api.gate.clear()
            mutation = projects.mutate(
                projects.updating(1, name="new"),
                send=api.renames(1, "new"),
                strategy="stream-only",
            )
            assert names(projects) == ["old", "two"]
            assert len(projects.pending(1)) == 1
            api.gate.set()
            await mutation
            assert names(projects) == ["new", "two"]

    async def test_invalidate_reads_anew_after_the_answer(self, scripted: ScriptedServer, api: Api) -> None:
        async def send(mutation: str) -> None:
            scripted.rows["projects"][1]["name"] = "new"  # by a server that neither streams nor confirms it

        async with client(scripted) as rc, rc.live("projects") as projects:
            shown: list[list[object]] = []
            projects.on_change(lambda _: shown.append(names(projects)))
            await projects.mutate(projects.updating(1, name="new"), send=send, strategy="invalidate")
            assert names(projects) == ["new", "two"]
            assert shown == [["new", "two"]]


async def test_through_a_real_database(addresses: Addresses, connection: psycopg.Connection) -> None:
    """The application's transaction confirms with one line; also where no visible row has changed."""
    connection.execute("INSERT INTO projects VALUES (1, 'old', 5)")

    async def rename(mutation: str) -> None:
        with connection.transaction():
            connection.execute("UPDATE projects SET name = 'new' WHERE id = 1")
            connection.execute("SELECT rowcast.confirm(%s)", (mutation,))

    async def nothing(mutation: str) -> None:
        connection.execute("SELECT rowcast.confirm(%s)", (mutation,))

    async with connect(addresses.http) as rc, rc.live("projects") as projects:
        shown: list[object] = []
        projects.on_change(lambda _: shown.append(names(projects)))
        mutation = projects.mutate(projects.updating(1, name="new"), send=rename)
        await mutation
        assert mutation.state == "confirmed"
        await projects.mutate(projects.updating(1, name="new"), send=nothing)
        assert shown == [["new"]]


async def test_rowcasts_server_can_be_asked_what_was_confirmed(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    told: asyncio.Queue[MutationTold] = asyncio.Queue()

    def keep(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, MutationTold):
                told.put_nowait(event)

    async def ask(mutation: str) -> MutationTold:
        assert link.ask_mutation(mutation)
        return await told.get()

    async with Connection(addresses.http, sink=keep) as link:
        assert not link.ask_mutation("m1")  # there is no link yet
        await until(lambda: link.state.status == "connected")
        connection.execute("SELECT rowcast.confirm('m1')")
        while (answer := await ask("m1")).state == "unknown":
            pass  # not in the stream yet
        assert answer.position is not None
        assert await ask("m2") == MutationTold("m2", "unknown")
