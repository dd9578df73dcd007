"""Reverse forwarding over a paramiko transport that a program has already, in the manner of X2Go.

The server is the embedded one of ``relay.testing`` here. Where there is no transport yet, ``relay.ssh_listen`` is less.
"""

import socket

import paramiko

from relay.compat.rforward import RevFwTunnel
from relay.testing import SSHServer

with socket.create_server(("127.0.0.1", 0)) as service, SSHServer() as server:
    client = paramiko.SSHClient()
    client.get_host_keys().add("[{}]:{}".format(*server.address[:2]), server.host_key.get_name(), server.host_key)
    client.connect(*server.address[:2], username=server.user, key_filename=str(server.keyfile))
    with client:
        host, port = service.getsockname()
        tunnel = RevFwTunnel(server_port=0, remote_host=host, remote_port=port, ssh_transport=client.get_transport())
        tunnel.start()  # returns once the server listens, or raises
        print("the server listens for us")

        # The server is this machine, so we may be the visitor.
        with socket.create_connection(("127.0.0.1", tunnel.server_port)) as visitor:
            here, _ = service.accept()
            with here:
                here.sendall(b"hello from here\n")
            print(visitor.makefile().readline().strip())

        tunnel.pause()  # closes the port and the open connections
        tunnel.resume()
        tunnel.stop_thread()
        print("the transport is", "active" if client.get_transport().is_active() else "gone")
