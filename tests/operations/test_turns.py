"""Answers at the status addresses: few at a time, shared, in pages; no health check waits for them."""

import dataclasses
import socket
import threading

import httpx
import pytest
from helpers import WAIT, Thread, wait_until
from instance_double import Double, served

from relay.daemon.failures import NotFoundError
from relay.operations.app import SHOWN
from relay.operations.tables import PAGE

CLIENTS = 60  # more than there are threads for all that may block


class Slow(Double):
    """An instance whose answers take until the test lets them."""

    def __init__(self):
        super().__init__()
        self.release = threading.Event()
        self._lock = threading.Lock()
        self.begun = self.running = self.peak = 0

    def connections(self, tunnel=None, first=0, most=None):
        with self._lock:
            self.begun += 1
            self.running += 1
            self.peak = max(self.peak, self.running)
        assert self.release.wait(WAIT)
        with self._lock:
            self.running -= 1
        return super().connections(tunnel, first, most)


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def app(slow, tmp_path):
    with served(slow, tmp_path) as app:
        yield app
        slow.release.set()


def ask(app, path):
    return httpx.get("http://{}:{}{}".format(*app.address, path), timeout=WAIT)


def crowd(app, slow, paths):
    """Let clients ask; returns their threads once as many are answered as may be."""
    clients = [Thread(ask, app, path) for path in paths]
    wait_until(lambda: slow.running == min(SHOWN, len(set(paths))))
    return clients


def check_that_others_are_served(app):
    for path in ("/livez", "/readyz", "/readyz/b"):
        assert ask(app, path).json()["status"] == "ok"
    assert app.get("/instance").status_code == 200, "at the control socket"


def test_different_questions_are_answered_two_at_a_time_and_hold_up_no_health_check(app, slow):
    clients = crowd(app, slow, [f"/connections?from={number}" for number in range(CLIENTS)])
    check_that_others_are_served(app)
    assert slow.running == SHOWN
    slow.release.set()
    assert {client.result().status_code for client in clients} == {200}
    assert (slow.begun, slow.peak) == (CLIENTS, SHOWN)


def test_those_who_ask_the_same_share_one_answer(app, slow):
    clients = crowd(app, slow, ["/connections"] * CLIENTS)
    check_that_others_are_served(app)
    assert slow.begun == 1
    slow.release.set()
    answers = [client.result() for client in clients]
    assert {answer.content for answer in answers} == {answers[0].content}
    # Those who came after it was over for a while got another one.
    assert slow.begun < CLIENTS
    slow.open.clear()
    wait_until(lambda: ask(app, "/connections").json()["connections"] == [])


def test_an_answer_at_the_control_socket_is_never_older_than_its_question(app, slow):
    slow.release.set()
    for number in range(20):
        slow.open["c1"] = dataclasses.replace(slow.open["c1"], received=number)
        assert app.get("/connections").json()["connections"][0]["received"] == number


def test_a_health_check_is_never_older_than_its_question(app, slow):
    for state, status in (("paused", 503), ("listening", 200)) * 10:
        slow.change("a", state=state)
        assert ask(app, "/readyz").status_code == status
        assert ask(app, "/readyz/a").status_code == status


def test_errors_are_shared_too_and_not_kept(app, slow):
    missing = {"nope"}

    def connections(tunnel=None, first=0, most=None):
        slow.begun += 1
        if tunnel in missing:
            raise NotFoundError("nope: there is no such tunnel")
        return []

    slow.connections = connections
    assert ask(app, "/connections?tunnel=nope").status_code == 404
    missing.clear()
    assert ask(app, "/connections?tunnel=nope").json()["connections"] == []


def test_a_client_that_leaves_disturbs_no_other_who_asks_the_same(app, slow):
    with socket.create_connection(app.address, WAIT) as client:
        client.sendall(b"GET /connections HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: slow.running == 1)
    other = Thread(ask, app, "/connections")
    slow.release.set()
    assert other.result().status_code == 200


def test_long_lists_come_in_pages_at_a_status_address_and_whole_at_the_control_socket(tmp_path):
    double = Double()
    count = 2 * PAGE + 3
    double.open = {f"c{number}": double.connection(f"c{number}", "a") for number in range(count)}
    double.ended = [double.connection(f"e{number}", "a") for number in range(count)]
    double.all = {
        f"t{number}": dataclasses.replace(double.all["a"], name=f"t{number}") for number in range(count)
    } | double.all
    double.banned = [dataclasses.replace(double.banned[0], key=f"k{number}") for number in range(count)]
    kinds = {"/connections": "id", "/connections/recent": "id", "/tunnels": "name", "/bans": "key"}
    with served(double, tmp_path) as app:
        for path, key in kinds.items():
            kind = path.split("/")[1]
            whole = app.get(path).json()[kind]
            assert len(whole) >= count and "more" not in app.get(path).json()
            pages, found = [], []
            while not pages or pages[-1]["more"]:
                pages.append(app.tcp.get(f"{path}?from={len(found)}").json())
                found += pages[-1][kind]
            assert [len(page[kind]) for page in pages] == [PAGE, PAGE, len(whole) - 2 * PAGE]
            assert [row[key] for row in found] == [row[key] for row in whole]
        beyond = app.tcp.get("/connections?from=9999999").json()
        assert beyond == {"connections": [], "more": False}
        assert app.tcp.get("/quotas").json()["more"] is False
        for wrong in ("-1", "x", "1e3", "9" * 8):
            answer = app.tcp.get(f"/connections?from={wrong}")
            assert (answer.status_code, answer.json()) == (400, {"error": "from: expected a number of rows"})
