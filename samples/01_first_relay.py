"""A first relay: what comes in on a port of this machine goes to a web server, and the answer comes back."""

import http.client
import http.server
import threading

import relay

with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web:
    threading.Thread(target=web.serve_forever).start()
    with relay.Tunnel(relay.listen(":0"), relay.tcp(*web.server_address), timeout=None) as tunnel:
        client = http.client.HTTPConnection(*tunnel.address)
        client.request("GET", "/")
        answer = client.getresponse()
        print(tunnel, answer.status, len(answer.read()), "bytes")
        client.close()
    web.shutdown()
