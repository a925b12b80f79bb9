"""A client on a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.client.cache.support import Backend

from rowcast.client.cache import ManualClock, QueryClient


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def client(clock: ManualClock) -> AsyncIterator[QueryClient]:
    async with QueryClient(clock=clock) as client:
        yield client


@pytest.fixture
def backend(clock: ManualClock) -> Backend:
    return Backend(clock)
