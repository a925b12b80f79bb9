"""The comparison in Python: `websockets.broadcast`, as its documentation says, on uvloop.

usage: python -m bench.broadcast_server BYTES

Speaks as send_floor.c does: prints its port, and for each line COUNT on standard input broadcasts COUNT messages.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve


async def main(frame_bytes: int) -> None:
    clients: set[ServerConnection] = set()

    async def keep(client: ServerConnection) -> None:
        await client.recv()
        await client.send('{"type":"subscribed"}')
        clients.add(client)
        await client.wait_closed()
        clients.discard(client)

    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    async with serve(keep, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        while order := await orders.readline():
            for _ in range(int(order)):
                head = f'{{"op":"INSERT","sent_us":{time.time_ns() // 1000},"x":"'
                broadcast(clients, head.ljust(frame_bytes - 6, "x") + '"}')
                await asyncio.sleep(0)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
