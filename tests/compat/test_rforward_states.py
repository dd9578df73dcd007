"""``relay.compat._rforward.tunnel``: each row of the table of states, without a server."""

import socket

import paramiko
import pytest
from state_table import rows_of

from relay.compat._rforward import tunnel as module
from relay.compat._rforward.tunnel import RevFwTunnel, TunnelState
from relay.errors import ForwardError


class Life(RevFwTunnel):
    """A tunnel that notes what it does; its thread does not run."""

    def __init__(self, transport):
        super().__init__(0, "127.0.0.1", 9, transport)
        self.calls = []

    def _cut(self):
        self.calls.append("cut")

    def _allow(self):
        super()._allow()
        self.calls.append("allow")

    def _apply_state_and_wait(self, seconds):
        self.calls.append("ask the server")

    def _listen(self):
        raise ForwardError("the server denies it")

    def is_denied(self):
        with pytest.raises(ForwardError):
            self._apply_state()

    def stopped_while_it_asks(self):
        """The server answers after the stop."""
        with self._control:
            self._state = TunnelState.LISTENING
        listen, self._listen = self._listen, self.stop_and_fail
        self.is_denied()
        self._listen = listen

    def stop_and_fail(self):
        self._state = TunnelState.STOPPED
        raise ForwardError("the server denies it")


@pytest.fixture
def tunnel():
    ours, far = socket.socketpair()
    with ours, far:
        transport = paramiko.Transport(ours)
        yield Life(transport)
        transport.close()


LEFT = ["cut", "ask the server"]
WAY = {"LISTENING": [], "PAUSED": [Life.pause], "STOPPED": [Life.stop_thread], "any": [Life.stop_thread]}
ROWS = [
    ("LISTENING", "pause", "PAUSED", Life.pause, LEFT),
    ("LISTENING", "the server denies it", "PAUSED", Life.is_denied, ["cut"]),
    ("LISTENING", "stop", "STOPPED", Life.stop_thread, LEFT),
    ("PAUSED", "resume", "LISTENING", Life.resume, ["allow", "ask the server"]),
    ("PAUSED", "stop", "STOPPED", Life.stop_thread, []),
    ("STOPPED", "the server denies it", "STOPPED", Life.stopped_while_it_asks, ["cut"]),
    ("any", "another one", "the same", Life.resume, []),
]


def test_the_table_has_the_same_rows():
    assert rows_of(module) == [row[:3] for row in ROWS]


OTHERS = [
    (state, "another one", "the same", act, [])
    for state, act in [
        ("LISTENING", Life.resume),
        ("PAUSED", Life.pause),
        ("STOPPED", Life.pause),
        ("STOPPED", Life.resume),
    ]
]


@pytest.mark.parametrize(("state", "event", "next_state", "act", "calls"), ROWS + OTHERS)
def test_each_row(tunnel, state, event, next_state, act, calls):
    for step in WAY[state]:
        step(tunnel)
    tunnel.calls.clear()
    before = tunnel._state
    act(tunnel)
    assert tunnel._state is (before if next_state == "the same" else TunnelState[next_state])
    assert tunnel.calls == calls
    assert tunnel._asked.empty() is (tunnel._state is not TunnelState.STOPPED)
