"""A page and a file of 5 MiB, through a server's tunnel and a client's, byte for byte."""

import functools
import http.server
import threading
import urllib.request

import pytest
from helpers import BLOCK, WAIT, Thread, ended, receive_exactly

PAGE = b"<!doctype html><title>relay</title><p>over I2P"
FILE = BLOCK * 5


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Ends a connection when its client has everything: i2pd drops what waits in it for a reader when the end comes."""

    received = threading.Semaphore(0)  # released when a client has everything

    def finish(self):
        super().finish()
        assert self.received.acquire(timeout=3 * WAIT), "no client has got everything"

    def log_message(self, *_):
        pass


@pytest.fixture
def web_server(tmp_path):
    """A real one, which has a page and a file."""
    (tmp_path / "index.html").write_bytes(PAGE)
    (tmp_path / "file").write_bytes(FILE)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def fetch(address, path):
    with urllib.request.urlopen("http://{}:{}/{}".format(*address, path), timeout=3 * WAIT) as answer:
        data = answer.read()
    Quiet.received.release()
    return data


def fetch_both(world, port):
    # An I2P stream has no half-close: when the browser has gone, the tunnel waits so long for the server's end.
    with world.serve(port) as server, world.reach(server.dest, linger=3 * WAIT) as client:
        assert fetch(client.address, "") == PAGE
        assert fetch(client.address, "file") == FILE
        assert ended(client, 2) == ended(server, 2) == ["done", "done"]


def test_a_page_and_a_file(i2p_world, web_server):
    fetch_both(i2p_world, web_server)


def test_over_a_hop_of_real_routers(i2p_hops, web_server):
    fetch_both(i2p_hops, web_server)


def test_both_ways_at_once(i2p_world, over_i2p):
    client, far = over_i2p(i2p_world).connect()
    sending = [Thread(end.sendall, FILE) for end in (client, far)]
    receiving = [Thread(receive_exactly, end, len(FILE)) for end in (client, far)]
    assert all(one.result(3 * WAIT) == FILE for one in receiving)
    for one in sending:
        one.result()
