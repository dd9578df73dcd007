"""A database behind two bastions: a chain of hops, one stream of it without a port, and a path for drivers.

The bastions are embedded servers of ``relay.testing`` here; yours are ``ssh://me@outer`` and ``ssh://me@inner``.
"""

import socket
import threading

import relay
from relay.testing import SSHServer


def database(listening):
    """Stands in for a server that greets."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"the database is ready\n")


with socket.create_server(("127.0.0.1", 0)) as listening, SSHServer() as outer, SSHServer() as inner:
    threading.Thread(target=database, args=(listening,), daemon=True).start()
    url = f"127.0.0.1:{listening.getsockname()[1]}"  # as the inner bastion sees it
    via = [outer.url, inner.url]

    with relay.connect(url, via=via, timeout=10) as stream:  # a socket, for drivers that take one
        print("a socket:", stream.makefile().readline().strip())

    with relay.local(url, via=via) as path:  # a private Unix socket, for drivers that take a path
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            print("a path:  ", client.makefile().readline().strip())

    try:
        relay.connect("127.0.0.1:1", via=[outer.url, "ssh://127.0.0.1:1"], timeout=10)
    except relay.ConnectError as error:  # an error says at which hop
        print("an error:", str(error).partition(" (")[0])
