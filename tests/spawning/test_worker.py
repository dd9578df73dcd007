"""``relay.spawning.worker``: the child's side of a pool, in this process; the rest is in the tests of the pool."""

import errno
import gc
import logging
import os
import queue
import socket
import threading

import pytest
from helpers import WAIT, Thread, closed

import relay
from relay.eventloop import garbage
from relay.spawning import worker
from relay.spawning.pool_parts import SharedDescriptors
from relay.spawning.questions import Questions
from relay.spawning.wire import Channel, to_error
from relay.spawning.worker import HostedTunnel, Worker

OPTIONS = {
    "nconnect": -1,
    "timeout": None,
    "connect_timeout": 30.0,
    "idle_timeout": None,
    "linger": 60.0,
    "name": "hosted",
}


@pytest.fixture
def shared():
    yield from closed(SharedDescriptors(relay.listen(":0"), 2))


def copies(shared, index=0):
    return [os.dup(descriptor) for descriptor in shared.of_worker(index)]


def hosted(shared, said, **more):
    arguments = {"listen": ":0", "target": "127.0.0.1:1", "via": [], **more.pop("arguments", {})}
    recipe = ["relay.spawning.recipes:by_address", arguments]
    request = {"recipe": recipe, "options": OPTIONS, "number": 0, "workers": 2, "paused": False, "again": False}
    tunnel = HostedTunnel(7, copies(shared), {**request, **more}, said.put, lambda: said.put("over"))
    tunnel.start()
    return tunnel


def test_the_listening_socket_never_blocks(shared):
    """Not for a moment: its mode is that of all workers, and an accept that blocks holds up one that runs."""
    os.set_blocking(shared.of_worker(0)[-1], True)
    place, receive = worker._place(copies(shared), 0, 2)
    assert not os.get_blocking(receive.fileno())
    with receive.dup():
        assert not os.get_blocking(receive.fileno())
    receive.close()
    place.close()


def test_it_opens_and_closes_and_says_so(shared):
    said = queue.SimpleQueue()
    tunnel = hosted(shared, said)
    assert said.get(timeout=WAIT)["opened"] == 7
    assert tunnel.call("connections") == []
    tunnel.call("close", 0.0)
    message = said.get(timeout=WAIT)
    assert (message["closed"], message["last"]["metrics"].accepted, message["last"]["recent"]) == (7, 0, [])
    assert said.get(timeout=WAIT) == "over"
    assert tunnel.over.is_set()


def test_the_program_calls_only_what_is_meant_for_it(shared):
    said = queue.SimpleQueue()
    tunnel = hosted(shared, said)
    assert said.get(timeout=WAIT)["opened"] == 7
    for call in ("join", "_relay", "__class__"):
        with pytest.raises(ValueError, match=call):
            tunnel.call(call)
    tunnel.call("close", 0.0)
    assert tunnel.over.wait(WAIT)


def test_garbage_collections_look_only_at_what_came_after_the_first_tunnel(shared):
    garbage.keep_all.cache_clear()
    objects, said = [[], []], queue.SimpleQueue()
    for found in ([False, False], [False, True]):
        tunnel = hosted(shared, said)
        assert said.get(timeout=WAIT)["opened"] == 7
        assert [any(one is thing for one in gc.get_objects()) for thing in objects] == found
        objects[1] = []  # after the first tunnel
        tunnel.close(0.0)
        assert tunnel.over.wait(WAIT)
        said = queue.SimpleQueue()


def test_what_it_cannot_open_it_says(shared):
    said = queue.SimpleQueue()
    tunnel = hosted(shared, said, arguments={"target": "nonsense"})
    message = said.get(timeout=WAIT)
    assert message["failed"] == 7
    assert isinstance(to_error(message["error"]), relay.AddressError)
    assert tunnel.over.wait(WAIT)
    assert tunnel.call("metrics") is None


def test_one_that_was_open_before_is_tried_again_until_it_is_closed(shared, monkeypatch, caplog):
    monkeypatch.setattr(worker, "_BACKOFF", (0.001, 0.01))
    said = queue.SimpleQueue()
    missing = "tls://127.0.0.1:0?cert=/nowhere/cert.pem&key=/nowhere/key.pem"
    tunnel = hosted(shared, said, arguments={"listen": missing}, again=True)
    while len(caplog.records) < 3:
        assert said.empty()
        tunnel.over.wait(0.001)
    assert caplog.messages[0].startswith("hosted: cannot open it again for now: ")
    tunnel.close(0.0)
    assert said.get(timeout=WAIT) == {"closed": 7, "last": None, "expired": False}
    assert tunnel.over.wait(WAIT)


def test_an_error_of_any_kind_is_an_answer(shared, monkeypatch):
    """The worker goes on: its other tunnels have nothing to do with it."""
    start = threading.Thread.start

    def exhausted(thread):
        if thread.name.startswith("relay-open"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", exhausted)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        serving = Thread(Worker(theirs, print, print).serve, "relay worker 1")
        channel = Channel(ours)
        assert channel.receive()["name"] == "relay worker 1"
        asked = Questions(ours, channel, "asking")
        request = {"workers": 2}
        question = asked.ask("open", [7, request], logging.WARNING, shared.of_worker(0))
        with pytest.raises(relay.RelayError, match="RuntimeError: can't start new thread"):
            question.result(WAIT)
        assert asked.ask("metrics", [8], logging.WARNING).result(WAIT) is None
        ours.shutdown(socket.SHUT_WR)
        serving.result()
        theirs.close()
        asked.join()


def test_without_room_for_its_descriptors_it_says_so(shared, monkeypatch):
    monkeypatch.setattr(worker, "_place", exhausted)
    said = queue.SimpleQueue()
    tunnel = hosted(shared, said)
    message = said.get(timeout=WAIT)
    assert isinstance(to_error(message["error"]), OSError)
    assert tunnel.over.wait(WAIT)


def exhausted(descriptors, number, workers):
    for descriptor in descriptors:
        os.close(descriptor)
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
