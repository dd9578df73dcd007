"""An app with an I2P destination of its own, and another program that knows it as a local port.

The router is the SAM bridge of ``relay.testing`` here; yours is at 127.0.0.1:7656, which need not be said.
"""

import socket
import socketserver
import tempfile
import threading
from pathlib import Path

import relay
from relay.testing import SAMBridge

guests: list[str] = []


class Guestbook(socketserver.StreamRequestHandler):
    """The app: a service on loopback that knows nothing of I2P."""

    def handle(self) -> None:
        guests.append(self.rfile.readline().decode().strip())
        self.wfile.write(f"you are guest number {len(guests)}\n".encode())


with (
    tempfile.TemporaryDirectory() as folder,
    SAMBridge() as router,
    socketserver.ThreadingTCPServer(("127.0.0.1", 0), Guestbook) as app,
):
    threading.Thread(target=app.serve_forever).start()
    # Without keys= they lie in your data directory, under the session's name: the destination stays the same.
    keys = Path(folder, "guestbook.dat")
    with relay.TunnelServer("guestbook", app.server_address[1], router.sam, nconnect=100, keys=keys) as server:
        print("the guestbook is at", server.b32)

        # The program of another user, far away.
        with relay.TunnelClient("visitor", 0, server.b32, router.sam) as tunnel:
            with socket.create_connection(tunnel.address) as visitor:
                visitor.sendall(b"Ada\n")
                print(visitor.makefile().readline().strip())
            [guest] = {record.peer for record in (*server.connections(), *server.recent())}
            print("the record tells who came:", guest == tunnel.dest)
    app.shutdown()
