"""``relay.aio``: connecting and waiting for a tunnel without ever holding up the loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import inspect
import select
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import BLOCK, WAIT, TLSEnd, black_hole, receive_all, refusing, wait_until

import relay
from relay import aio
from relay.streams.dialer import Dialer
from relay.testing import Leaks, check_leaks
from relay.testing.ssh.login import Login

BEATS = 50  # turns of the loop


def run(work):
    """Return what a coroutine returns, in a loop of its own and within a time."""
    return asyncio.run(asyncio.wait_for(work, 3 * WAIT))


def has_begun():
    """Return whether the thread runs that relay moves bytes in, which an attempt needs first."""
    return any(thread.name == "relay-io" for thread in threading.enumerate())


async def until(condition):
    """As ``wait_until``, while the loop goes on."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110  (what has no event of its own)
            await asyncio.sleep(0.002)


class Gate:
    """A wait of another thread, which the loop ends: if the loop stands still, it waits in vain."""

    def __init__(self):
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self, *_):
        self.reached.set()
        assert self.opened.wait(WAIT), "the loop stands still"
        return True


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture
def lookup(monkeypatch, gate):
    """The look-up of names, which waits at the gate; one that is unknown does not leave this machine."""
    look_up = socket.getaddrinfo

    def waiting(name, *some, **more):
        gate.wait()
        if name == "no.such.name":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(name, *some, **more)

    monkeypatch.setattr(socket, "getaddrinfo", waiting)


@pytest.fixture
def factory(monkeypatch, gate):
    """The making of a factory, which waits at the gate."""
    target = aio.target
    monkeypatch.setattr(aio, "target", lambda *arguments: gate.wait() and target(*arguments))


@pytest.fixture
def login(monkeypatch, gate):
    """The check of a key by the server, which waits at the gate."""
    check = Login.check_auth_publickey
    monkeypatch.setattr(Login, "check_auth_publickey", lambda self, *key: gate.wait() and check(self, *key))


def url_of(server):
    return "{}:{}".format(*server.address)


async def echoed(connected, text=b"hello"):
    """Return what an echo server sends back up to the end of file; closes the socket."""
    reader, writer = await asyncio.open_connection(sock=connected)
    writer.write(text)
    writer.write_eof()
    data = await reader.read()
    writer.close()
    await writer.wait_closed()
    return data


# Connecting.


def test_it_is_there_after_import_relay_and_not_before():
    assert relay.aio is aio
    assert "aio" in dir(relay)


def test_it_returns_a_nonblocking_socket(echo_server):
    connected = run(aio.connect(url_of(echo_server)))
    assert type(connected) is socket.socket
    assert connected.gettimeout() == 0.0
    assert run(echoed(connected)) == b"hello"


@pytest.mark.parametrize("way", ["tcp", "name", "unix", "tls", "exec"])
def test_every_target(serve, tmp_path, certificates, way, spawner_thread):
    def over_tls(connection):
        end = TLSEnd(connection, certificates.server(), server_side=True)
        end.sendall(receive_all(end))
        end.shutdown(socket.SHUT_WR)

    def plain(connection):
        connection.sendall(receive_all(connection))

    server = serve(over_tls if way == "tls" else plain, *([f"{tmp_path}/socket"] if way == "unix" else []))
    url = {
        "tcp": lambda: url_of(server),
        "name": lambda: f"localhost:{server.address[1]}",
        "unix": lambda: f"unix://{server.address}",
        "tls": lambda: f"tls://localhost:{server.address[1]}?ca={certificates.ca}",
        "exec": lambda: "exec:cat",
    }[way]()

    async def work():
        return await echoed(await aio.connect(url), BLOCK)

    with check_leaks(WAIT):
        assert run(work()) == BLOCK


def test_half_close_over_ssh(far_end, serve):
    """A request that ends by a half-close, and an answer that could not be given before."""
    server = serve(lambda connection: connection.sendall(hashlib.sha256(receive_all(connection)).digest()))

    async def work():
        return await echoed(await aio.connect(url_of(server), via=[far_end.url]), BLOCK * 4)

    assert run(work()) == hashlib.sha256(BLOCK * 4).digest()


