"""The header `Rowcast-Mutation`, as it reaches the application's functions."""

from __future__ import annotations

import asyncio
from typing import Any

import fastapi
import httpx
import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from rowcast.contrib.asgi import MutationMiddleware
from rowcast.contrib.context import MAX_ID_CHARACTERS, current_mutation
from rowcast.contrib.django import MutationMiddleware as DjangoMutationMiddleware


@pytest.fixture
def app() -> fastapi.FastAPI:
    made = fastapi.FastAPI()
    made.add_middleware(MutationMiddleware)

    async def asynchronous() -> dict[str, str | None]:
        await asyncio.sleep(0.01)
        return {"mutation": current_mutation()}

    def blocking() -> dict[str, str | None]:
        return {"mutation": current_mutation()}

    made.get("/async")(asynchronous)
    made.get("/sync")(blocking)
    return made


@pytest.mark.parametrize("path", ["/async", "/sync"])
async def test_fastapi_functions_know_the_mutation_of_their_own_request(
    app: fastapi.FastAPI, path: str
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        answers = await asyncio.gather(
            *(client.get(path, headers={"Rowcast-Mutation": f"m-{number}"}) for number in range(20)),
            client.get(path),
        )
    assert [answer.json()["mutation"] for answer in answers] == [
        *(f"m-{number}" for number in range(20)),
        None,
    ]
    assert current_mutation() is None


@pytest.mark.parametrize("header", ["", "  ", "x" * (MAX_ID_CHARACTERS + 1)])
async def test_a_header_that_is_no_id_counts_as_none(app: fastapi.FastAPI, header: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        answer = await client.get("/async", headers={"Rowcast-Mutation": header})
    assert answer.json() == {"mutation": None}


async def test_what_is_not_http_passes_through() -> None:
    passed: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        return {}

    await MutationMiddleware(inner)({"type": "lifespan"}, nothing, nothing)
    assert passed == ["lifespan"]


class Request:
    def __init__(self, mutation: str | None) -> None:
        self.headers = {} if mutation is None else {"Rowcast-Mutation": mutation}


async def test_django_views_know_the_mutation_of_their_own_request() -> None:
    def view(request: Request) -> str | None:
        return current_mutation()

    async def async_view(request: Request) -> str | None:
        await asyncio.sleep(0)
        return current_mutation()

    middleware = DjangoMutationMiddleware(view)
    assert [middleware(Request("m-1")), middleware(Request(None))] == ["m-1", None]
    assert not iscoroutinefunction(middleware)
    markcoroutinefunction(async_view)
    async_middleware = DjangoMutationMiddleware(async_view)
    assert iscoroutinefunction(async_middleware)
    first, second = await asyncio.gather(async_middleware(Request("m-1")), async_middleware(Request("m-2")))
    assert f"{first} {second}" == "m-1 m-2"


def test_the_package_offers_what_is_needed_most_and_nothing_that_is_not_there() -> None:
    import rowcast.client.client
    import rowcast.contrib.confirm

    assert rowcast.connect is rowcast.client.client.connect
    assert rowcast.confirm is rowcast.contrib.confirm.confirm
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rowcast.nothing
