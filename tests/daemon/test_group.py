"""A group of tunnels, in this process: what other threads may call while it runs."""

import contextlib
import gc
import logging
import signal
import socket
import threading

import pytest
from group_rig import running, running_pair
from helpers import WAIT, is_gone, receive_exactly, wait_until

from relay.daemon.failures import ConflictError, NotFoundError
from relay.daemon.instance import Instance
from relay.daemon.member import MemberState
from relay.eventloop import garbage
from relay.operations.health import readiness
from relay.streams import exit_drain


@pytest.fixture
def group(echo_server):
    with running_pair("{}:{}".format(*echo_server.address)) as made:
        yield made


def state(group, name):
    return next(member.state for member in group.members if member.name == name)


def address_of(group, name):
    return group.member(name).relay.address


def connect(group, name):
    return socket.create_connection(address_of(group, name), WAIT)


def test_garbage_collections_look_only_at_what_came_after_the_beginning(echo_server):
    before = []
    garbage.keep_all.cache_clear()  # as in a process that has just started
    assert is_collected(before)
    with running_pair("{}:{}".format(*echo_server.address)):
        wait_until(lambda: not is_collected(before))
        assert is_collected([])


def is_collected(thing):
    """Return whether a garbage collection looks at it."""
    return any(one is thing for one in gc.get_objects())


def test_a_call_runs_in_the_main_thread_and_returns_its_result(group):
    here = threading.current_thread()
    assert group.call(lambda *words: (threading.current_thread() is not here, words), 1, 2) == (True, (1, 2))
    assert group.call(lambda: group.call(threading.current_thread)) is group.call(threading.current_thread)


