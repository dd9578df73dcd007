"""Reach a service behind a bastion: one SSH connection, as many streams as you like, and it comes back by itself.

The bastion is the embedded server of ``relay.testing`` here; yours is ``ssh://me@bastion``.
"""

import http.client
import http.server
import threading

import relay
from relay.testing import SSHServer

with (
    SSHServer() as bastion,
    http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web,
):
    threading.Thread(target=web.serve_forever).start()
    service = f"127.0.0.1:{web.server_port}"

    # A port of this machine that leads there, for programs that know nothing of SSH.
    with relay.Tunnel(relay.listen(":0"), relay.target(service, via=[bastion.url]), timeout=None) as tunnel:
        for _ in range(3):
            client = http.client.HTTPConnection(*tunnel.address)
            client.request("GET", "/")
            client.getresponse().read()
            client.close()
        print(f"{tunnel.stats().accepted} clients, {bastion.logins} login")

    # A single stream needs no port.
    with relay.connect(service, via=[bastion.url], timeout=10) as connected:
        connected.sendall(b"GET / HTTP/1.0\r\n\r\n")
        print(connected.makefile("rb").readline().decode().strip())
    web.shutdown()
