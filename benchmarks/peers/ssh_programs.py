"""Programs that relay over SSH: with asyncssh, with sshtunnel, and with relay.spawn beside a busy thread.

Started as ``python -m benchmarks.peers.ssh_programs asyncssh|sshtunnel PORT TARGET_PORT SERVER_PORT USER KEY
KNOWN_HOSTS``, ``… spawn PORT TARGET_PORT URL CORE`` or ``… stacked INNER_PORT RELAY… -- SSH…``. Each package as its own
documentation shows it.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time

import relay

from .programs import HOST, stay_busy


def with_asyncssh(port: int, target: int, server_port: int, user: str, key: str, known_hosts: str) -> None:
    """A local forward of asyncssh."""
    import asyncssh

    async def forward() -> None:
        async with asyncssh.connect(
            HOST, server_port, username=user, client_keys=[key], known_hosts=known_hosts, config=None, agent_path=None
        ) as connection:
            listener = await connection.forward_local_port(HOST, port, HOST, target)
            await listener.wait_closed()

    asyncio.run(forward())


def with_sshtunnel(port: int, target: int, server_port: int, user: str, key: str) -> None:
    """A local forward of sshtunnel, which checks no host key unless it is given one."""
    from sshtunnel import SSHTunnelForwarder

    with SSHTunnelForwarder(
        (HOST, server_port),
        ssh_username=user,
        ssh_pkey=key,
        ssh_config_file=None,
        allow_agent=False,
        host_pkey_directories=[],
        local_bind_address=(HOST, port),
        remote_bind_address=(HOST, target),
    ):
        threading.Event().wait()


def with_spawn(port: int, target: int, url: str, core: int) -> None:
    """A relay in a child process, beside a busy thread."""
    with relay.spawn(f"{HOST}:{port}", f"{HOST}:{target}", via=[url]) as tunnel:
        stay_busy(core)
        tunnel.join()


def stacked(inner: int, words: list[str]) -> None:
    """A relay in front of ``ssh -L``, which listens first."""
    mark = words.index("--")
    with subprocess.Popen(words[mark + 1 :]):
        while True:
            try:
                socket.create_connection((HOST, inner)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        subprocess.run(words[:mark], check=True)


def main() -> None:
    if sys.argv[1] == "stacked":
        return stacked(int(sys.argv[2]), sys.argv[3:])
    kind, port, target, *words = sys.argv[1:]
    if kind == "asyncssh":
        server_port, user, key, known_hosts = words
        with_asyncssh(int(port), int(target), int(server_port), user, key, known_hosts)
    elif kind == "sshtunnel":
        server_port, user, key, _ = words
        with_sshtunnel(int(port), int(target), int(server_port), user, key)
    else:
        url, core = words
        with_spawn(int(port), int(target), url, int(core))


if __name__ == "__main__":
    main()
