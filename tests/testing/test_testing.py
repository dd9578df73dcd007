"""The kit for users: it passes what is right, and fails what is not."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import WAIT, Thread, exchange, receive_all

import relay
from relay.eventloop.sockets import reset
from relay.testing import FakeListener, Leaks, check_factory, check_leaks, check_stream, clogged_pair, pair

FAMILIES = pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET], ids=["unix", "tcp"])


# Pairs.


@FAMILIES
def test_a_pair_is_connected_and_blocking(family):
    near, far = pair(family)
    with near, far:
        assert near.gettimeout() is far.gettimeout() is None
        exchange(near, far)


@FAMILIES
def test_a_clogged_pair_cannot_send_until_it_is_read(family):
    clogged, reader = clogged_pair(family)
    with clogged, reader:
        clogged.setblocking(False)
        with pytest.raises(BlockingIOError):
            clogged.send(b"x")
        reader.settimeout(WAIT)
        clogged.settimeout(WAIT)
        filler = Thread(receive_all, reader)
        clogged.sendall(b"at last")
        clogged.shutdown(socket.SHUT_WR)
        data = filler.result()
        assert data.endswith(b"at last")
        assert set(data[:-7]) == {0}


def test_a_pair_of_an_unknown_family_is_an_error():
    with pytest.raises((KeyError, ValueError, OSError)):
        pair(socket.AF_APPLETALK)


# The listener.


def test_who_connects_is_accepted():
    with FakeListener() as listener, listener.connect(peer="somebody") as client:
        accepted, peer = listener.accept()
        with accepted:
            assert peer == "somebody"
            exchange(client, accepted)


def test_accept_waits_and_close_wakes_it():
    listener = FakeListener()
    waiting = Thread(listener.accept)
    listener.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        waiting.result()
    listener.close()
    assert listener.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.accept()


def test_it_fails_as_told():
    with FakeListener() as listener:
        listener.fail(OSError("no more"))
        with pytest.raises(OSError, match="no more"):
            listener.accept()


@pytest.mark.parametrize("late", [False, True], ids=["before close", "after close"])
def test_who_was_never_accepted_is_closed(late):
    listener = FakeListener()
    if late:
        listener.close()
    with listener.connect() as client:
        listener.close()
        client.settimeout(WAIT)
        assert client.recv(1) == b""


# Leaks.


def test_nothing_is_found_where_nothing_was_left():
    with check_leaks():
        near, far = pair()
        near.close()
        far.close()
        Thread(lambda: None).result()
        subprocess.run([sys.executable, "-c", ""], check=True, timeout=WAIT)


def test_a_descriptor_is_found_and_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(AssertionError, match=rf"left behind:\n  descriptor \d+: .*{listener.getsockname()[1]}"):
            with check_leaks(0.1):
                left = socket.create_connection(listener.getsockname())
        left.close()


def test_a_number_that_was_taken_again_is_found():
    first, other = pair()
    number = first.fileno()
    leaks = Leaks()
    first.close()
    second = os.dup(other.fileno())
    assert second == number
    assert [line for line in leaks.left(0.1) if line.startswith(f"descriptor {number}:")]
    os.close(second)
    other.close()


def test_a_pipe_is_found():
    leaks = Leaks()
    ends = os.pipe()
    assert len(leaks.left(0.1)) == 2
    for end in ends:
        os.close(end)
    assert leaks.left() == []


def test_a_thread_is_found_and_one_that_is_about_to_end_is_waited_for():
    gate, leaks = threading.Event(), Leaks()
    thread = threading.Thread(target=gate.wait, args=(10,), name="the one")
    thread.start()
    assert leaks.left(0.1) == ["thread 'the one'"]
    gate.set()
    assert leaks.left() == []


@pytest.mark.skipif(sys.platform != "linux", reason="children are read from /proc")
def test_a_child_is_found_alive_and_dead():
    leaks = Leaks()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (line,) = (line for line in leaks.left(0.1) if line.startswith("child"))
    assert str(child.pid) in line
    child.stdin.close()
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert any(line.startswith("child") for line in leaks.left(0.1)), "nobody has waited for it"
    child.wait()
    assert leaks.left() == []


def test_what_the_body_raises_is_passed_on():
    with pytest.raises(ValueError, match="mine"), check_leaks():
        raise ValueError("mine")


# The conformance test: what is right passes.


def test_tcp_passes():
    check_stream(lambda: pair(socket.AF_INET), abort=reset)


class Object:
    """A stream of a user's own, over a socket; each method can be broken."""

    def __init__(self, near):
        self._near = near

    def recv(self, size):
        return self._near.recv(size)

    def sendall(self, data):
        self._near.sendall(data)

    def shutdown(self, how):
        with contextlib.suppress(OSError):
            self._near.shutdown(how)

    def close(self):
        self.shutdown(socket.SHUT_RDWR)
        self._near.close()


def objects(kind, family=socket.AF_UNIX):
    def make():
        near, far = pair(family)
        return kind(near), far

    return make


def test_an_object_passes():
    check_stream(objects(Object))
    check_stream(objects(Object, socket.AF_INET), abort=reset)


# And what is not right fails, each for its own reason.


class Loses(Object):
    def sendall(self, data):
        self._near.sendall(data[:-1])


