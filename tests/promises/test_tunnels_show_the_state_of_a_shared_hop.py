"""Tunnels that share an SSH connection or an I2P session all show its state and its error, wherever operators look."""

import contextlib
import json
import os
import re
import select
import signal

import httpx
import pyte
import pytest
from command_rig import Terminal, commands, run
from group_rig import letter
from helpers import WAIT, closed, reserved_port, wait_until
from upgrade_rig import Upgraded

import relay
from relay.testing import SAMBridge

NAMES = [f"t{number}" for number in range(5)]
WORDS = "listening|backing off|connecting|closed|failed"


class SSH:
    """A hop of SSH that all tunnels share.

    :param more: the rest of its URL.
    :param keys: further keys of each tunnel.
    :param top: the top of the file.
    """

    def __init__(self, request, places, more="", keys="", top=""):
        self.server = request.getfixturevalue("ssh_server")
        self._url, self._keys, self._top, self._places = f"{self.server.url}{more}", keys, top, places

    def text(self, names=NAMES):
        tunnels = "".join(
            f'[tunnels.{name}]\nlisten = ":0"\ntarget = {json.dumps(self._places)}\nvia = ["hop"]\n{self._keys}'
            for name in names
        )
        return f'{self._top}[hops]\nhop = "{self._url}"\n{tunnels}'

    def dialers(self):
        return [relay.target(place, via=[self._url]) for place in ("127.0.0.1:1", "127.0.0.1:2")]

    def lose(self):
        self.server.stop()

    def mend(self):
        self.server.start()


class I2P:
    """A session of I2P that all tunnels share."""

    def __init__(self, request, places):
        self.bridge = request.getfixturevalue("bridge")
        self._server = request.getfixturevalue("destination")

    def text(self, names=NAMES):
        target = f"i2p://{self._server}?sam={self.bridge.sam}"
        return "".join(f'[tunnels.{name}]\nlisten = ":0"\ntarget = "{target}"\n' for name in names)

    def dialers(self):
        return [relay.target(f"i2p://{self._server}:{port}?sam={self.bridge.sam}") for port in (1, 2)]

    def lose(self):
        self.bridge.kill()

    def mend(self):
        self.bridge.restart()


@pytest.fixture
def bridge():
    yield from closed(SAMBridge())


@pytest.fixture
def destination(bridge, tmp_path, places):
    with relay.Tunnel(
        relay.listen(f"i2p:?sam={bridge.sam}&keys={tmp_path}/server.dat"), relay.target(places[0])
    ) as server:
        yield server.address


@pytest.fixture
def places(serve):
    return ["{}:{}".format(*serve(letter(which)).address) for which in (b"a", b"b")]


PER_WORKER = {"keys": 'carrier_sharing = "per-worker"\n', "top": "workers = 2\n"}
KINDS = {
    "ssh": lambda request, places: SSH(request, places[:1]),
    "openssh": lambda request, places: SSH(request, places[:1], "&backend=openssh"),
    "carriers": lambda request, places: SSH(request, places[:1], "&carriers=3"),
    "workers": lambda request, places: SSH(request, places[:1], **PER_WORKER),
    "targets": lambda request, places: SSH(request, places),
    "i2p": I2P,
}


@pytest.fixture(params=KINDS)
def hop(request, places, spawner_thread):
    """Runs a test with each kind of hop."""
    return KINDS[request.param](request, places)


@pytest.fixture(params=["ssh", "i2p"])
def simple_hop(request, places):
    return KINDS[request.param](request, places)


def rows(text):
    """Return the states in a table of tunnels, by name."""
    return dict(re.findall(rf"^(t\d) +({WORDS}) ", text, re.MULTILINE))


class Watched:
    """The table of ``--watch``."""

    def __init__(self, stack):
        self._terminal = Terminal(stack)
        self.its = self._terminal.its
        self._screen = pyte.Screen(100, 40)
        self._stream = pyte.ByteStream(self._screen)

    def shown(self):
        while select.select([self._terminal.ours], [], [], 0)[0]:
            self._stream.feed(os.read(self._terminal.ours, 1 << 16))
        return "\n".join(self._screen.display)