def test_many_at_once_share_one_connection(far_end, echo_server):
    before = far_end.logins

    async def one(number):
        text = b"%d " % number * 100
        assert await echoed(await aio.connect(url_of(echo_server), via=[far_end.url]), text) == text

    async def work():
        await asyncio.gather(*map(one, range(200)))

    run(work())
    assert far_end.logins - before == 1


def test_no_attempt_has_a_thread_of_its_own(make_ssh_server, backend):
    """Two hundred that the server lets wait at one time: there are as many threads of relay as for one."""
    asked, go_on = [], threading.Event()
    server = make_ssh_server(permit=lambda target: asked.append(target) or not go_on.wait(WAIT))

    async def threads(count):
        tasks = [
            asyncio.create_task(aio.connect("127.0.0.1:1", [f"{server.url}&backend={backend}"])) for _ in range(count)
        ]
        await until(lambda: len(asked) == count)
        await until(lambda: not any("connecting" in thread.name for thread in threading.enumerate()))
        found = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("relay"))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        asked.clear()
        return found

    try:
        assert run(threads(1)) == run(threads(200))
    finally:
        go_on.set()


# Giving up, while the loop goes on.


@contextlib.contextmanager
def looking_up(request, gate):
    request.getfixturevalue("lookup")
    yield "no.such.name:1", [], gate.reached.is_set


@contextlib.contextmanager
def making(request, gate):
    request.getfixturevalue("factory")
    yield "127.0.0.1:1", [], gate.reached.is_set


@contextlib.contextmanager
def connecting(request, gate):
    with black_hole() as hole:
        yield "{}:{}".format(*hole.getsockname()), [], has_begun


@contextlib.contextmanager
def shaking_hands(request, gate):
    with silent() as (place, connected):
        yield f"tls://{place}", [], connected


@contextlib.contextmanager
def waiting_for_a_banner(request, gate, backend="paramiko"):
    with silent() as (place, connected):
        yield "127.0.0.1:1", [f"ssh://me@{place}?config=/dev/null&backend={backend}"], connected


@contextlib.contextmanager
def waiting_for_a_banner_with_ssh(request, gate):
    with waiting_for_a_banner(request, gate, "openssh") as given:
        yield given


@contextlib.contextmanager
def logging_in(request, gate, backend="paramiko"):
    request.getfixturevalue("login")
    with relay.testing.SSHServer() as server:
        yield "127.0.0.1:1", [f"{server.url}&backend={backend}"], gate.reached.is_set


@contextlib.contextmanager
def opening(request, gate, backend="paramiko"):
    with relay.testing.SSHServer(permit=gate.wait) as server:
        yield "127.0.0.1:1", [f"{server.url}&backend={backend}"], gate.reached.is_set


@contextlib.contextmanager
def opening_with_ssh(request, gate):
    with opening(request, gate, "openssh") as given:
        yield given


@contextlib.contextmanager
def asking_a_proxy(request, gate, protocol="socks5"):
    with silent() as (place, connected):
        yield "127.0.0.1:1", [f"{protocol}://{place}"], connected


@contextlib.contextmanager
def logging_in_through_a_program(request, gate):
    """A program that leads nowhere, as a ProxyCommand does."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder, "there")
        program = f"exec:sh -c '> {there}; exec sleep 600'"
        yield "127.0.0.1:1", [program, "ssh://me@127.0.0.1?config=/dev/null"], there.exists


@contextlib.contextmanager
def meeting_a_bridge(request, gate):
    with silent() as (place, connected):
        yield f"i2p://name.i2p?sam={place}", [], connected


@contextlib.contextmanager
def silent():
    """A server that never sends anything; its address, and whether a client is there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield "{}:{}".format(*listening.getsockname()), lambda: select.select([listening], [], [], 0)[0]


