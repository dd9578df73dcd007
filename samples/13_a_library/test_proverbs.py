"""The tests of the library: with relay, whose own SSH server takes the place of a bastion, and without it."""

import socketserver
import sys
import threading

import proverbs
import pytest


class Answer(socketserver.StreamRequestHandler):
    """Answers one line."""

    def handle(self):
        assert self.rfile.readline() == b"proverb\n"
        self.wfile.write(b"a rolling stone gathers no moss\n")


@pytest.fixture
def server():
    """The address of a server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield "{}:{}".format(*listening.server_address)
        listening.shutdown()
        thread.join()


@pytest.fixture
def bastion():
    """An SSH server; without relay its tests are skipped."""
    testing = pytest.importorskip("relay.testing")
    with testing.SSHServer() as made:
        yield made


def test_a_server_that_can_be_reached(server):
    assert proverbs.proverb(server) == "a rolling stone gathers no moss"


def test_a_server_behind_a_bastion(server, bastion):
    assert proverbs.proverb(server, via=[bastion.url]) == "a rolling stone gathers no moss"
    assert bastion.opened, "it went through the bastion"


def test_a_bastion_that_is_down_is_an_os_error_that_names_it(server, bastion):
    bastion.stop()
    with pytest.raises(OSError, match=r"ssh://relay@127\.0\.0\.1"):
        proverbs.proverb(server, via=[bastion.url], timeout=1.0)


def test_without_relay_one_line_says_what_to_install(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "relay", None)  # as if it were not installed
    assert proverbs.proverb(server) == "a rolling stone gathers no moss"
    with pytest.raises(ImportError, match=r"pip install 'proverbs\[ssh\]'"):
        proverbs.proverb(server, via=["ssh://me@bastion"])