class Places:
    """Ways to look at a relay: each function returns the states and the problems of the tunnels."""

    def __init__(self, control, status, watch):
        self._control, self._status, self._watch = control, f"http://127.0.0.1:{status}", watch

    def listed(self):
        text = run("ctl", "list", "--control", self._control).stdout
        return rows(text), dict(re.findall(r"^(t\d): (?!target)(.+)", text, re.MULTILINE))

    def asked(self):
        tunnels = httpx.get(f"{self._status}/tunnels", timeout=WAIT).json()["tunnels"]
        return self._of(tunnels)

    def page(self):
        with httpx.stream("GET", f"{self._status}/events", timeout=WAIT) as answer:
            data = next(line for line in answer.iter_lines() if line.startswith("data:"))
        return self._of(json.loads(data.removeprefix("data:"))["tunnels"]["rows"])

    def watched(self):
        text = self._watch.shown()
        return rows(text), dict(re.findall(r"^(t\d): (.+)", text, re.MULTILINE))

    @staticmethod
    def _of(tunnels):
        assert {one["state"] for one in tunnels} == {"listening"}
        states = {one["name"]: "listening" if one["hops"] == "up" else one["hops"] for one in tunnels}
        return states, {one["name"]: one["problem"] for one in tunnels if one["problem"]}

    def wait_for(self, words, has_problem):
        """Wait until each place shows one of these states for all tunnels, and the same problem or none."""
        for look in (self.listed, self.asked, self.page, self.watched):

            def holds(look=look):
                states, problems = look()
                told = set(problems.values())
                return (
                    sorted(states) == NAMES
                    and set(states.values()) <= words
                    and sorted(problems) == (NAMES if has_problem else [])
                    and len(told) == has_problem
                )

            try:
                wait_until(holds)
            except AssertionError:
                raise AssertionError(f"{look.__name__}: {look()}, not {words}") from None


def test_all_tunnels_show_the_state_of_the_hop_that_they_share(hop, tmp_path, runtime_directory):
    """Before any client: while it is up, while it is lost, and when it is back."""
    file = tmp_path / "relay.toml"
    file.write_text(hop.text())
    file.chmod(0o600)
    with contextlib.ExitStack() as stack:
        watch = Watched(stack)
        control, status = str(tmp_path / "c.sock"), stack.enter_context(reserved_port())
        start = stack.enter_context(commands())
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        words = (str(file), "--watch", "--control", control, "--status", f"127.0.0.1:{status}")
        command = start(*words, command="up", stderr=watch.its, env={**environment, "TERM": "xterm"})
        for _ in NAMES:
            assert "listening on" in command.process.stdout.readline()
        look = Places(control, status, watch)
        look.wait_for({"listening"}, has_problem=False)
        hop.lose()
        look.wait_for({"backing off", "connecting"}, has_problem=True)
        hop.mend()
        look.wait_for({"listening"}, has_problem=False)
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(WAIT) == 0


@contextlib.contextmanager
def upgraded(folder, text):
    running = Upgraded(folder, text)
    try:
        yield running
    finally:
        running.close()


def shown(running):
    """Return the states that ``relay ctl list`` prints."""
    return rows(running.ctl("list").stdout)


def test_tunnels_keep_the_hop_when_a_reload_removes_the_first_ones(hop, tmp_path):
    """The connection is not that of the tunnel that came first."""
    with upgraded(tmp_path, hop.text()) as running:
        wait_until(lambda: shown(running) == dict.fromkeys(NAMES, "listening"))
        before = running.listed("carriers")
        for count in (1, 4):
            running.write(hop.text(NAMES[count:]))
            assert running.ctl("reload").returncode == 0, running.said()
            wait_until(lambda count=count: shown(running) == dict.fromkeys(NAMES[count:], "listening"))
        assert [one["since"] for one in running.listed("carriers")] == pytest.approx([one["since"] for one in before])
        running.write(hop.text())
        assert running.ctl("reload").returncode == 0, running.said()
        wait_until(lambda: shown(running) == dict.fromkeys(NAMES, "listening"))


def test_tunnels_show_the_state_of_their_hop_after_an_upgrade(hop, tmp_path):
    """Also if the hop is lost then."""
    with upgraded(tmp_path, hop.text()) as running:
        running.upgrade()
        wait_until(lambda: shown(running) == dict.fromkeys(NAMES, "listening"))
        hop.lose()
        wait_until(lambda: set(shown(running).values()) <= {"backing off", "connecting"})
        tunnels = json.loads(running.ctl("list", "--json").stdout)["tunnels"]
        assert len({one["problem"] for one in tunnels}) == 1 and all(one["problem"] for one in tunnels)


def test_dialers_show_the_state_of_the_carrier_that_they_share(simple_hop):
    """Also one that has not been used: its next use has that carrier."""
    one, other = simple_hop.dialers()
    with one, other:
        assert (one.state, other.state, other.last_error) == ("closed", "closed", None)
        one.ready(WAIT)
        assert (one.state, other.state) == ("up", "up")
        simple_hop.lose()
        wait_until(lambda: other.last_error)
        assert other.state in ("backing off", "connecting")
        one.close()
        assert (other.state, other.last_error) == ("closed", None)