class Reorders(Object):
    def recv(self, size):
        return self._near.recv(size)[::-1]


class EndsNothing(Object):
    def shutdown(self, how):
        """Says it has half-close, and has not."""
        if how == socket.SHUT_RDWR:
            super().shutdown(how)


class EndsBoth(Object):
    def shutdown(self, how):
        super().shutdown(socket.SHUT_RDWR)


class HidesFailure(Object):
    def recv(self, size):
        try:
            return self._near.recv(size)
        except ConnectionResetError:
            return b""


class Swallows(Object):
    """Takes whatever comes, as if memory were free."""

    def sendall(self, data):
        pass


KEPT: list[socket.socket] = []


@pytest.mark.parametrize(
    ("kind", "broken", "seconds"),  # what is found by waiting has few, but enough for all that is right before it
    [
        (Loses, "every byte arrives", 1),
        (Reorders, "every byte arrives", WAIT),
        (EndsNothing, "still gets its reply|end of file", 3),
        (EndsBoth, "half-close|reply", WAIT),
        (HidesFailure, "a failure is never a clean end", WAIT),
        (Swallows, "every byte arrives|sender", 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_fails(kind, broken, seconds):
    with pytest.raises(AssertionError, match=broken):
        check_stream(objects(kind, socket.AF_INET), abort=reset, timeout=seconds)


def test_a_stream_that_leaves_a_descriptor_fails():
    with pytest.raises(AssertionError, match="left behind|close ends the far side|ends the far side"):
        check_stream(leaking, timeout=2)
    for kept in KEPT:
        kept.close()
    KEPT.clear()


def leaking():
    near, far = pair()
    KEPT.append(near.dup())
    return near, far


def test_an_on_close_that_is_called_by_nobody_or_twice_fails():
    class Forgets(relay.Stream):
        __slots__ = ()

        def close(self):
            self.socket.close()

    def make():
        near, far = pair()
        return Forgets(near, on_close=lambda: None), far

    with pytest.raises(AssertionError, match="on_close is called once"):
        check_stream(make, timeout=WAIT)


def test_a_factory_that_reaches_nobody_fails(listener):
    def make():
        raise ConnectionRefusedError

    with pytest.raises(AssertionError, match="no stream reached the server.*refused"):
        check_factory(make, listener, timeout=0.5)
    assert listener.gettimeout() == WAIT


def test_a_factory_whose_streams_mix_fails(listener):
    streams = []

    def make():
        """Gives the last stream out twice."""
        if len(streams) % 6 == 5:
            streams.append(streams[-1])
            socket.create_connection(listener.getsockname()).close()
            return streams[-1].dup()
        streams.append(socket.create_connection(listener.getsockname()))
        return streams[-1]

    with pytest.raises(AssertionError):
        check_factory(make, listener, timeout=WAIT)
    for stream in streams:
        stream.close()


def test_a_factory_that_leaves_a_thread_fails(listener):
    gate = threading.Event()

    def make():
        threading.Thread(target=gate.wait, args=(10,), name="forgotten", daemon=True).start()
        return socket.create_connection(listener.getsockname())

    with pytest.raises(AssertionError, match="left behind:\n  thread 'forgotten'"):
        check_factory(make, listener, timeout=2)
    gate.set()


def test_a_factory_whose_half_close_is_broken_fails(listener):
    with pytest.raises(AssertionError, match="half-close|reply|end of file"):
        check_factory(lambda: EndsBoth(socket.create_connection(listener.getsockname())), listener, timeout=WAIT)


# The check of our own tests, in tests/conftest.py.


def run_tests(tmp_path, files, **environment):
    root = Path(__file__).parents[2]
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    clean = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": f"{root}:{root / 'tests'}:{root / 'tests' / 'support'}", **environment},
        capture_output=True,
        text=True,
        timeout=WAIT,
    )


SKIPS = {
    "test_one.py": "import pytest\ndef test_a():\n    pytest.skip('no moon')\n",
    "test_all.py": "import pytest\npytest.skip('no sun', allow_module_level=True)\n",
}


def test_a_skip_is_heard_and_with_ci_it_is_a_failure(tmp_path):
    alone = run_tests(tmp_path, SKIPS)
    for text in ("2 NOT TESTED", "no moon", "no sun"):
        assert text in alone.stdout
    assert "failed" not in alone.stdout
    with_ci = run_tests(tmp_path, SKIPS, CI="true")
    assert with_ci.returncode != 0
    assert "nothing may be skipped: Skipped: no sun" in with_ci.stdout


def test_with_ci_a_single_skip_is_a_failure(tmp_path):
    done = run_tests(tmp_path, {"test_one.py": SKIPS["test_one.py"]}, CI="true")
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "nothing may be skipped: Skipped: no moon" in done.stdout


LEAKS = """
import os, threading
import conftest
conftest.LEAVING = 0.1
gate = threading.Event()
def test_a():
    os.pipe()
    threading.Thread(target=gate.wait, daemon=True, name="forgotten").start()
"""


def test_a_test_that_leaves_something_fails(tmp_path):
    done = run_tests(tmp_path, {"test_it.py": LEAKS})
    assert done.returncode == 1
    assert "left behind" in done.stdout
    assert "pipe:" in done.stdout
    assert "thread 'forgotten'" in done.stdout
