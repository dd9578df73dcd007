"""Server-sent events: one sample for all pages, none without a page, and no page that harms another one."""

import contextlib
import json
import logging
import socket
import threading
import time

import httpx
import pytest
from helpers import WAIT, wait_until
from instance_double import Double, served

from relay.operations import app as app_module
from relay.operations import events, server


class Counting(Double):
    """A double that counts its samples."""

    samples = 0

    def carriers(self):
        self.samples += 1
        return super().carriers()


@pytest.fixture
def double():
    return Counting()


@pytest.fixture
def app(double, tmp_path, monkeypatch):
    made = []

    class Kept(events.Events):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(app_module, "Events", Kept)
    monkeypatch.setattr(events, "INTERVAL", 0.02)
    with served(double, tmp_path) as app:
        app.streams = lambda: made[0]._streams
        app.is_sampled = lambda: made[0]._sampler is not None
        yield app


@contextlib.contextmanager
def listening(app, query=""):
    """A page: gives what returns the next event, as its name and its data."""
    with httpx.Client(base_url="http://{}:{}".format(*app.address), timeout=WAIT, trust_env=False) as client:
        with client.stream("GET", f"/events{query}") as answer:
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()

            def take():
                name = "message"
                for line in lines:
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        return name, json.loads(value)
                return None

            take.headers = answer.headers
            yield take


def raw(app, head="GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
    """A page that reads nothing until the test does."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(WAIT)
    made.connect(app.address)
    made.sendall(head.encode())
    return made


def rest_of(client):
    """All until the end, which may be a reset."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


def test_events_have_the_state_and_follow_it(app, double):
    with listening(app) as take:
        assert take.headers["content-type"] == "text/event-stream"
        assert take.headers["cache-control"] == "no-store"
        name, state = take()
        assert name == "message"
        assert [row["name"] for row in state["tunnels"]["rows"]] == ["a", "b"]
        double.change("a", state="paused")
        wait_until(lambda: take()[1]["tunnels"]["rows"][0]["state"] == "paused")


def test_each_page_has_its_view(app):
    with listening(app, "?connections=-peer&filter=c-nothing") as take, listening(app, "?filter=1.2.3.4") as other:
        assert take()[1]["connections"] == {"total": 2, "matching": 0, "from": 0, "rows": []}
        assert other()[1]["connections"]["matching"] == 2


def test_one_sample_serves_all_and_none_is_taken_without_a_page(app, double):
    with listening(app) as one, listening(app) as other:
        times = set(), set()

        def is_shared():
            for take, seen in zip((one, other), times, strict=True):
                seen.add(take()[1]["time"])
            return times[0] & times[1]

        wait_until(is_shared)
    wait_until(lambda: not app.is_sampled())
    before = double.samples
    assert app.get("/instance").status_code == 200
    assert not app.is_sampled() and double.samples == before
    with listening(app) as take:
        assert take()[0] == "message"


def test_a_slow_sample_is_followed_by_a_longer_pause(app, double, monkeypatch):
    monkeypatch.setattr(events, "SHARE", 1_000_000)
    with listening(app) as one:
        assert one()[0] == "message"
        with listening(app) as other:
            assert other()[0] == "message", "the last sample, at once"
        assert double.samples == 1


@pytest.mark.parametrize(
    ("query", "words"), [("?tunnels=nope", "tunnels"), ("?filter=" + "x" * 300, "filter"), ("?tunnels_from=x", "rows")]
)
def test_a_wrong_query_is_a_400(app, query, words):
    answer = app.get(f"/events{query}")
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("site", "status"), [("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)]
)
def test_a_page_of_another_site_cannot_hold_a_stream(app, site, status):
    with app.tcp.stream("GET", "/events", headers={"Sec-Fetch-Site": site}) as answer:
        assert answer.status_code == status


def test_another_token_ends_the_pages_of_the_old_one(app):
    with listening(app) as take:
        assert take()[0] == "message"
        app.status.token = "another-token-after-a-reload"
        while take() is not None:
            pass
    assert app.tcp.get("/events").status_code == 401


def test_head_ends_at_once(app):
    answer = app.tcp.head("/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_a_bug_in_a_sample_is_logged_and_the_next_one_comes(app, double, caplog):
    broken = threading.Event()

    def tunnels():
        if not broken.is_set():
            broken.set()
            raise ZeroDivisionError
        return Double.tunnels(double)

    double.tunnels = tunnels
    with listening(app) as take:
        assert take()[0] == "message"
    assert "the status page could not read the state" in caplog.text


def test_a_page_that_goes_away_leaves_nothing(app):
    for _ in range(5):
        with raw(app) as client:
            assert client.recv(12) == b"HTTP/1.1 200"
    with raw(app):
        pass
    wait_until(lambda: not app.streams())


def test_beyond_the_limit_the_oldest_page_is_ended_and_knows_why(app, monkeypatch):
    monkeypatch.setattr(events, "MOST_STREAMS", 2)
    with listening(app) as one, listening(app) as two:
        assert one() and two()
        with listening(app) as three:
            assert three()
            found = one()
            while found[0] == "message":
                found = one()
            assert found == ("end", {"reason": "more than 2 pages are open"})
            assert one() is None
            assert two() and three()


@pytest.fixture
def large(double):
    """Events of 12 kB, so that buffers are soon full."""
    double.lines = [double.lines[0]._replace(message="x" * 400)] * 50


def test_a_hundred_pages_that_read_nothing_harm_nobody(app, large, monkeypatch):
    monkeypatch.setattr(server, "ANSWER_TIME", 1.0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(raw(app)) for _ in range(100)]
        with listening(app) as take:
            assert take()
            assert len(app.streams()) <= events.MOST_STREAMS
            assert app.tcp.get("/livez").status_code == 200
            wait_until(lambda: take() and len(app.streams()) == 1)  # each other one is ended, or cut off
            assert take()[0] == "message"
        for client in silent:
            assert len(rest_of(client)) < 4 << 20


def test_a_page_that_reads_nothing_for_a_while_skips_samples(app, double, large, monkeypatch):
    monkeypatch.setattr(server, "ANSWER_TIME", WAIT)
    with raw(app) as client:
        wait_until(lambda: double.samples > 150)
        now, received, count = time.time(), b"", 0
        while True:
            event, end, rest = received.partition(b"\n\n")
            if not end:
                received += client.recv(65536)
                continue
            received = rest
            data = event.rpartition(b"data: ")[2]
            if data.startswith(b"{") and json.loads(data)["time"] >= now:
                break
            count += 1
    assert count < 100, "the buffers hold some; the others were never made for this page"


def test_a_request_with_a_body_is_no_way_around_its_limit(app):
    head = "GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw(app, head) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                client.sendall(b"4000\r\n" + bytes(0x4000) + b"\r\n")
        rest_of(client)
    wait_until(lambda: not app.streams())
    assert app.get("/instance").status_code == 200


def test_the_end_of_the_program_ends_the_pages(double, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(events, "INTERVAL", 0.02)
    with contextlib.ExitStack() as stack:
        with served(double, tmp_path) as app:
            one = stack.enter_context(listening(app))
            silent = stack.enter_context(raw(app))
            assert one()
        while one() is not None:  # it ends as it should, so that the browser connects again
            pass
        rest_of(silent)  # until its end
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
