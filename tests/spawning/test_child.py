"""``relay.spawning.child``: what runs in the child, seen from the other end of its sockets."""

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

from relay.engine.statistics import Statistics
from relay.spawning import child, parent
from relay.spawning.pool_parts import SharedDescriptors
from relay.spawning.wire import Channel, encode

KEY = 7


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
        self.request = {"level": 30, "program": os.getpid(), "secrets": [], "is_single": True, "path": parent._path()}
        self.request.update(request)

    def begin(self):
        self.channel.send(self.request)
        return self.channel.receive(time.monotonic() + WAIT)

    def open(self):
        """Begin, open a tunnel, and wait until it listens."""
        assert self.begin()["name"] == f"relay {'child' if self.request['is_single'] else 'worker'} {self.process.pid}"
        arguments = {"listen": ":0", "target": "127.0.0.1:1", "via": []}
        request = {"recipe": ["relay.spawning.recipes:by_address", arguments], "options": {"name": "bare"}}
        request |= {"number": 0, "workers": 1, "paused": False, "again": False}
        shared = SharedDescriptors(None, 1)
        assert self.ask("open", KEY, request, descriptors=shared.of_worker(0)) == {"number": 1, "value": None}
        shared.close()
        opened = Channel(self.events).receive(time.monotonic() + WAIT)
        assert opened["opened"] == KEY

    def ask(self, call, *arguments, number=1, descriptors=()):
        message = {"number": number, "call": call, "arguments": arguments, "level": 30, "descriptors": len(descriptors)}
        socket.send_fds(self.control, [encode(message)], descriptors)
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
LAST = {"closed": KEY, "last": {"metrics": METRICS, "recent": []}, "expired": False}


@pytest.mark.parametrize("is_single", [True, False])
def test_it_ends_when_the_program_has_nothing_more_to_ask(is_single):
    """The end of file alone does it: no parent has died here."""
    with Bare(is_single=is_single) as bare:
        bare.open()
        assert bare.ask("metrics", KEY, number=7) == {"number": 7, "value": METRICS}
        bare.control.shutdown(socket.SHUT_WR)
        assert bare.last() == [LAST]
        assert bare.process.wait(WAIT) == 0


def test_it_ends_when_the_program_is_gone(bare):
    bare.open()
    bare.control.close()
    bare.events.close()
    assert bare.process.wait(WAIT) == 0


def test_it_ends_before_it_has_begun(bare):
    bare.control.close()
    assert bare.process.wait(WAIT) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_with_a_single_tunnel_it_ends_on_a_signal(bare, number):
    bare.open()
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


def test_it_ends_with_its_single_tunnel(bare):
    bare.open()
    assert bare.ask("close", KEY, WAIT) == {"number": 1, "value": None}
    assert bare.last() == [LAST]
    assert bare.process.wait(WAIT) == 0


def test_a_signal_ends_the_login_before_it_listens(bare, tmp_path):
    """And the child in order: what the login has made is removed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT)
        bare.begin()
        via = [f"ssh://me@127.0.0.1:{silent.getsockname()[1]}?config=/dev/null&known_hosts=/dev/null&backend=paramiko"]
        recipe = ["relay.spawning.recipes:by_address", {"listen": ":0", "target": "a:1", "via": via}, WAIT]
        request = {"recipe": recipe, "options": {"name": "bare"}, "number": 0, "workers": 1}
        shared = SharedDescriptors(None, 1)
        bare.ask("open", KEY, {**request, "paused": False, "again": False}, descriptors=shared.of_worker(0))
        shared.close()
        with silent.accept()[0]:
            bare.process.terminate()
            assert [message.get("failed") for message in bare.last()] == [KEY]
            assert bare.process.wait(WAIT) == 0


def test_it_does_not_end_and_the_kernel_ends_it():
    """A job that hangs in the child cannot keep it alive: an alarm is set before anything is asked to end."""
    hang = "import relay.spawning.worker, threading; relay.spawning.worker.Worker.close = threading.Event().wait"
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


@pytest.fixture
def forwarder():
    """A log forwarder in this process, and what it sends to."""
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(WAIT)
        made = child.LogForwarder(near)
        yield made, Channel(far)
        far.shutdown(socket.SHUT_RDWR)
        made.finish()


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
    log.report({"last": {}})
    finishing = Thread(log.finish)
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
