"""Publish a web server over I2P and fetch a page from there: the listener and the single stream that all is made of.

``relay expose 127.0.0.1:8000 --on i2p`` does the same from a shell. The router is the SAM bridge of ``relay.testing``
here; without ``sam=`` it is that of your own.
"""

import http.client
import http.server
import threading

import relay
from relay.testing import SAMBridge

with (
    SAMBridge() as router,
    http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web,
):
    threading.Thread(target=web.serve_forever).start()
    site = relay.listen(f"i2p:?sam={router.sam}&in_depth=2&out_depth=2")
    with relay.Tunnel(site, relay.tcp(*web.server_address), timeout=None, connect_timeout=90, linger=5):
        site.wait_published()  # until others can connect
        print("published", site.b32)

        client = http.client.HTTPConnection("website.i2p")
        client.sock = relay.connect(f"i2p://{site.b32}?sam={router.sam}", timeout=90)
        client.request("GET", "/")
        answer = client.getresponse()
        print(answer.status, len(answer.read()), "bytes")
        client.close()
    web.shutdown()
