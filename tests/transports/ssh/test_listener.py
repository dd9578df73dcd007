"""``relay.ssh_listen``: the forward that is asked for again, and what ``accept`` says meanwhile."""

import errno
import queue
import socket
import threading

import pytest
import ssh_world
from helpers import WAIT, Thread, ending, makes, receive_exactly, wait_until
from ssh_world import World

import relay
from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress
from relay.api.ssh import listen_ssh
from relay.carriers.carrier import Carrier
from relay.carriers.link import CarrierState
from relay.transports.ssh import listener as module
from relay.transports.ssh.connection import LOGIN

ANY = TCPAddress("127.0.0.1", 0)
GRANTED = TCPAddress("127.0.0.1", 40001)


@pytest.fixture
def world(monkeypatch):
    world = World(monkeypatch)
    monkeypatch.setattr(module, "_BACKOFF", (0.01, 0.02))
    return world


@pytest.fixture
def listen(world):
    """Makes listeners that are closed with the test."""
    yield from makes(lambda place=ANY, server="bastion": listen_ssh(SSHServer(server), place))


@pytest.fixture
def listen_patiently(world):
    """Begins to make a listener that retries, in a thread; returns the thread and what it has begun to make."""

    def make(place=ANY):
        begun = queue.SimpleQueue()
        return Thread(listen_ssh, SSHServer("bastion"), place, (), begun.put), begun.get(timeout=WAIT)

    yield from makes(make, lambda made: made[1].close())


def test_its_retries_are_reported(world, monkeypatch):
    world.errors = [relay.ConnectError("ssh://bastion: away")]
    seen = []

    def opening(listener):
        listener.subscribe(lambda state, error: seen.append((state, str(error))))

    with listen_ssh(SSHServer("bastion"), ANY, (), opening):
        assert (CarrierState.BACKING_OFF, "ssh://bastion: away") in seen


@pytest.mark.parametrize(
    "lost", [relay.ConnectError("no answer in time"), relay.CarrierError("the connection was lost")]
)
def test_one_that_is_patient_asks_again_for_its_first_forward(world, listen_patiently, lost, caplog):
    world.refusals = [lost] * 5
    thread, listener = listen_patiently()
    assert thread.result() is listener
    assert world.asked == [ANY] * 6
    assert "listening at" not in caplog.text, "there was nothing before"


@pytest.mark.parametrize("what", ["login", "forward"])
def test_one_that_is_patient_fails_with_what_a_retry_cannot_fix(world, listen_patiently, what, caplog):
    if what == "login":
        error, world.errors = relay.AuthenticationError, [relay.AuthenticationError("ssh://bastion: no")]
    else:
        error, world.refusals = relay.ForwardError, [relay.ForwardError("ssh://bastion: no")]
    thread, listener = listen_patiently()
    with pytest.raises(error, match="ssh://bastion: no"):
        thread.result()
    assert listener.state == "closed"
    assert "will not retry" not in caplog.text, "the caller reports it"


