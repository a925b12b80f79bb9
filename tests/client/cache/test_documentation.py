"""docs/query-cache.md, executed: every Python block runs, and the reference leaves nothing out."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from rowcast.client.cache import (
    FetchCancelledError,
    InfiniteQueryResult,
    MutationFilters,
    MutationState,
    QueryClient,
    QueryFilters,
    QueryResult,
    ResolvedMutationOptions,
    ResolvedQueryOptions,
)

PAGE = Path(__file__).parents[3] / "docs" / "query-cache.md"


@dataclasses.dataclass
class Response:
    """What `api` answers, as httpx would."""

    content: Any
    status_code: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def json(self) -> Any:
        return self.content

    def raise_for_status(self) -> None:
        assert self.status_code < 400


class Api:
    """The API that the page talks to."""

    async def get(
        self, path: str, *, params: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Response:
        if path == "/events":
            return Response([f"event {params}"])
        if path == "/tasks":
            unchanged = bool(headers) and headers == {"If-None-Match": '"v1"'}
            return Response(
                ["task"], 304 if unchanged else 200, {"ETag": '"v1"', "Rowcast-Snapshot": "800:800:"}
            )
        return Response([{"id": 1, "name": "Atlas"}, {"id": 2, "name": "Babel"}])

    async def put(self, path: str, *, json: Any) -> Response:
        return Response(json)


def chapters() -> dict[str, list[tuple[int, str]]]:
    """The Python blocks of each chapter, with the lines they begin at."""
    found: dict[str, list[tuple[int, str]]] = {}
    title = ""
    text = PAGE.read_text(encoding="utf-8")
    for match in re.finditer(
        r"^## (?P<title>[^\n]+)$|^```python\n(?P<code>.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        if match["title"]:
            title = match["title"]
        else:
            line = text.count("\n", 0, match.start("code"))
            found.setdefault(title, []).append((line, match["code"]))
    return found


@pytest.mark.parametrize("chapter", chapters())
async def test_the_blocks_of_a_chapter_run(chapter: str) -> None:
    async with QueryClient() as client:
        names: dict[str, Any] = {"client": client, "api": Api()}
        exec("from rowcast.client.cache import QueryClient, QueryObserver", names)
        if chapter == "Mutations":
            client.set_query_data(["projects", 5], [{"id": 1, "name": "Atlas"}])
        if chapter != "Ask, and show":  # which defines what the others load
            exec(chapters()["Ask, and show"][0][1].split("\n\n\n")[0], names)
        for line, code in chapters()[chapter]:
            compiled = compile("\n" * line + code, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(compiled, names)
            if isinstance(result, Awaitable):
                await result


def test_there_are_blocks_in_every_chapter_that_shows_how() -> None:
    assert len(chapters()) == 11


@pytest.mark.parametrize(
    "names",
    [
        [field.name for field in dataclasses.fields(ResolvedQueryOptions) if field.name != "hash"],
        [field.name for field in dataclasses.fields(ResolvedMutationOptions)],
        [*QueryResult.__struct_fields__, *InfiniteQueryResult.__struct_fields__],
        [name for name, _ in inspect.getmembers(QueryResult, lambda member: isinstance(member, property))],
        MutationState.__struct_fields__,
        [*QueryFilters.__annotations__, *MutationFilters.__annotations__],
        [
            name
            for name, _ in inspect.getmembers(QueryClient, inspect.isfunction)
            if not name.startswith(("_", "resolve_"))
        ],
        [FetchCancelledError.__name__],
    ],
    ids=["query options", "mutation options", "result", "flags", "mutation", "filters", "client", "errors"],
)
def test_the_reference_names_all(names: list[str]) -> None:
    reference = PAGE.read_text(encoding="utf-8").split("## Reference")[1]
    named = set(re.findall(r"`(\w+)", reference))
    assert sorted(set(names) - named) == []


def test_the_reference_tells_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = {field.name: field.default for field in dataclasses.fields(ResolvedQueryOptions)}
    told = {name: ast.literal_eval(value) for name, value in rows if name in defaults and name != "meta"}
    assert len(told) >= 12
    assert told == {name: defaults[name] for name in told}
