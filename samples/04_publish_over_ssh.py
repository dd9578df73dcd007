"""Publish a service of this machine on another one: an SSH server listens there, and what connects comes here.

The server is the embedded one of ``relay.testing`` here; yours is ``me@server``.
"""

import socket

import relay
from relay.testing import SSHServer

with socket.create_server(("127.0.0.1", 0)) as service, SSHServer() as server:
    listener = relay.ssh_listen(server.url)  # at 127.0.0.1 of the server, at a port that it chooses
    with relay.Tunnel(listener, relay.tcp(*service.getsockname()), timeout=None) as tunnel:
        host, port = tunnel.address
        print(f"published at {host} of the server")

        with socket.create_connection((host, port)) as visitor:  # the server is this machine, so we may be the visitor
            here, _ = service.accept()
            with here:
                here.sendall(b"hello from here\n")
            print(visitor.makefile("rb").readline().decode().strip())
