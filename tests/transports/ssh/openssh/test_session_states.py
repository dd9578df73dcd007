"""``relay.transports.ssh.openssh.sessions``: each row of the table of states, with an ssh that is a double."""

import threading
import time
from types import SimpleNamespace

import pytest
from state_table import rows_of

from relay.addresses.hops import Command
from relay.errors import CarrierError, ConnectError
from relay.eventloop.loop import Loop
from relay.transports.ssh.openssh import sessions as module
from relay.transports.ssh.openssh.control import ControlError
from relay.transports.ssh.openssh.opening import Opening
from relay.transports.ssh.openssh.sessions import Sessions, SessionState, _Session

LOST = CarrierError("server: the connection is lost")


class Control:
    """A connection to ssh's control socket."""

    status = None
    is_closed = False

    def __init__(self, rig, on_end):
        self.rig = rig
        self.on_end = on_end

    def open(self, text, name, descriptors, reply):
        if self.rig.ssh_fails:
            raise ConnectionRefusedError(111, "Connection refused")
        self.rig.requests.append(text)
        self.reply = reply

    def close(self):
        self.is_closed = True

    abandon = close


class Rig:
    """One session of a connection; this is the owner of its opening as well."""

    server = "server"
    ssh_fails = False

    def __init__(self, monkeypatch):
        self.requests, self.got, self.named = [], [], {}
        self.counted = 1
        self.loop = Loop()
        self.loop.discard = lambda socket: socket.close()  # at once: this loop does not turn
        self.control = None
        monkeypatch.setattr(module, "SessionControl", self.connect)
        master = SimpleNamespace(
            loop=self.loop,
            lock=threading.Lock(),
            settings=SimpleNamespace(name="server"),
            path=lambda name: f"/nowhere/{name}",
            drain=lambda: None,
        )
        channels = SimpleNamespace(name=self.name, forget=lambda name: self.named.pop(name, None))
        self.opening = Opening(self, "exec:it", self.got.append, patient=True)
        self.session = _Session(Sessions(master, channels, self), Command("it"), self.opening)

    def name(self, session):
        self.named["it"] = session
        return "it"

    def connect(self, loop, path, on_end):
        self.control = Control(self, on_end)
        return self.control

    def answered(self, opening):
        """Nothing watches a deadline here."""

    def over(self, opening):
        self.counted = 0

    def soon(self, call):
        call()

    def unexplained_error(self, opening):
        return LOST

    def finish(self):
        self.session._release()
        self.opening.give_up()
        for outcome in self.got:
            if not isinstance(outcome, OSError):
                outcome.close()
        self.loop.close()


@pytest.fixture
def rig(monkeypatch):
    made = Rig(monkeypatch)
    yield made
    made.finish()


def its_turn(rig):
    rig.session.ask()
    assert set(rig.named) == ({"it"} if rig.requests else set())


def its_turn_but_cancelled(rig):
    rig.opening.give_up()
    its_turn(rig)
    assert rig.requests == rig.got == []


def its_turn_but_ssh_fails(rig):
    rig.ssh_fails = True
    its_turn(rig)
    assert "ssh accepts no command" in str(rig.got[0])


def ssh_agrees(rig):
    rig.control.reply(7)


def ssh_rejects_it(rig):
    rig.control.reply(ControlError("no more sessions"))
    assert isinstance(rig.got[0], ConnectError)


def the_owner_has_left(rig):
    rig.session._leave(time.monotonic())


def the_control_connection_ends(rig):
    rig.control.status = 3
    rig.control.on_end(LOST)
    assert "ended with status 3" in str(rig.got[0])


def ssh_ends(rig):
    rig.session.lost(LOST)
    assert rig.got == [LOST]


def ssh_releases_the_channel(rig):
    rig.session.freed()


def no_release(rig):
    rig.session._give_up(0.0)


ASKED = [its_turn]
LEAVING = [its_turn, the_owner_has_left]
OPEN = [its_turn, ssh_agrees]
LEFT = [its_turn, ssh_agrees, the_owner_has_left]
WAY = {"WAITING": [], "ASKED": ASKED, "LEAVING": LEAVING, "OPEN": OPEN, "RUNNING": OPEN, "LEFT": LEFT}
ROWS = [
    ("WAITING", "its turn", "ASKED", its_turn),
    ("WAITING", "its turn, but cancelled", "OVER", its_turn_but_cancelled),
    ("WAITING", "its turn, but ssh fails", "OVER", its_turn_but_ssh_fails),
    ("ASKED", "ssh agrees", "OPEN", ssh_agrees),
    ("ASKED", "ssh rejects it", "OVER", ssh_rejects_it),
    ("ASKED", "the owner has left", "LEAVING", the_owner_has_left),
    ("LEAVING", "ssh agrees", "LEFT", ssh_agrees),
    ("LEAVING", "ssh rejects it", "OVER", ssh_rejects_it),
    ("OPEN", "the owner has left", "LEFT", the_owner_has_left),
    ("RUNNING", "the control connection ends", "OVER", the_control_connection_ends),
    ("RUNNING", "ssh ends", "OVER", ssh_ends),
    ("WAITING", "ssh ends", "OVER", ssh_ends),
    ("LEFT", "ssh releases the channel", "OVER", ssh_releases_the_channel),
    ("LEFT", "no release in 60 s", "OVER", no_release),
]


def test_the_table_has_the_same_rows():
    assert rows_of(module) == [row[:3] for row in ROWS]


@pytest.mark.parametrize(("state", "event", "next_state", "act"), ROWS)
def test_each_row(rig, state, event, next_state, act):
    for step in WAY[state]:
        step(rig)
    act(rig)
    assert rig.session._state is SessionState[next_state]
    assert rig.counted == (next_state != "OVER")
    must_be_open = next_state in ("ASKED", "OPEN", "LEAVING")
    if rig.control is not None:
        assert rig.control.is_closed is not must_be_open


@pytest.mark.parametrize("act", [the_control_connection_ends, ssh_ends])
@pytest.mark.parametrize("state", ["ASKED", "LEAVING", "OPEN"])
def test_the_end_in_each_state_of_running(rig, state, act):
    for step in WAY[state]:
        step(rig)
    act(rig)
    assert rig.session._state is SessionState.OVER
    assert rig.counted == 0


def test_a_channel_that_is_released_before_its_owner_leaves_ends_with_that(rig):
    for step in OPEN:
        step(rig)
    rig.session.freed()
    assert rig.counted == 1
    the_owner_has_left(rig)
    assert rig.session._state is SessionState.OVER
    assert rig.counted == 0
