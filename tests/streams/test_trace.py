"""Steps that dialers report, and an observer that keeps them."""

import socket
import time

import pytest
from helpers import WAIT

from relay.addresses.values import TCPAddress
from relay.errors import ConnectError
from relay.streams.trace import SILENT, Stage, Step, Trace, observed, report_to
from relay.transports.chain import network


class Kept(Trace, Step):
    """An observer that is its own step, and writes down what it gets."""

    def __init__(self):
        self.calls = []

    def begin(self, stage, subject, **facts):
        self.calls.append(("begin", stage, subject, facts))
        return self

    def note(self, error):
        self.calls.append(("note", error))

    def done(self, **facts):
        self.calls.append(("done", facts))

    def failed(self, error, **facts):
        self.calls.append(("failed", error, facts))


def test_nothing_is_observed_by_default():
    step = SILENT.begin(Stage.CONNECT, "db:5432")
    step.note(OSError())
    step.done()
    step.failed(OSError())
    assert not SILENT.changes_nothing
    assert network().trace is SILENT


def test_a_block_that_succeeds():
    trace = Kept()
    with observed(trace, Stage.LOGIN, "ssh://server", user="me") as facts:
        facts["accepted"] = ["a key"]
    assert trace.calls == [("begin", Stage.LOGIN, "ssh://server", {"user": "me"}), ("done", {"accepted": ["a key"]})]


def test_a_block_that_fails():
    trace, error = Kept(), ValueError("no")
    with pytest.raises(ValueError, match="no"), observed(trace, Stage.LOGIN, "ssh://server") as facts:
        facts["offered"] = ["publickey"]
        raise error
    assert trace.calls[1:] == [("failed", error, {"offered": ["publickey"]})]


@pytest.mark.parametrize(
    ("outcome", "call"), [(5, ("done", {})), (error := OSError("no"), ("failed", error, {}))], ids=["stream", "error"]
)
def test_an_outcome_is_reported_and_passed_on(outcome, call):
    step, passed_on = Kept(), []
    report_to(step, passed_on.append)(outcome)
    assert step.calls == [call]
    assert passed_on == [outcome]


def test_a_name_is_resolved_and_connected_to(listener):
    trace, port = Kept(), listener.getsockname()[1]
    network((), trace).to(TCPAddress("localhost", port))(deadline=time.monotonic() + WAIT).close()
    assert [call[:2] for call in trace.calls if call[0] == "begin"] == [
        ("begin", Stage.RESOLVE),
        ("begin", Stage.CONNECT),
    ]
    resolved, connected = [call[1] for call in trace.calls if call[0] == "done"]
    assert (socket.AF_INET, ("127.0.0.1", port)) in [endpoint[:2] for endpoint in resolved["endpoints"]]
    assert connected["socket"].type & socket.SOCK_STREAM


def test_a_connect_that_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    trace = Kept()
    with pytest.raises(ConnectError, match="refused"):
        network((), trace).to(TCPAddress("127.0.0.1", port))(deadline=time.monotonic() + WAIT)
    (_, stage, subject, facts), (_, error, _) = trace.calls
    assert (stage, subject, error.reason) == (Stage.CONNECT, f"127.0.0.1:{port}", "refused")
    assert [each.address for each in facts["endpoints"]] == [("127.0.0.1", port)]