STEPS = [
    making,
    looking_up,
    connecting,
    shaking_hands,
    waiting_for_a_banner,
    waiting_for_a_banner_with_ssh,
    logging_in,
    opening,
    opening_with_ssh,
    asking_a_proxy,
    logging_in_through_a_program,
    meeting_a_bridge,
]


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_an_attempt_that_is_given_up_leaves_nothing(step, how, request, gate, spawner_thread):
    """Also while the loop goes on."""
    with step(request, gate) as (url, via, reached):

        async def work():
            await asyncio.to_thread(int)  # the thread of the loop's own for such things
            leaks = Leaks()
            limits = []
            task = asyncio.create_task(limited(aio.connect(url, via, 3 * WAIT), limits))
            await until(lambda: task.done() or reached())
            assert not task.done(), f"it came to nothing before: {task}"
            task.cancel() if how == "cancel" else limits[0].reschedule(0)
            await asyncio.wait([task])
            assert task.cancelled() if how == "cancel" else type(task.exception()) is TimeoutError
            gate.opened.set()  # nothing stops the resolver, and files that are being read
            assert not leaks.left(WAIT)

        run(work())


async def limited(work, limits):
    async with asyncio.timeout(None) as limit:
        limits.append(limit)
        return await work


@pytest.mark.parametrize("step", [connecting, logging_in], ids=lambda step: step.__name__)
def test_an_attempt_in_a_loop_that_is_closed_ends_with_its_time(step, request, gate, spawner_thread):
    with step(request, gate) as (url, via, reached):
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # "task was destroyed but it is pending": so it is
        loop.run_until_complete(asyncio.to_thread(int))
        leaks = Leaks()
        seconds = 0.25
        while not reached():  # on a busy machine, the time may be over before
            seconds *= 2
            task = loop.create_task(aio.connect(url, via, timeout=seconds))
            loop.run_until_complete(until(lambda task=task: reached() or task.done()))
            if task.done():
                assert task.exception().reason == "connect_timeout"
        loop.close()
        del task, loop
        gate.opened.set()
        wait_until(lambda: gc.collect() >= 0 and not leaks.left(0))


class Late(Dialer):
    """Tells when the test says so."""

    def __init__(self):
        super().__init__("the target")
        self.dialed = threading.Event()
        self.given_up = self.released = False

    def dial(self, deadline, done, *, self_contained=False, wait_for_reconnect=True):
        assert self_contained and not wait_for_reconnect
        self.deadline, self.done = deadline, done
        self.dialed.set()

        def give_up():
            self.given_up = True

        return give_up

    def close_when_idle(self):
        self.released = True

    def tell(self):
        """Open a stream; returns its far end."""
        near, far = socket.socketpair()
        far.settimeout(WAIT)
        done, self.done = self.done, None
        done(relay.Stream(near))
        return far


@pytest.fixture
def late(monkeypatch):
    made = Late()
    monkeypatch.setattr(aio, "target", lambda *_: made)
    return made


def test_who_never_tells_is_waited_for_no_longer(late):
    with pytest.raises(relay.ConnectError, match="the target: no answer in time") as caught:
        run(aio.connect("h:1", timeout=0.01))
    assert caught.value.reason == "connect_timeout"
    assert late.given_up and late.released
    with late.tell() as far:
        assert far.recv(1) == b""  # a stream that comes too late is closed


def test_a_stream_that_came_before_the_cancel_is_closed(late):
    async def work():
        task = asyncio.create_task(aio.connect("h:1"))
        await until(late.dialed.is_set)
        far = late.tell()
        task.cancel()  # the loop has not turned since
        await asyncio.wait([task])
        assert task.cancelled()
        return far

    with run(work()) as far:
        assert far.recv(1) == b""
    assert late.given_up and late.released


def test_a_stream_for_a_loop_that_is_closed_is_closed(late):
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(aio.connect("h:1"))
    loop.run_until_complete(until(late.dialed.is_set))
    loop.close()
    with late.tell() as far:
        assert far.recv(1) == b""
    assert not task.done()
    del task
    gc.collect()
    assert late.given_up and late.released


def test_a_factory_that_cannot_begin_is_let_go(late):
    def dial(*_, **__):
        raise OSError("no thread")

    late.dial = dial
    with pytest.raises(OSError, match="no thread"):
        run(aio.connect("h:1"))
    assert late.released


