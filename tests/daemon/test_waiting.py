"""``relay.daemon.waiting``: nothing happens before the first client."""

import contextlib
import errno
import os
import re
import threading

import httpx
import pytest
from helpers import WAIT, wait_until
from instance_double import Double

from relay.cli.run import load_server
from relay.daemon import waiting as module
from relay.daemon.sockets import open_control, open_status
from relay.daemon.waiting import Endpoints


class Waiter:
    """The main thread's wait, which the test runs."""

    def __init__(self):
        self.watched = {}

    def watch(self, descriptor, call):
        self.watched[descriptor] = call

    def forget(self, descriptor):
        self.watched.pop(descriptor, None)


def operations_threads():
    return [thread for thread in threading.enumerate() if thread.name == "relay-operations"]


@pytest.fixture
def made(tmp_path):
    waiter = Waiter()
    instances = []
    endpoints = [open_control(str(tmp_path / "c.sock")), open_status("127.0.0.1:0")]
    waiting = Endpoints(endpoints, lambda: instances.append(Double()) or instances[-1], waiter, load_server)
    yield waiting, waiter, endpoints, instances
    waiting.close()


def test_before_the_first_client_there_is_neither_a_thread_nor_an_instance(made):
    _waiting, waiter, endpoints, instances = made
    assert set(waiter.watched) == {endpoint.socket.fileno() for endpoint in endpoints}
    assert (operations_threads(), instances) == ([], [])


def test_the_first_client_is_served_and_so_are_others(made):
    _waiting, waiter, endpoints, instances = made
    host, port = endpoints[1].socket.getsockname()
    answers = []
    client = threading.Thread(target=lambda: answers.append(httpx.get(f"http://{host}:{port}/instance", timeout=WAIT)))
    client.start()
    next(iter(waiter.watched.values()))()
    client.join(WAIT)
    assert answers[0].json()["pid"] == 4711
    assert len(instances) == 1
    assert waiter.watched == {}, "the main thread waits for them no longer"


def test_a_close_without_a_client_removes_the_file(made, tmp_path):
    waiting, waiter, _, _ = made
    waiting.close()
    assert waiter.watched == {}
    assert not (tmp_path / "c.sock").exists()


def test_a_close_after_clients_removes_it_too_and_ends_the_thread(made, tmp_path):
    waiting, waiter, _, _ = made
    next(iter(waiter.watched.values()))()
    waiting.close()
    assert not operations_threads()
    assert not (tmp_path / "c.sock").exists()


def test_an_app_that_cannot_start_is_logged_and_closes_the_sockets(tmp_path, caplog):
    waiter = Waiter()
    waiting = Endpoints([open_control(str(tmp_path / "c.sock"))], lambda: 1 / 0, waiter, load_server)
    next(iter(waiter.watched.values()))()
    waiting.close()
    assert "the control and status server has ended" in caplog.text
    assert not (tmp_path / "c.sock").exists()


@pytest.mark.parametrize(
    "shortage",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        ImportError(f"_json.so: cannot open shared object file: {os.strerror(errno.EMFILE)}"),
    ],
    ids=["descriptors", "library"],
)
def test_a_shortage_at_the_first_client_makes_it_wait_and_closes_nothing(tmp_path, monkeypatch, caplog, shortage):
    """An operator looks just then."""
    monkeypatch.setattr(module, "RETRY", 0.01)
    waiter, tries = Waiter(), []

    def make():
        tries.append(1)
        if len(tries) < 3:
            raise shortage
        return Double()

    path = str(tmp_path / "c.sock")
    with contextlib.closing(Endpoints([open_control(path)], make, waiter, load_server)):
        next(iter(waiter.watched.values()))()
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=WAIT) as client:
            assert client.get("http://relay/instance").json()["pid"] == 4711
    assert len(re.findall("Too many open files; its clients wait", caplog.text)) == 1
    assert "has ended" not in caplog.text


def test_the_end_does_not_wait_for_the_end_of_a_shortage(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY", WAIT)
    waiter, tried = Waiter(), threading.Event()

    def make():
        tried.set()
        raise OSError(errno.EMFILE, "")

    waiting = Endpoints([open_control(str(tmp_path / "c.sock"))], make, waiter, load_server)
    next(iter(waiter.watched.values()))()
    assert tried.wait(WAIT)
    waiting.close()
    assert not operations_threads()


def test_without_a_thread_it_is_logged_and_relay_goes_on(made, monkeypatch, caplog, tmp_path):
    _waiting, waiter, _, _ = made

    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    next(iter(waiter.watched.values()))()
    assert "can't start new thread" in caplog.text
    assert not (tmp_path / "c.sock").exists()


@pytest.mark.parametrize("is_used", [False, True], ids=["no client", "one client"])
def test_retired_ones_close_by_themselves(made, tmp_path, is_used):
    waiting, waiter, _, _ = made
    if is_used:
        next(iter(waiter.watched.values()))()
    waiting.retire()
    wait_until(lambda: not operations_threads() and not (tmp_path / "c.sock").exists())
    assert waiter.watched == {}
