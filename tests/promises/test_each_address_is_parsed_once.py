"""Values travel, text does not: each text of a command is parsed once."""

import signal
import subprocess
import sys
from collections import Counter

import pytest
from helpers import WAIT, echo

from relay.testing import SAMBridge

COUNTING = """
import sys
from relay.addresses import address_parser

texts, plain = open(sys.argv[1], "a", buffering=1), address_parser.AddressParser.__init__

def counting(self, text, *arguments, **keywords):
    print(text, file=texts)
    plain(self, text, *arguments, **keywords)

address_parser.AddressParser.__init__ = counting
"""
COMMAND = f"{COUNTING}\nfrom relay.cli import main\nsys.argv = ['relay', *sys.argv[2:]]\nmain()\n"
LOCAL = f"{COUNTING}\nimport relay\nwith relay.local(sys.argv[2], via=sys.argv[3:]): pass\n"


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """Run a program until it listens or ends; returns how often each text was parsed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = tmp_path / "texts"

    def run(program, *words, listens=0):
        command = [sys.executable, "-c", program, str(found), *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
            for _ in range(listens):
                assert "→" in process.stdout.readline()
            if listens:
                process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=WAIT)
        assert process.returncode == 0, errors
        return Counter(found.read_text().splitlines())

    return run


@pytest.fixture
def hops(ssh_server):
    """Two hops, which are one server, as different texts."""
    return [f"{ssh_server.url}&keepalive={seconds}" for seconds in (5, 6)]


def once(*texts):
    return Counter(texts)


def test_forward(parsed, hops, echo_server):
    target = "{}:{}".format(*echo_server.address)
    words = ["forward", "127.0.0.1:0", target, "--via", hops[0], "--via", hops[1]]
    assert parsed(COMMAND, *words, listens=1) == once("127.0.0.1:0", target, *hops)


def test_forward_to_i2p_with_another_bridge(parsed):
    with SAMBridge() as bridge:
        words = ["forward", ":0", "i2p://name.i2p", "--sam", bridge.sam]
        assert parsed(COMMAND, *words, listens=1) == once(":0", "i2p://name.i2p", bridge.sam)


def test_up(parsed, hops, tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text(
        f"""
        [hops]
        first = "{hops[0]}"
        second = {{ address = "{hops[1]}", compress = true }}

        [tunnels.one]
        listen = "127.0.0.1:0"
        target = "localhost:1"
        via = ["first", "second"]

        [tunnels.two]
        listen = "unix://{tmp_path}/two"
        target = "localhost:2"
        via = ["first"]

        [tunnels.three]
        listen = "socks5://127.0.0.1:0"
        rule = ["*.example=first,second", "*=direct"]
        """
    )
    file.chmod(0o600)
    texts = ["127.0.0.1:0", "localhost:1", f"unix://{tmp_path}/two", "localhost:2", "socks5://127.0.0.1:0", *hops]
    assert parsed(COMMAND, "up", str(file), listens=3) == once(*texts)


def test_pipe(parsed, hops, serve):
    target = "{}:{}".format(*serve(echo).address)
    assert parsed(COMMAND, "pipe", target, "--via", hops[0], "--via", hops[1]) == once(target, *hops)


def test_local(parsed, hops, echo_server):
    target = "{}:{}".format(*echo_server.address)
    assert parsed(LOCAL, target, *hops) == once(target, *hops)


def test_check_of_a_command_line(parsed, hops):
    words = ["forward", "127.0.0.1:0", "localhost:1", "--via", hops[0], "--via", hops[1]]
    assert parsed(COMMAND, "check", "--", *words) == once("127.0.0.1:0", "localhost:1", *hops)


def test_check_of_a_reverse_tunnel(parsed, hops):
    place = f"{hops[0]}&listen=0"
    assert parsed(COMMAND, "check", "--", "expose", "localhost:1", "--on", place) == once("localhost:1", place, "0")
