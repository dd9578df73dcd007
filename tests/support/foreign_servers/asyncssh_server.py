"""An SSH server of asyncssh for the tests: it only forwards TCP, both ways.

Arguments: the folder with host_key, authorized_keys and password; the user; the port of 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncssh

FOLDER, USER, PORT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


class Server(asyncssh.SSHServer):
    """One client's connection."""

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, (FOLDER / "password").read_text())

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True


async def main() -> None:
    """Serve until the process is killed."""
    keys = {"server_host_keys": [FOLDER / "host_key"], "authorized_client_keys": str(FOLDER / "authorized_keys")}
    server = await asyncssh.create_server(Server, "127.0.0.1", PORT, **keys)
    print("Server listening on", *server.get_addresses(), file=sys.stderr, flush=True)
    await server.wait_closed()


asyncio.run(main())
