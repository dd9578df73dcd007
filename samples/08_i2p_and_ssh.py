"""I2P and SSH in one chain: an SSH server that is an I2P destination, and a SAM bridge that is behind an SSH server.

The router and the servers are those of ``relay.testing`` here. Yours are ``via=["i2p:", "ssh://me@….b32.i2p"]``, and
``via=["ssh://me@bastion", "i2p:?sam=127.0.0.1:7656"]``.
"""

import socket
import threading

import relay
from relay.addresses.destinations import b32_of
from relay.testing import SAMBridge, SSHServer


def greet(listening):
    """A service."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"hello\n")


with socket.create_server(("127.0.0.1", 0)) as listening, SSHServer() as server, SAMBridge() as bridge:
    threading.Thread(target=greet, args=(listening,), daemon=True).start()
    service, (host, port) = f"127.0.0.1:{listening.getsockname()[1]}", server.address[:2]
    router = f"i2p:?sam={bridge.sam}"

    with relay.TunnelServer("", port, bridge.sam, host=host) as published:  # sshd becomes a destination
        name = b32_of(published.dest)
        over_i2p = server.url.replace(f"{host}:{port}", name)
        with relay.connect(service, via=[router, over_i2p], timeout=60) as stream:
            print("through I2P to the SSH server:", stream.makefile().readline().strip())

    with relay.TunnelServer("", listening.getsockname()[1], bridge.sam) as published:  # the service becomes one
        name = b32_of(published.dest)
        with relay.connect(f"i2p://{name}", via=[server.url, router], timeout=60) as stream:
            print("through the SSH server to the router:", stream.makefile().readline().strip())
