"""A local forward of asyncssh over two servers, as its documentation shows it.

Started as ``python -m benchmarks.peers.chain_programs PORT TARGET_PORT`` and, for each server,
``PORT USER KEY KNOWN_HOSTS``.
"""

from __future__ import annotations

import asyncio
import sys

HOST = "127.0.0.1"


async def forward(port: int, target: int, first: list[str], second: list[str]) -> None:
    import asyncssh

    def options(user: str, key: str, known_hosts: str) -> dict[str, object]:
        own = {"username": user, "client_keys": [key], "known_hosts": known_hosts}
        return {**own, "config": None, "agent_path": None}

    async with asyncssh.connect(HOST, int(first[0]), **options(*first[1:])) as tunnel:
        async with asyncssh.connect(HOST, int(second[0]), tunnel=tunnel, **options(*second[1:])) as connection:
            listener = await connection.forward_local_port(HOST, port, HOST, target)
            await listener.wait_closed()


if __name__ == "__main__":
    asyncio.run(forward(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:7], sys.argv[7:11]))