def test_one_that_fails_ends_the_others_of_its_group(serve):
    async def work():
        with refusing() as (host, port), black_hole() as hole:
            others = []
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    others += [group.create_task(aio.connect("{}:{}".format(*hole.getsockname()))) for _ in range(5)]
                    await until(has_begun)
                    group.create_task(aio.connect(f"{host}:{port}"))
            assert caught.value.subgroup(relay.ConnectError) is not None
            assert all(task.cancelled() for task in others)

    run(work())


# Failing.


def failures(sshd, tmp_path):
    """Failures by name: an address and its hops."""
    return {
        "refused": ("127.0.0.1:1", []),
        "missing": (f"unix://{tmp_path}/none", []),
        "no name": ("no.such.name:1", []),
        "refused behind": ("127.0.0.1:1", [sshd.url]),
        "host key": ("127.0.0.1:1", [sshd.url.replace(str(sshd.known_hosts), str(tmp_path / "hosts"))]),
        "no server": ("127.0.0.1:2", ["ssh://me@127.0.0.1:1?config=/dev/null"]),
        "hop 2 of 2": ("127.0.0.1:1", [sshd.url, "ssh://me@127.0.0.1:1?config=/dev/null"]),
        "no file": (f"tls://h:1?ca={tmp_path}/none", []),
        "bad address": ("nonsense", []),
        "bad hop": ("127.0.0.1:1", ["tcp://127.0.0.1:1"]),
    }


@pytest.mark.usefixtures("lookup")
@pytest.mark.parametrize("name", failures(SimpleNamespace(url="", known_hosts=""), Path()))
def test_it_fails_as_connect_does(name, sshd, tmp_path, gate):
    gate.opened.set()
    (tmp_path / "hosts").write_text("")
    url, via = failures(sshd, tmp_path)[name]
    with pytest.raises((OSError, ValueError)) as plain:
        relay.connect(url, via, WAIT)
    with pytest.raises((OSError, ValueError)) as caught:
        run(aio.connect(url, via, WAIT))
    assert type(caught.value) is type(plain.value)
    assert str(caught.value) == str(plain.value)
    assert getattr(caught.value, "reason", None) == getattr(plain.value, "reason", None)


@pytest.mark.parametrize("step", [connecting, shaking_hands, logging_in], ids=lambda step: step.__name__)
def test_the_time_is_kept(step, request, gate):
    with step(request, gate) as (url, via, _), pytest.raises(relay.ConnectError) as caught:
        run(aio.connect(url, via, timeout=0.1))
    assert caught.value.reason == "connect_timeout"


@pytest.mark.parametrize(("timeout", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_bad_times_are_refused(timeout, error):
    with pytest.raises(error, match="^timeout: "):
        run(aio.connect("127.0.0.1:1", timeout=timeout))


def test_no_limit_is_one_too(echo_server):
    run(aio.connect(url_of(echo_server), timeout=None)).close()


# A tunnel.


def test_a_tunnel_has_what_the_other_has():
    assert inspect.signature(aio.Tunnel) == inspect.signature(relay.Tunnel)
    names = {"address", "close", "connections", "join", "kill", "metrics", "name", "pause", "recent", "resume", "stats"}
    assert {name for name in dir(aio.Tunnel) if not name.startswith("_")} == names - {"name"} | {"name"}
    for name in ("close", "join", "connections", "pause", "recent", "resume", "stats"):
        ours, other = getattr(aio.Tunnel, name), getattr(relay.Tunnel, name)
        assert inspect.signature(ours).parameters == inspect.signature(other).parameters
        assert inspect.iscoroutinefunction(ours) == (name in ("close", "join"))


def test_it_relays(echo_server):
    async def work():
        async with aio.Tunnel(relay.listen(":0"), echo_server.factory(), 2, None, name="mine") as tunnel:
            reader, writer = await asyncio.open_connection(*tunnel.address)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            assert [one.state for one in tunnel.connections()] == ["open"]
            assert tunnel.stats().active == 1
            assert tunnel.name == "mine" and "1 connections, open" in repr(tunnel)
            writer.close()
            await writer.wait_closed()
            await until(tunnel.recent)
        assert "closed" in repr(tunnel)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*tunnel.address)

    run(work())


def test_pause_and_resume_are_in_force_at_once(echo_server):
    async def work():
        async with aio.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
            tunnel.pause()
            reader, writer = await asyncio.open_connection(*tunnel.address)
            writer.write(b"x")
            for _ in range(BEATS):
                await asyncio.sleep(0)
            assert tunnel.stats().accepted == 0
            tunnel.resume()
            assert await reader.readexactly(1) == b"x"
            tunnel.pause(close=True)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionResetError):
                await writer.wait_closed()

    run(work())


