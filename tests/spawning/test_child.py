"""``relay.spawning.child``: what runs in the child, seen from the other end of its sockets."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers import WAIT, Thread, wait_until

import relay
from relay.engine.statistics import Statistics
from relay.spawning import child, parent
from relay.spawning.wire import Channel, to_error

OPTIONS = {
    "nconnect": -1,
    "timeout": None,
    "connect_timeout": 30.0,
    "idle_timeout": None,
    "linger": 60.0,
    "name": "bare",
}


class Bare:
    """A child without a :class:`~relay.spawning.parent.ChildProcess`, made by this thread and not by the spawner."""

    def __init__(self, **request):
        self.control, its_control = socket.socketpair()
        self.events, its_events = socket.socketpair()
        argv = [sys.executable, "-P", "-S", "-c", parent._CHILD]
        self.process = subprocess.Popen(argv, stdin=its_control, start_new_session=True)
        socket.send_fds(self.control, [b"\n"], [its_events.fileno()])
        its_control.close()
        its_events.close()
        self.channel = Channel(self.control)
        path = parent._path()
        self.request = {
            "listen": ":0",
            "target": "127.0.0.1:1",
            "via": [],
            "level": 30,
            "program": os.getpid(),
            "secrets": [],
            "options": OPTIONS,
            "path": path,
        }
        self.request.update(request)

    def begin(self):
        self.channel.send(self.request)
        return self.channel.receive(time.monotonic() + WAIT)

    def ask(self, call, *arguments, number=1):
        self.channel.send({"number": number, "call": call, "arguments": arguments, "level": 30})
        return self.channel.receive(time.monotonic() + WAIT)

    def last(self):
        """Return what it says at its end."""
        channel = Channel(self.events)
        said = []
        while (message := channel.receive(time.monotonic() + WAIT)) is not None:
            said.append(message)
        return said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(WAIT)
        self.control.close()
        self.events.close()


@pytest.fixture
def bare():
    with Bare() as made:
        yield made


METRICS = json.loads(json.dumps(Statistics("", None, None).metrics([])))
LAST = {
    "last": {"connections": [], "recent": [], "stats": [0, 0, 0, 0, {}, 0, 0], "metrics": METRICS},
    "expired": False,
}


def test_it_ends_when_the_program_has_nothing_more_to_ask(bare):
    """The end of file alone does it: no parent has died here."""
    assert bare.begin()["name"] == "bare"
    assert bare.ask("stats", number=7) == {"number": 7, "value": [0, 0, 0, 0, {}, 0, 0]}
    bare.control.shutdown(socket.SHUT_WR)
    assert bare.last() == [LAST]
    assert bare.process.wait(WAIT) == 0


def test_it_ends_when_the_program_is_gone(bare):
    bare.begin()
    bare.control.close()
    bare.events.close()
    assert bare.process.wait(WAIT) == 0


def test_it_ends_before_it_has_begun(bare):
    bare.control.close()
    assert bare.process.wait(WAIT) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_on_a_signal(bare, number):
    bare.begin()
    bare.process.send_signal(number)
    assert bare.last() == [LAST]
    assert bare.process.wait(WAIT) == 0


def test_a_signal_that_the_program_ignores_or_blocks_ends_it(monkeypatch):
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
    try:
        with Bare() as bare:
            bare.begin()
            bare.process.terminate()
            assert bare.process.wait(WAIT) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGTERM, ignored)


def test_it_ends_when_its_last_connection_has_drained(bare):
    bare.begin()
    assert bare.ask("drain", WAIT) == {"number": 1, "value": None}
    assert bare.last() == [LAST]
    assert bare.process.wait(WAIT) == 0


def test_it_does_not_end_and_the_kernel_ends_it():
    """A job that hangs in the child cannot keep it alive: an alarm is set before anything is asked to end."""
    hang = (
        "import relay.engine.tunnel, threading; relay.engine.tunnel.Tunnel.close = lambda *_: threading.Event().wait()"
    )
    code = parent._CHILD.replace(
        "from relay.spawning.child",
        f"{hang}\nimport relay.spawning.child; relay.spawning.child._LAST = 1\nfrom relay.spawning.child",
    )
    assert code != parent._CHILD
    original, parent._CHILD = parent._CHILD, code
    try:
        with Bare() as bare:
            bare.begin()
            bare.control.shutdown(socket.SHUT_WR)
            assert bare.process.wait(WAIT) == -signal.SIGALRM
    finally:
        parent._CHILD = original


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        ({"target": "nonsense"}, relay.AddressError),
        ({"listen": "nonsense"}, relay.AddressError),
        ({"via": ["far"]}, relay.AddressError),
        ({"options": {**OPTIONS, "timeout": -1}}, ValueError),
        ({"options": {**OPTIONS, "unknown": 1}}, TypeError),
        ({"listen": "192.0.2.1:0"}, OSError),
    ],
)
def test_what_it_cannot_do_it_says(request_, kind):
    with Bare(**request_) as bare:
        error = to_error(bare.begin()["error"])
        assert isinstance(error, kind)
        assert bare.process.wait(WAIT) == 0


def test_the_file_of_a_unix_socket_goes_when_the_target_is_wrong(tmp_path):
    path = tmp_path / "socket"
    with Bare(listen=f"unix://{path}", target="nonsense") as bare:
        assert "error" in bare.begin()
    assert not path.exists()


@pytest.fixture
def forwarder():
    """A log forwarder in this process, and what it sends to."""
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(WAIT)
        made = child.LogForwarder(near)
        yield made, Channel(far)
        far.shutdown(socket.SHUT_RDWR)
        made.finish({})


def record(text, *args):
    return logging.LogRecord("relay", logging.INFO, __file__, 1, text, args, None)


def texts_up_to(channel, last):
    """The texts of the log records up to this one."""
    texts = [""]
    while texts[-1] != last:
        texts.append(channel.receive(time.monotonic() + WAIT)["log"]["msg"])
    return texts[1:]


def test_log_records_come_in_order_and_before_the_end(forwarder):
    log, channel = forwarder
    for number in range(100):
        log.handle(record("%d", number))
    finishing = Thread(log.finish, {"last": {}})
    deadline = time.monotonic() + WAIT
    said = [channel.receive(deadline) for _ in range(101)]
    assert [message["log"]["msg"] for message in said[:-1]] == [str(number) for number in range(100)]
    assert said[-1] == {"last": {}}
    finishing.result()


def test_who_logs_never_waits_and_what_is_lost_is_counted(forwarder, monkeypatch):
    monkeypatch.setattr(child, "_LOG_LIMIT", 10)
    log, channel = forwarder
    sent = 3000  # far more than the socket's buffer takes
    for number in range(sent):
        log.handle(record("%d %s", number, "x" * 1000))
    reading = Thread(texts_up_to, channel, str(sent))
    wait_until(log._lines.empty)
    log.handle(record("%d", sent))
    seen = 0
    for text in reading.result():
        number, what = text.split()[:2] if " " in text else (text, "")
        if what == "log":  # "17 log records dropped: …"
            seen += int(number)
        else:
            assert int(number) == seen
            seen += 1
    assert seen == sent + 1


def test_a_log_record_that_cannot_be_written_out_is_reported_and_skipped(forwarder, capsys):
    log, channel = forwarder
    log.handle(record("%d", "no number"))
    log.handle(record("next"))
    assert channel.receive(time.monotonic() + WAIT)["log"]["msg"] == "next"
    assert "no number" in capsys.readouterr().err


def test_a_program_that_is_gone_stops_the_log_and_nobody_else(forwarder, monkeypatch):
    monkeypatch.setattr(child, "_LOG_LIMIT", 10)
    log, channel = forwarder
    channel._socket.shutdown(socket.SHUT_RDWR)
    for number in range(100):
        log.handle(record("%d", number))
    log._thread.join(WAIT)
    assert not log._thread.is_alive()
    assert log._lines.qsize() <= 11


def test_it_ends_at_once_if_the_program_has_died_before():
    """And the kernel has no process to send a signal for while one waits for a server."""
    with Bare(program=os.getppid()) as orphan:
        assert orphan.begin() is None
        assert orphan.process.wait(WAIT) == 0
