"""What the fault proxy does to a link is what the fault is named for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rowcast.testing.proxy import FaultProxy


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server, FaultProxy(server.sockets[0].getsockname()[1]) as started:
        yield started


async def _link(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"first")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"first"
    return reader, writer


async def test_bytes_and_closings_pass_both_ways(proxy: FaultProxy) -> None:
    reader, writer = await _link(proxy)
    writer.write(b"x" * 1_000_000)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(-1), 5) == b"x" * 1_000_000
    writer.close()
    assert proxy.accepted == 1


async def test_cut_resets_every_link_and_new_ones_work(proxy: FaultProxy) -> None:
    reader, writer = await _link(proxy)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), 5)
    writer.close()
    _, again = await _link(proxy)
    again.close()


async def test_a_stalled_link_delivers_everything_after_resume(proxy: FaultProxy) -> None:
    reader, writer = await _link(proxy)
    proxy.stall()
    writer.write(b"later")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    proxy.resume()
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"later"
    writer.close()


async def test_a_stalled_link_can_be_cut(proxy: FaultProxy) -> None:
    reader, writer = await _link(proxy)
    proxy.stall()
    writer.write(b"lost")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), 5)
    writer.close()


async def test_a_half_open_link_swallows_for_good_while_new_links_heal(proxy: FaultProxy) -> None:
    reader, writer = await _link(proxy)
    proxy.half_open()
    writer.write(b"lost")
    proxy.resume()
    writer.write(b"lost too")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    _, healed = await _link(proxy)
    healed.close()
    writer.close()


async def test_refuse_closes_the_port_until_resume(proxy: FaultProxy) -> None:
    reader, writer = await _link(proxy)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"still")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"still"
    writer.close()
    proxy.resume()
    _, again = await _link(proxy)
    again.close()


async def test_drop_after_ends_a_link_in_the_middle_of_a_frame(proxy: FaultProxy) -> None:
    reader, writer = await _link(proxy)
    proxy.drop_after(3)
    writer.write(b"frame")
    assert await asyncio.wait_for(reader.read(-1), 5) == b"fra"
    writer.close()


async def test_a_target_that_is_away_ends_the_link(proxy: FaultProxy) -> None:
    async with FaultProxy(1) as away:
        reader, writer = await asyncio.open_connection(away.host, away.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        writer.close()