def test_a_call_raises_what_its_function_raises(group):
    with pytest.raises(KeyboardInterrupt):
        group.call(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert group.call(lambda: 1) == 1


def test_calls_after_the_end_are_refused_and_so_are_those_that_wait(group):
    begun, goes_on, raised = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        assert goes_on.wait(WAIT)
        group.end(0)

    def wait():
        with pytest.raises(ConflictError, match="relay is ending"):
            group.call(pytest.fail, "it is over")
        raised.append(True)

    first = threading.Thread(target=group.call, args=(slow,))
    first.start()
    assert begun.wait(WAIT)
    second = threading.Thread(target=wait)
    second.start()
    wait_until(lambda: group._main_thread.has_callers)
    goes_on.set()
    first.join(WAIT)
    second.join(WAIT)
    assert raised == [True]
    wait_until(lambda: group._main_thread.is_over)
    with pytest.raises(ConflictError, match="relay is ending"):
        group.call(int)


def test_one_tunnel_is_paused_and_resumed(group):
    group.pause("a")
    assert (state(group, "a"), state(group, "b")) == (MemberState.PAUSED, MemberState.LISTENING)
    with connect(group, "a") as client:
        client.sendall(b"hello")
        group.resume("a")
        assert receive_exactly(client, 5) == b"hello"
    assert state(group, "a") is MemberState.LISTENING


def test_one_tunnel_drains_and_the_others_go_on(group):
    with connect(group, "a") as client, connect(group, "b") as other:
        client.sendall(b"1")
        assert receive_exactly(client, 1) == b"1"
        address = address_of(group, "a")
        group.drain("a")
        assert state(group, "a") is MemberState.DRAINING
        wait_until(lambda: is_gone(address))
        client.sendall(b"2")
        assert receive_exactly(client, 1) == b"2"
        client.close()
        wait_until(lambda: state(group, "a") is MemberState.CLOSED)
        other.sendall(b"3")
        assert receive_exactly(other, 1) == b"3"
    with pytest.raises(ConflictError, match="a: cannot pause: it is closed"):
        group.pause("a")


def test_a_drain_resets_what_is_left_after_its_time(group):
    with connect(group, "a") as client:
        client.sendall(b"1")
        assert receive_exactly(client, 1) == b"1"
        group.drain("a", 0)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        wait_until(lambda: state(group, "a") is MemberState.CLOSED)


def test_what_a_drain_has_reset_is_logged_for_a_tunnel_and_at_the_end(group, caplog):
    with connect(group, "a") as one, connect(group, "a") as two, connect(group, "b") as three:
        for client in (one, two, three):
            client.sendall(b"1")
            assert receive_exactly(client, 1) == b"1"
        group.drain("a", 0.01)
        wait_until(lambda: state(group, "a") is MemberState.CLOSED)
        group.stop()
        wait_until(lambda: group.is_ending)
        group.call(lambda: group._drain(group._find("b"), 0.01))  # sooner than its own limit
        wait_until(lambda: group._done)
    assert [line for line in caplog.messages if "drain over" in line] == [
        "a: drain over: 2 connections reset; raise drain to give them longer",
        "drain over: 1 connection reset; raise drain to give them longer",
    ]


@pytest.mark.parametrize("operation", ["pause", "resume", "drain"])
def test_an_unknown_name_is_an_error(group, operation):
    with pytest.raises(NotFoundError, match="c: there is no such tunnel"):
        getattr(group, operation)("c")


@pytest.fixture
def limits(monkeypatch):
    """The time limits of the exit that are set."""
    made = []
    monkeypatch.setattr(exit_drain, "limit", made.append)
    return made


@pytest.mark.parametrize("signals", [1, 2])
def test_the_exit_has_what_is_left_of_the_drain_and_5_s_after_a_second_signal(limits, echo_server, signals):
    with running_pair("{}:{}".format(*echo_server.address)) as group, connect(group, "a") as client:
        client.sendall(b"1")
        assert receive_exactly(client, 1) == b"1"
        group.stop()
        wait_until(lambda: group.is_ending)
        if signals == 2:
            group._main_thread.later(group._on_signal, signal.SIGTERM)
        else:
            client.close()
        wait_until(lambda: limits)
    (seconds,) = limits
    assert seconds == 5 if signals == 2 else 5 < seconds < WAIT


@pytest.fixture
def delayed(echo_server, tmp_path):
    """Starts the tunnels ``a`` and ``b`` of a file with a shutdown delay."""
    tunnels = "".join(
        f'[tunnels.{name}]\nlisten = ":0"\ntarget = "{echo_server.address[0]}:{echo_server.address[1]}"\n'
        for name in ("a", "b")
    )
    with contextlib.ExitStack() as stack:

        def start(seconds):
            text = f"shutdown_delay = {seconds}\n{tunnels}"
            return stack.enter_context(running(tmp_path / "relay.toml", text))

        yield start


def echoes(client):
    client.sendall(b"x")
    return receive_exactly(client, 1) == b"x"


def test_a_shutdown_delay_fails_readiness_and_serves_clients_until_the_next_signal(delayed):
    group = delayed(600)
    instance = Instance(group, "", str)
    assert readiness(instance).is_ok
    group.stop()
    wait_until(lambda: group.is_ending)
    assert not readiness(instance).is_ok
    group.drain("b", 0)
    wait_until(lambda: state(group, "b") is MemberState.CLOSED)  # which is not the end of all
    with connect(group, "a") as client:
        assert echoes(client)
        address = address_of(group, "a")
        group.stop()
        wait_until(lambda: is_gone(address))
        assert echoes(client)
        assert not group._done
    wait_until(lambda: group._done)


def test_a_shutdown_delay_ends_by_itself(delayed, caplog):
    caplog.set_level(logging.INFO, "relay.cli")
    group = delayed(0.01)
    group.stop()
    wait_until(lambda: group._done)
    assert [line for line in caplog.messages if "closing" in line] == [
        "SIGTERM: not ready; closing in 0.01 s; again to close now",
        "the shutdown delay is over: closing",
    ]


def test_a_process_that_has_taken_over_ends_a_shutdown_delay(delayed):
    group = delayed(600)
    group.stop()
    wait_until(lambda: group.is_ending)
    group.later(group.end_for, "process 1 has taken over")
    wait_until(lambda: group._done)


def test_no_shutdown_delay_is_waited_for_without_a_listening_tunnel(delayed):
    group = delayed(600)
    for name in ("a", "b"):
        group.pause(name)
    group.stop()
    wait_until(lambda: group._done)


def test_a_reload_changes_the_shutdown_delay(delayed, tmp_path):
    group = delayed(0)
    assert group.shutdown_delay == 0
    group.rewrite((tmp_path / "relay.toml").read_text().replace("= 0", "= 600"))
    assert group.shutdown_delay == 600