def test_the_loop_goes_on_while_it_drains(echo_server):
    """The connection that is waited for is one of this loop's own."""

    async def work():
        tunnel = aio.Tunnel(relay.listen(":0"), echo_server.factory())
        reader, writer = await asyncio.open_connection(*tunnel.address)
        writer.write(b"x")
        await reader.readexactly(1)
        closing = asyncio.create_task(tunnel.close(drain=WAIT))
        await until(lambda: "closing" in repr(tunnel))
        assert not closing.done()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await closing
        await writer.wait_closed()
        assert [one.reason for one in tunnel.recent()] == ["done"]

    run(work())


def test_who_is_cancelled_while_it_drains_closes_it_all_the_same(echo_server):
    async def work():
        async with aio.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
            with socket.create_connection(tunnel.address, WAIT):
                await until(lambda: tunnel.stats().active)
                closing = asyncio.create_task(tunnel.close(drain=WAIT))
                await until(lambda: "closing" in repr(tunnel))
                closing.cancel()
                await asyncio.wait([closing])
                assert closing.cancelled()
                await tunnel.close()
                assert [one.reason for one in tunnel.recent()] == ["closed"]

    run(work())


def test_joining_has_no_thread_and_may_be_given_up(echo_server):
    async def work():
        async with aio.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
            before = set(threading.enumerate())
            joining = [asyncio.create_task(tunnel.join()) for _ in range(100)]
            await tunnel.join(0.01)
            assert set(threading.enumerate()) == before
            assert not any(task.done() for task in joining)
            for task in joining[:50]:
                task.cancel()
            await asyncio.wait(joining[:50])
            await tunnel.close()
            await asyncio.gather(*joining[50:])
            await tunnel.join()
            await tunnel.close()

    run(work())


def test_an_error_inside_closes_it(echo_server):
    kept = []

    async def work():
        async with aio.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
            kept.append(tunnel)
            raise KeyError

    with pytest.raises(KeyError):
        run(work())
    assert "closed" in repr(kept[0])


@pytest.mark.parametrize(("options", "error"), [({"nconnect": 0}, ValueError), ({"limit": 1}, TypeError)])
def test_bad_arguments_leave_the_listener_with_the_caller(options, error):
    async def work():
        with relay.listen(":0") as receive:
            with pytest.raises(error):
                aio.Tunnel(receive, relay.tcp("127.0.0.1", 1), **options)
            assert receive.fileno() >= 0

    run(work())


@pytest.mark.parametrize(("drain", "error"), [(-1, ValueError), ("1", TypeError)])
def test_a_bad_drain_is_refused(echo_server, drain: Any, error):
    async def work():
        async with aio.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
            with pytest.raises(error, match="^drain: "):
                await tunnel.close(drain)

    run(work())


def test_it_outlives_a_loop_that_is_closed(echo_server):
    async def work():
        return aio.Tunnel(relay.listen(":0"), echo_server.factory())

    tunnel = run(work())
    with socket.create_connection(tunnel.address, WAIT) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    run(tunnel.close())
    assert "closed" in repr(tunnel)


def test_on_end_is_called_before_close_returns(echo_server):
    seen = []

    async def work():
        async with aio.Tunnel(relay.listen(":0"), echo_server.factory(), on_end=seen.append) as tunnel:
            reader, writer = await asyncio.open_connection(*tunnel.address)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        writer.close()
        assert [record.reason for record in seen] == ["closed"]

    run(work())