def test_one_that_is_patient_ends_where_each_login_ends_at_the_same_point(world, listen_patiently, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/ssh")
    world.errors = [relay.CarrierError("ssh://bastion: it hung up", stage=LOGIN) for _ in range(9)]
    thread, _ = listen_patiently()
    with pytest.raises(relay.CarrierError, match="it hung up; 4 times in a row"):
        thread.result()
    assert len(world.errors) == 5


def test_closing_one_that_is_patient_ends_its_wait(world, listen_patiently):
    world.errors = [relay.ConnectError("ssh://bastion: away") for _ in range(9999)]
    thread, listener = listen_patiently()
    listener.close()
    with pytest.raises(relay.CarrierError, match="the listener was closed"):
        thread.result()
    assert listener.state == "closed"


def come(world, place=GRANTED, peer=("10.0.0.1", 5), connection=-1):
    """Connect there; returns the far end."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(WAIT)
    world.connections[connection].forwards[place](relay.Stream(near), peer)
    return far


def test_it_listens_where_the_server_says(world, listen):
    listener = listen()
    assert listener.address == listener.getsockname() == ("127.0.0.1", 40001)
    assert listener.state == "up"
    with come(world) as far:
        stream, peer = listener.accept()
        with stream:
            stream.socket.send(b"x")
            assert receive_exactly(far, 1) == b"x"
            assert peer == ("10.0.0.1", 5)
    assert repr(listener) == "<relay.SSHListener at 127.0.0.1:40001 on ssh://bastion, up>"


@pytest.mark.parametrize(
    "error", [None, OSError(errno.EMFILE, "too many files"), relay.CarrierError("ssh://bastion: odd")]
)
def test_the_forward_is_asked_for_again_with_the_same_port(world, listen, caplog, error):
    listener = listen()
    world.refusals[:] = [error] * 2 if error else []
    world.connections[0].lose()
    wait_until(lambda: len(world.connections) == 2 and world.connections[1].forwards)
    assert world.asked == [ANY] + [GRANTED] * (3 if error else 1)
    with come(world):
        listener.accept()[0].close()
    wait_until(lambda: "ssh://bastion: listening at 127.0.0.1:40001 again" in caplog.text)


def test_a_port_that_our_dead_session_holds_is_asked_for_until_it_is_free(world, listen, caplog):
    listener = listen()
    world.refusals[:] = [relay.ForwardError("ssh://bastion: port 40001 is taken")] * 5
    world.connections[0].lose()
    wait_until(lambda: len(world.connections) == 2 and world.connections[1].forwards)
    assert world.connections[1].stopped == [GRANTED] * 3
    assert "port 40001 is taken; retrying" in caplog.text
    with come(world):
        listener.accept()[0].close()


def test_without_a_thread_the_forward_is_asked_for_a_little_later(world, listen, monkeypatch, caplog):
    """No other event asks for it on that connection, which stays up."""
    listener, start, refused = listen(), threading.Thread.start, []

    def refuse(thread):
        if thread.name.endswith(" forward") and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    world.connections[0].lose()
    wait_until(lambda: len(world.connections) == 2 and world.connections[1].forwards)
    assert (
        len(refused) == 2
        and "ssh://bastion: cannot request the forward: can't start new thread; retrying in 0.0 s" in caplog.text
    )
    with come(world):
        listener.accept()[0].close()


@pytest.fixture
def slow(world, monkeypatch):
    """The second connection grants GRANTED when the test says so."""
    entered, go = threading.Event(), threading.Event()

    class Slow(ssh_world.Connection):
        def listen(self, place, accepted, deadline):
            if place == GRANTED and world.connections.index(self) == 1:
                entered.set()
                assert go.wait(WAIT)
            return super().listen(place, accepted, deadline)

    monkeypatch.setattr(ssh_world, "Connection", Slow)
    yield entered, go
    go.set()


def all_have_asked():
    wait_until(lambda: not any(thread.name.endswith("forward") for thread in threading.enumerate()))


def test_a_grant_of_a_connection_that_was_lost_does_not_count(world, slow, listen):
    listener, (entered, go) = listen(), slow
    world.connections[0].lose()
    assert entered.wait(WAIT)
    world.connections[1].lose()
    wait_until(lambda: len(world.connections) == 3 and listener._link is world.connections[2])
    go.set()
    all_have_asked()
    assert world.connections[1].forwards and listener._link is world.connections[2]


def test_a_grant_that_comes_after_close_is_given_back(world, slow, listen):
    listener, other, (entered, go) = listen(), listen(TCPAddress("127.0.0.1", 1001)), slow
    world.connections[0].lose()
    assert entered.wait(WAIT)
    listener.close()
    go.set()
    all_have_asked()
    wait_until(lambda: other.state == "up" and GRANTED in world.connections[1].stopped)


def test_a_connection_that_is_lost_before_anybody_listens_is_missed_by_nobody(world, listen, monkeypatch):
    subscribe = Carrier.subscribe

    def late(carrier, watcher):
        world.connections[0].lose()
        wait_until(lambda: len(world.connections) == 2 and carrier.link is world.connections[1])
        subscribe(carrier, watcher)

    monkeypatch.setattr(Carrier, "subscribe", late)
    listen()
    wait_until(lambda: GRANTED in world.connections[1].forwards)


def test_a_listener_that_is_closed_hears_no_more(world, listen):
    one, other = listen(), listen(TCPAddress("127.0.0.1", 1001))
    one.close()
    assert other._holder.current._watchers == [other._on_state]


@pytest.mark.parametrize(("losses", "attempts"), [(1, 2), (99, 4)])
def test_connections_that_are_lost_while_they_are_asked_are_made_again_and_not_for_ever(
    world, listen, losses, attempts
):
    class Lossy(list):
        def pop(self, index):
            world.connections[-1].lose()
            return super().pop(index)

    world.refusals = Lossy([relay.CarrierError("ssh://bastion: gone")] * losses)
    if losses == 1:
        assert listen().address == ("127.0.0.1", 40001)
    else:
        with pytest.raises(relay.CarrierError, match="gone"):
            listen()
    assert len(world.asked) == attempts


def test_the_error_says_which_hop_it_belongs_to(world, monkeypatch):
    hops, server = (SSHServer("first"),), SSHServer("second")
    world.errors = [relay.HostKeyError("ssh://first: the key has changed")]
    with pytest.raises(relay.HostKeyError, match=r"^hop 1 of 2 \(ssh://first\): the key has changed"):
        listen_ssh(server, ANY, hops)
    with listen_ssh(server, ANY, hops) as listener:
        world.errors = [relay.AuthenticationError("ssh://second: none accepted")]
        world.connections[-1].lose()
        with pytest.raises(relay.AuthenticationError, match=r"^hop 2 of 2 \(ssh://second\): none accepted"):
            listener.accept()


def test_two_listeners_share_a_connection(world, listen):
    one, other = listen(TCPAddress("127.0.0.1", 1001)), listen(TCPAddress("127.0.0.1", 1002))
    assert len(world.connections) == 1
    one.close()
    assert world.connections[0].stopped == [TCPAddress("127.0.0.1", 1001)]
    with come(world, TCPAddress("127.0.0.1", 1002)):
        other.accept()[0].close()
    other.close()
    assert world.connections[0].closed
    assert len(world.connections[0].stopped) == 1, "the end of the connection ends the last forward"


def test_two_listeners_do_not_take_a_place_from_each_other(world, listen):
    one = listen(TCPAddress("127.0.0.1", 1001))
    with pytest.raises(relay.ForwardError, match="ssh://bastion: 127.0.0.1:1001 is in use by another listener"):
        listen(TCPAddress("127.0.0.1", 1001))
    any_port = listen()
    with pytest.raises(relay.ForwardError, match="40001 is in use by another listener"):
        listen(GRANTED)
    assert world.connections[0].stopped == []
    with come(world, TCPAddress("127.0.0.1", 1001)):
        one.accept()[0].close()
    one.close()
    any_port_again = listen(TCPAddress("127.0.0.1", 1001))
    any_port.close()
    listen(GRANTED)
    any_port_again.close()


def test_close_does_not_wait_for_a_server_that_does_not_answer(world, listen):
    one, other, go = listen(TCPAddress("127.0.0.1", 1001)), listen(), threading.Event()
    world.connections[0].stop = go.wait
    Thread(one.close).result()
    go.set()
    world.connections[0].stop = lambda: None
    wait_until(lambda: TCPAddress("127.0.0.1", 1001) not in world.connections[0].forwards)
    assert other.state == "up"


def test_without_a_thread_close_cancels_the_forward_itself(world, listen, monkeypatch):
    one, other, start = listen(TCPAddress("127.0.0.1", 1001)), listen(), threading.Thread.start

    def refuse(thread):
        if thread.name.endswith(" forward's end"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        one.close()
    assert TCPAddress("127.0.0.1", 1001) not in world.connections[0].forwards
    assert other.state == "up"


def test_who_was_not_accepted_is_ended(world, listen):
    listener = listen()
    far = come(world)
    listener.close()
    assert ending(far) == "reset"
    far.close()


def test_not_more_wait_than_a_backlog_holds(world, listen, monkeypatch):
    monkeypatch.setattr("relay.streams.accept_queue.MOST", 2)
    listener = listen()
    ends = [come(world) for _ in range(3)]
    assert ending(ends[2]) == "reset"
    for _ in range(2):
        listener.accept()[0].close()
    for end in ends:
        end.close()


def test_a_login_that_fails_later_is_raised_by_accept_once(world, listen, monkeypatch):
    listener = listen()
    world.errors = [relay.AuthenticationError("ssh://bastion: none accepted")]
    world.connections[0].lose()
    with pytest.raises(relay.AuthenticationError):
        listener.accept()
    monkeypatch.setattr(module, "_FINAL", 0.01)
    monkeypatch.setattr("relay.carriers.retry.RETRY_REJECTED_AFTER", 0.0)
    accepting = Thread(listener.accept)
    wait_until(lambda: len(world.connections) == 2 and world.connections[1].forwards)
    with come(world):
        accepting.result()[0].close()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("h", "127.0.0.1", 65536), ValueError, "port"),
        (("h", "127.0.0.1", -1), ValueError, "port"),
        (("h", "", 0), ValueError, "host"),
        (("-oProxyCommand=x", "127.0.0.1", 0), ValueError, "not a host or an alias"),
        ((7,), TypeError, "server"),
    ],
)
def test_bad_arguments_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        relay.ssh_listen(*arguments)
    with pytest.raises(TypeError, match="unexpected keyword"):
        relay.ssh_listen("h", sever="x")
