"""The guides' Python blocks, run; and the client's reference, held against what there is."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import httpx
import pytest

import rowcast
import rowcast.client.sync
from rowcast import client
from rowcast.capture.install import install
from rowcast.client.adapters.textual import LiveTable
from rowcast.demo import REALTIME_PATH, TABLES, create_application, prepare
from rowcast.server import Rowcast
from rowcast.testing.server import running

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
async def address(dsn: str) -> AsyncIterator[str]:
    """The demo's server: the application's API at /api, Rowcast at /realtime."""
    await prepare(dsn)
    install(dsn, TABLES)
    realtime = Rowcast(database_url=dsn, port=0)
    async with running(
        realtime, app=create_application(dsn, realtime), mounted_at=REALTIME_PATH
    ) as addresses:
        yield addresses.http.rstrip("/").removesuffix(REALTIME_PATH)


def chapters(page: str) -> dict[str, list[tuple[int, str]]]:
    """The Python blocks of each chapter, with the lines that they begin at; what is before the first has no name."""
    found: dict[str, list[tuple[int, str]]] = {"": []}
    title = ""
    text = (DOCS / page).read_text(encoding="utf-8")
    for match in re.finditer(
        r"^## (?P<title>[^\n]+)$|^```python\n(?P<code>.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        if match["title"]:
            title = match["title"]
            found[title] = []
        else:
            found[title].append((text.count("\n", 0, match.start("code")), match["code"]))
    return found


async def run(page: str, chapter: str, names: dict[str, Any]) -> None:
    for line, code in chapters(page)[chapter]:
        compiled = compile("\n" * line + code, str(DOCS / page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(compiled, names)
        if isinstance(result, Awaitable):
            await result


@pytest.mark.parametrize(
    ("page", "chapter"),
    [
        (page, chapter)
        for page in ("updating-a-screen.md", "client.md")
        for chapter, blocks in chapters(page).items()
        if chapter and blocks
    ],
)
async def test_the_blocks_of_a_chapter_run(page: str, chapter: str, address: str) -> None:
    url = f"{address}{REALTIME_PATH}"
    drawn: list[Any] = []
    async with httpx.AsyncClient(base_url=f"{address}/api") as api, rowcast.connect(url) as rc:
        names: dict[str, Any] = {"rowcast": rowcast, "rc": rc, "api": api, "URL": url, "draw": drawn.append}
        await run(page, "", names)
        await run(page, chapter, names)
    assert drawn or page == "client.md"


@pytest.mark.parametrize("number", [0, 1])
async def test_the_first_programs_of_the_readme_run(
    number: int, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    program = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[number]
    there = address.removeprefix("http://") + REALTIME_PATH
    names: dict[str, Any] = {}
    exec(program.replace("127.0.0.1:8000", there).replace("asyncio.run(main())", ""), names)
    printed = ""
    running_program = asyncio.ensure_future(names["main"]())
    while not printed and not running_program.done():
        await asyncio.wait([running_program], timeout=0.05)
        printed = capsys.readouterr().out
    running_program.cancel()
    await asyncio.wait([running_program])
    assert running_program.cancelled()
    assert "'name': " in printed


def test_there_is_an_example_of_each_way_of_updating_a_screen() -> None:
    assert [
        title[0] for title, blocks in chapters("updating-a-screen.md").items() if title and blocks
    ] == list("12345")


def public(kind: Any) -> set[str]:
    """What a class offers: methods, properties, fields."""
    return {
        name
        for name in [*vars(kind), *getattr(kind, "__annotations__", ()), *vars(kind).get("__slots__", ())]
        if not name.startswith("_")
    }


# What LiveTable overrides of Textual's.
_TOOLKITS = {"on_mount", "can_focus", "can_focus_children"}

# Public for the neighbouring module, which calls them; not for applications.
_BETWEEN_MODULES = {
    client.Client: {"release", "refresh"},
    client.LiveRows: {"became_ready", "fail", "absorb", "tell", "tell_state"},
    client.MutationHandle: {"has_answer", "begin_again", "answer", "change", "fail"},
    client.Mutation: {"committed", "txid", "position", "confirmed_at", "waits_for", "deadline"},
}


def reference() -> set[str]:
    """Every word of the reference that is set as code."""
    text = re.sub(
        r"^```.*?^```$", "", (DOCS / "client.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", code)}


def test_the_reference_names_all_that_the_client_offers() -> None:
    assert set(client.__all__) - reference() == set()
    assert {name for name in vars(client.sync) if name.startswith("Sync")} - {"SyncSender"} <= reference()


@pytest.mark.parametrize(
    "kind",
    [
        *(client.Client, client.ConnectionState, client.LiveRows, client.Change, client.Handlers),
        *(client.MutationHandle, client.Mutation, client.Answer, client.RejectedError, client.ServerError),
        LiveTable,
    ],
)
def test_the_reference_names_every_member(kind: Any) -> None:
    assert public(kind) - _BETWEEN_MODULES.get(kind, set()) - _TOOLKITS - reference() == set()


@pytest.mark.parametrize(
    "function", [client.connect, client.Client.live, client.Client.mutate, client.LiveRows.mutate]
)
def test_the_reference_tells_every_argument_and_its_default(function: Any) -> None:
    text = (DOCS / "client.md").read_text(encoding="utf-8")
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        row = re.search(rf"^\|[^|]*`{name}`[^|]*\| ([^|]*?) ?\|", text, re.MULTILINE)
        assert row is not None, name
        if row[1].startswith("`") and name != "type":
            assert ast.literal_eval(row[1].strip("`")) == parameter.default, name


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!\w+:)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")
    ):
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{target}#{anchor}"
