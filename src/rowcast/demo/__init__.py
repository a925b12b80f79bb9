"""A small application on top of Rowcast, for people who see it for the first time: `rowcast demo`.

Sample data (`data`), the application's own API (`api`), made-up activity (`activity`) and one page (`page/`).
The one rule of this room: it uses Rowcast as any application would, through its public face only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from rowcast.demo.activity import Activity
from rowcast.demo.api import create_api, create_pool
from rowcast.demo.data import prepare
from rowcast.server import Rowcast

__all__ = ["REALTIME_PATH", "TABLES", "create_application", "prepare"]

# What the page watches, and what `rowcast demo` therefore publishes.
TABLES: Final = ("projects", "extraction_jobs", "extraction_results", "supplier_matches", "data_layers")
REALTIME_PATH: Final = "/realtime"


def create_application(dsn: str, realtime: Rowcast) -> FastAPI:
    """The demo as one ASGI application: the page at /, the API at /api, Rowcast at /realtime.

    Args:
        dsn: The database that `prepare()` has filled.
        realtime: Over the same database. It starts and stops with the application.
    """
    pool = create_pool(dsn)
    activity = Activity(pool)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[Mapping[str, Any]]:
        async with pool:
            activity.start()
            try:
                yield {}
            finally:
                await activity.stop()

    application = FastAPI(lifespan=realtime.wrap(lifespan), docs_url=None, redoc_url=None, openapi_url=None)
    application.mount("/api", create_api(pool, activity))
    application.mount(REALTIME_PATH, realtime)
    application.mount("/", _Page(directory=Path(__file__).parent / "page", html=True))
    return application


class _Page(StaticFiles):
    """The page's files, revalidated at each load: an upgrade must not meet yesterday's scripts in a cache."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
