"""A proxy whose clients name their targets: some go over SSH, others directly, and the rest is refused.

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
    rules = [f"127.0.0.0/8={bastion.url}", "*.example=direct"]  # the first that matches wins; the rest is refused
    with relay.Tunnel(relay.listen("socks5://127.0.0.1:0"), relay.dynamic(rules=rules), timeout=None) as tunnel:
        proxy = "socks5://{}:{}".format(*tunnel.address)

        # Our own client of it; a browser, or curl --proxy socks5h://…, does the same.
        client = http.client.HTTPConnection("127.0.0.1", web.server_port)
        client.sock = relay.connect(f"127.0.0.1:{web.server_port}", via=[proxy], timeout=10)
        client.request("GET", "/")
        print(f"the page: {client.getresponse().status}, over {bastion.logins} SSH login")
        client.close()

        try:
            relay.connect("elsewhere.invalid:80", via=[proxy], timeout=10)
        except relay.ConnectError as error:
            print(f"elsewhere: {error.reason}")
    web.shutdown()
