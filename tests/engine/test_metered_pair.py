"""The flows of a client with a bandwidth or a quota: which of them are metered, by what, and what the kernel limits."""

import contextlib
import errno
import socket
import sys
from types import SimpleNamespace

import pytest
from flow_bench import Bench, Reluctant, take_all

from relay.engine import metered_pair as module
from relay.engine.flow import Flow
from relay.engine.metered_flow import MeteredFlow, MeteredSessionFlow
from relay.engine.session_flow import SessionFlow

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this machine has no pacing")

SLOW, FAST = 16_000, 3_000_000  # bytes a second; the kernel limits the latter
PACING = 47  # the option of the kernel


def alone(rate):
    return {"per": "connection", "bandwidth": rate}


SHARED = {"per": "tunnel", "bandwidth": SLOW}
QUOTA = {"name": "q", "quota": "1kB/day"}


@pytest.fixture
def connect():
    with contextlib.ExitStack() as stack:

        def make(*limits, family=socket.AF_INET, **options):
            return Bench(stack, limits=limits, family=family).connect(**options)

        yield make


def kinds(line):
    return type(line.up), type(line.down)


def paces(line):
    """The bandwidths that the kernel keeps, to the client and to the target; 0 for none."""
    found = [
        int.from_bytes(end.getsockopt(socket.SOL_SOCKET, PACING, 8), sys.byteorder) for end in (line.near, line.far)
    ]
    return [rate if rate < 1 << 60 else 0 for rate in found]


@pytest.mark.parametrize(
    ("limits", "metered", "paced"),
    [
        ([alone(SLOW)], True, 0),
        ([alone(1_999_999)], True, 0),
        ([alone(2_000_000)], False, 2_000_000),
        ([alone(FAST)], False, FAST),
        ([alone(FAST), SHARED], True, FAST),
        ([QUOTA], True, 0),
        ([{"concurrent": 9}], False, 0),
    ],
)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_flow_is_metered_only_if_relay_has_something_to_count(connect, limits, metered, paced, family):
    line = connect(*limits, family=family)
    assert kinds(line) == ((MeteredFlow if metered else Flow),) * 2
    assert paces(line) == [paced] * 2
    assert line.up.spliceable is line.down.spliceable is None


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("rate", [SLOW, FAST])
def test_beside_a_session_nothing_is_spliced_and_what_goes_into_it_is_not_paced(connect, client, target, rate):
    """Its transport has more bytes."""
    sessions = ({"client": b""} if client else {}) | ({"target": b""} if target else {})
    line = connect(alone(rate), client={} if client else None, target={} if target else None, sessions=sessions)
    up_metered, down_metered = rate == SLOW or target, rate == SLOW or client
    plain, of_session = [Flow, MeteredFlow], [SessionFlow, MeteredSessionFlow]
    assert kinds(line) == (
        (of_session if client else plain)[up_metered],
        (of_session if target else plain)[down_metered],
    )
    assert line.up.spliceable is line.down.spliceable is (False if client or target else None)
    assert paces(line) == [0 if down_metered else FAST, 0 if up_metered else FAST]
    line.client.send(b"ping")
    line.target.send(b"pong")
    line.bench.until(lambda: line.moved == (4, 4))
    assert (take_all(line.target), take_all(line.client)) == (b"ping", b"pong")


class Refusing(Reluctant):
    """A socket of a kernel without pacing."""

    def setsockopt(self, level, option, value):
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


@pytest.mark.parametrize("cause", ["a Unix socket", "an old kernel", "another system"])
def test_what_the_kernel_does_not_limit_is_metered(connect, monkeypatch, cause):
    if cause == "another system":
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform="darwin"))
    family = socket.AF_UNIX if cause == "a Unix socket" else socket.AF_INET
    line = connect(alone(FAST), family=family, wrap=Refusing if cause == "an old kernel" else lambda sock: sock)
    assert kinds(line) == (MeteredFlow, MeteredFlow)


@pytest.mark.parametrize(
    ("limits", "total"), [([alone(SLOW)], 4000), ([SHARED], 4000), ([alone(SLOW), {**SHARED, "bandwidth": 8000}], 2000)]
)
def test_each_direction_has_the_whole_bandwidth_and_the_narrower_one_holds(connect, limits, total):
    line = connect(*limits, family=socket.AF_UNIX)
    line.client.send(bytes(4000))
    line.target.send(bytes(4000))
    line.bench.rest()
    assert line.moved == (total // 2, total // 2)
    line.bench.pass_by(0.1251)
    assert line.moved == (total, total)


def test_a_quota_counts_both_directions_and_ends_the_connection_when_it_is_used_up(connect):
    line = connect({"name": "much", "quota": "1MB/day"}, {**QUOTA, "ban": "1h"}, family=socket.AF_UNIX)
    line.client.send(bytes(400))
    line.target.send(bytes(600))
    line.bench.rest()
    assert (line.moved, line.bench.ends) == ((400, 600), [])
    line.client.send(b"more")
    line.bench.rest()
    assert (line.moved, line.bench.ends) == ((400, 600), [("quota", "limit q")])
    assert line.connection.summary.finished == line.bench.now or line.bench.now > line.connection.summary.finished
