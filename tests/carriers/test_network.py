"""``relay.carriers.network``: which messages of the kernel are a change, and the end of a sleep."""

import logging
import os
import queue
import struct
import threading

import pytest
from helpers import WAIT, in_child, wait_until

from relay.carriers import network as module
from relay.carriers.network import Changes, subscribe, unsubscribe
from relay.eventloop.background import IOThread

NEW_LINK, DELETE_LINK, NEW_ADDRESS, DELETE_ADDRESS, NEW_ROUTE, DELETE_ROUTE = 16, 17, 20, 21, 24, 25


def message(kind, body):
    text = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    return text + bytes(-len(text) % 4)


def attribute(kind, value):
    text = struct.pack("=HH", 4 + len(value), kind) + value
    return text + bytes(-len(text) % 4)


def link(kind, index, *, is_running):
    return message(kind, struct.pack("=BxHiII", 0, 1, index, 0x40 if is_running else 0, 0))


def address(kind, text, *, scope=0, flags=0, lifetime=b"12345678"):
    return message(kind, struct.pack("=BBBBI", 2, 24, flags, scope, 7) + attribute(1, text) + attribute(6, lifetime))


def route(kind, gateway, *, length=0, expires=b"1234"):
    head = struct.pack("=BBBBBBBBI", 2, length, 0, 0, 254, 4, 0, 1, 0)
    return message(kind, head + attribute(5, gateway) + attribute(12, expires))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([address(NEW_ADDRESS, b"aaaa")], ["a new address"]),
        ([address(NEW_ADDRESS, b"aaaa"), address(NEW_ADDRESS, b"aaaa", lifetime=b"later on")], ["a new address", ""]),
        ([address(NEW_ADDRESS, b"aaaa"), address(DELETE_ADDRESS, b"aaaa")], ["a new address", "an address is gone"]),
        ([address(DELETE_ADDRESS, b"aaaa")], ["an address is gone"]),
        ([address(NEW_ADDRESS, b"aaaa", scope=253)], [""]),
        ([address(NEW_ADDRESS, b"aaaa", flags=0x40), address(NEW_ADDRESS, b"aaaa")], ["", "a new address"]),
        ([route(NEW_ROUTE, b"aaaa")], ["a new default route"]),
        ([route(NEW_ROUTE, b"aaaa"), route(NEW_ROUTE, b"aaaa", expires=b"5678")], ["a new default route", ""]),
        ([route(NEW_ROUTE, b"aaaa", length=24)], [""]),
        ([route(DELETE_ROUTE, b"aaaa")], [""]),
        (
            [route(NEW_ROUTE, b"aaaa"), route(DELETE_ROUTE, b"aaaa"), route(NEW_ROUTE, b"aaaa")],
            ["a new default route", "", "a new default route"],
        ),
        ([link(NEW_LINK, 3, is_running=True), link(NEW_LINK, 3, is_running=True)], ["a link is up", ""]),
        ([link(NEW_LINK, 3, is_running=False), link(NEW_LINK, 3, is_running=True)], ["", "a link is up"]),
        ([link(NEW_LINK, 3, is_running=True), link(DELETE_LINK, 3, is_running=True)], ["a link is up", ""]),
        ([address(NEW_ADDRESS, b"aaaa") + link(NEW_LINK, 3, is_running=False)], ["a new address"]),
        ([message(3, b""), b"", b"short"], ["", "", ""]),
    ],
)  # fmt: skip
def test_what_is_a_change(messages, expected):
    changes = Changes()
    assert [changes.read(one) for one in messages] == expected


class Subscriber:
    """A client of the I/O thread that subscribes with the first ``call``."""

    def __init__(self):
        self.told = queue.SimpleQueue()
        self.home = IOThread.acquire(self)

    def call(self, function):
        done = threading.Event()
        self.home.loop.call(lambda: (function(self.home, self.told.put), done.set()))
        assert done.wait(WAIT)

    def abandon(self):
        pass


@pytest.fixture
def subscriber():
    made = Subscriber()
    yield made
    made.call(unsubscribe)
    made.home.release(made)


def test_the_end_of_a_sleep_is_reported_and_a_clock_that_was_set_is_not(subscriber, monkeypatch):
    slept = [10.0]
    clock, alarm = os.pipe()
    monkeypatch.setattr(module, "_seconds_slept", lambda: slept[0])
    monkeypatch.setattr(module, "_clock_watch", lambda: clock)
    subscriber.call(subscribe)
    with os.fdopen(alarm, "wb", buffering=0) as alarm:
        alarm.write(b"was set.")
        slept[0] += 3600.0
        alarm.write(b"sleep...")
        assert subscriber.told.get(timeout=WAIT) == "the machine slept for 3600 s"
    assert subscriber.told.empty()


def test_the_last_one_releases_the_descriptors(subscriber):
    before = len(os.listdir("/proc/self/fd"))
    subscriber.call(subscribe)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    subscriber.call(unsubscribe)
    assert len(os.listdir("/proc/self/fd")) == before
    subscriber.call(unsubscribe)


def test_a_forked_child_has_none_of_it(subscriber):
    subscriber.call(subscribe)
    assert in_child(lambda: 0 if not module._watches else 1) == 0
    wait_until(lambda: module._watches)


def test_without_it_carriers_go_on(subscriber, monkeypatch, caplog):
    def fails(*words):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module.socket, "socket", fails)
    with caplog.at_level(logging.DEBUG, "relay"):
        subscriber.call(subscribe)
    assert "its changes are not reported" in caplog.text
