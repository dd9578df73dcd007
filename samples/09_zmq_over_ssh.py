"""ZeroMQ over SSH: a socket connects to an address that only a server sees, as with ``zmq.ssh``.

The server is the embedded one of ``relay.testing`` here; yours is ``"me@server"``, or an alias of your configuration.
"""

import zmq

from relay.compat import zmqssh as ssh
from relay.testing import SSHServer

with zmq.Context() as context, SSHServer() as server, context.socket(zmq.REP) as service:
    port = service.bind_to_random_port("tcp://127.0.0.1")

    with context.socket(zmq.REQ) as client:
        # No port is opened here: the socket connects over a private path, which no other user can open.
        with ssh.tunnel_connection(client, f"tcp://127.0.0.1:{port}", server.url, paramiko=True):
            client.send(b"how are you?")
            print("asked:   ", service.recv().decode())
            service.send(b"very well")
            print("answered:", client.recv().decode())
