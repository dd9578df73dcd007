"""Drivers reach real servers through chains, and no other program of this machine can use them: no port listens.

Those that take a socket get one from ``relay.connect``, those that take a path one from ``relay.local``.
"""

import asyncio
import contextlib
import http.client
import itertools
import os
import socket
import threading
from pathlib import Path

import httpx
import pg8000.native
import psutil
import psycopg
import pytest
import redis
import zmq
from helpers import BLOCK, WAIT, wait_until
from postgres import PAGE, PASSWORD
from sshd import FarEnd

import relay
from relay.testing import check_leaks

ROWS = "SELECT n, md5(n::text), CASE WHEN n % 3 > 0 THEN repeat('ä', n % 100) END FROM generate_series(1, 5000) AS n"


WAYS = {"embedded-paramiko": ["ssh_server"], "two hops-openssh": ["sshd", "make_sshd"]}


@pytest.fixture(params=WAYS)
def via(request, openssh_server):
    """Hops to where all servers are; both ends of each are on this machine."""
    backend = request.param.rpartition("-")[2]
    rigs = map(request.getfixturevalue, WAYS[request.param])
    return [FarEnd("", backend, rig() if callable(rig) else rig).url for rig in rigs]


@contextlib.contextmanager
def alone():
    """Check that the body opens no port, and leaves nothing while all servers go on."""
    with check_leaks(WAIT):
        others = psutil.Process().children()  # servers, and tests with routers, which run beside this one
        before = ports(others)
        yield lambda: ports(others) - before
        wait_until(lambda: ports(others) <= before)


def ports(others=()):
    """Return where this program and its children listen over TCP: pairs of a process and the inode of a socket.

    :param others: children that do not count, nor do theirs.

    One look at the table of the kernel serves all of them: after thousands of tests it is long.
    """
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    rows = (line.split() for line in table.splitlines() if " 0A " in line)  # LISTEN (proc_net_tcp.rst)
    listening = {f"socket:[{row[9]}]": int(row[9]) for row in rows}
    mine = psutil.Process()
    found = set()
    own = [child for child in mine.children() if child not in others]
    for process in (mine, *own, *itertools.chain.from_iterable(map(_descendants, own))):
        for descriptor in _descriptors(process.pid):
            with contextlib.suppress(OSError):  # it is closed since
                link = os.readlink(descriptor)
                if link in listening:
                    found.add((process.pid, listening[link]))
    return found


def _descendants(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:  # it has ended since
        return []


def _descriptors(pid):
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended since
        return []


def directly(database):
    """Return the answer of the database to a client beside it."""
    with psycopg.connect(host=str(database.folder), port=database.port, user=database.name, dbname="postgres") as one:
        return one.execute(ROWS).fetchall()


def test_ports_are_seen():
    """A look that finds nothing because it looks at nothing would be worth nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert (os.getpid(), os.fstat(listening.fileno()).st_ino) in ports()


# A socket.


@pytest.mark.parametrize("place", ["tcp", "unix"])
def test_pg8000(via, database, place):
    url = {"tcp": database.address, "unix": f"unix://{database.socket}"}[place]
    rows = directly(database)
    with alone() as opened:
        connected = relay.connect(url, via)
        driver = pg8000.native.Connection(database.name, sock=connected, database="postgres", password=PASSWORD)
        assert list(map(tuple, driver.run(ROWS))) == rows
        with pytest.raises(pg8000.native.DatabaseError, match="division by zero"):
            driver.run("SELECT 1 / 0")
        assert driver.run("SELECT :text", text="x" * 1_000_000) == [["x" * 1_000_000]]
        assert opened() == set()
        driver.close()
        assert connected.fileno() == -1


def test_http_client(via, web_server):
    with alone() as opened:
        client = http.client.HTTPConnection("a.name.that.nobody.looks.up")
        client.sock = relay.connect(web_server.address, via)
        for _ in range(3):
            client.request("GET", "/page")
            answer = client.getresponse()
            assert (answer.status, answer.read().decode()) == (200, PAGE)
        assert opened() == set()
        client.close()


def test_ssl(via, web_server, certificates):
    """The wrapped socket is the one that was connected: ``wrap_socket`` detaches it."""
    with alone() as opened:
        connected = relay.connect(f"127.0.0.1:{web_server.tls_port}", via)
        with certificates.client().wrap_socket(connected, server_hostname="localhost") as wrapped:
            assert connected.fileno() == -1
            client = http.client.HTTPConnection("localhost")
            client.sock = wrapped
            client.request("GET", "/page", headers={"Connection": "close"})
            assert client.getresponse().read().decode() == PAGE
            assert opened() == set()
            client.close()


async def redis_over(reader, writer):
    writer.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n" % (len(BLOCK), BLOCK))
    assert await reader.readline() == b"+OK\r\n"
    assert await reader.readline() == b"$%d\r\n" % len(BLOCK)
    assert await reader.readexactly(len(BLOCK)) == BLOCK
    assert await reader.readline() == b"\r\n"
    writer.write(b"*1\r\n$4\r\nQUIT\r\n")
    writer.write_eof()
    assert await reader.read() == b"+OK\r\n"
    writer.close()
    await writer.wait_closed()


def test_asyncio_open_connection(via, redis_server):
    async def work(connected):
        await redis_over(*await asyncio.open_connection(sock=connected))

    with alone() as opened:
        connected = relay.connect(redis_server.address, via)
        assert opened() == set()
        asyncio.run(asyncio.wait_for(work(connected), 3 * WAIT))


def test_relay_aio(via, redis_server):
    async def work(opened):
        connected = await relay.aio.connect(f"unix://{redis_server.socket}", via)
        assert opened() == set()
        await redis_over(*await asyncio.open_connection(sock=connected))

    with alone() as opened:
        asyncio.run(asyncio.wait_for(work(opened), 3 * WAIT))


# A path.


def libpq(path, database):
    """A connection of libpq, which wants the directory of a socket whose name it knows."""
    return psycopg.connect(
        host=os.path.dirname(path), port=5432, user=database.name, dbname="postgres", password=PASSWORD
    )


@pytest.mark.parametrize("place", ["tcp", "unix"])
def test_psycopg(via, database, place):
    url = {"tcp": database.address, "unix": f"unix://{database.socket}"}[place]
    rows = directly(database)
    with alone() as opened, relay.local(url, via, name=".s.PGSQL.5432") as path:
        with libpq(path, database) as driver:
            assert driver.execute(ROWS).fetchall() == rows
            with driver.cursor().copy(f"COPY ({ROWS}) TO STDOUT") as copy:
                assert sum(map(len, copy)) > 250_000
            assert opened() == set()


def test_psycopg_cancels_what_takes_too_long(via, database):
    """Which libpq does over a second connection to the same place."""
    with alone(), relay.local(database.address, via, name=".s.PGSQL.5432") as path:
        with libpq(path, database) as driver, libpq(path, database) as other:
            sleeping = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"

            def cancel(pid):
                wait_until(lambda: other.execute(sleeping, [pid]).fetchone() == (1,) or other.rollback())
                driver.cancel_safe(timeout=WAIT)

            canceller = threading.Thread(target=cancel, args=[driver.info.backend_pid])
            canceller.start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                driver.execute("SELECT pg_sleep(60)")
            canceller.join(WAIT)
            driver.rollback()
            assert driver.execute("SELECT 1").fetchone() == (1,)


def test_redis(via, redis_server):
    with alone() as opened, relay.local(redis_server.address, via) as path:
        with redis.Redis(unix_socket_path=path, socket_timeout=WAIT) as driver:
            driver.set("block", BLOCK)
            assert driver.get("block") == BLOCK
            with driver.pipeline() as pipeline:
                for number in range(1000):
                    pipeline.echo(str(number))
                assert pipeline.execute() == [b"%d" % number for number in range(1000)]
            with driver.pubsub(ignore_subscribe_messages=True) as listening:
                listening.subscribe("news")
                listening.get_message(timeout=WAIT)  # which says that it has
                assert driver.publish("news", "hello") == 1
                assert listening.get_message(timeout=WAIT)["data"] == b"hello"
            assert opened() == set()


def test_httpx(via, web_server):
    with alone() as opened, relay.local(web_server.address, via) as path:
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), trust_env=False, timeout=WAIT) as client:
            for _ in range(3):
                assert client.get("http://a.name.that.nobody.looks.up/page").text == PAGE
            assert opened() == set()


def test_httpx_in_a_loop(via, web_server):
    async def work(path):
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=path), trust_env=False, timeout=WAIT
        ) as client:
            pages = await asyncio.gather(*(client.get("http://web/page") for _ in range(5)))
            assert {page.text for page in pages} == {PAGE}

    with alone(), relay.local(f"unix://{web_server.socket}", via) as path:
        asyncio.run(asyncio.wait_for(work(path), 3 * WAIT))


@pytest.fixture
def answering():
    """A ØMQ socket that answers whatever it is asked, backwards; where it is."""
    with zmq.Context() as context, context.socket(zmq.REP) as server:
        port = server.bind_to_random_port("tcp://127.0.0.1")

        def serve():
            with contextlib.suppress(zmq.ContextTerminated), server:
                while True:
                    server.send(server.recv()[::-1])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{port}"
        context.term()
        thread.join(WAIT)


def test_zmq(via, answering):
    with alone() as opened, relay.local(answering, via) as path:
        with zmq.Context() as context, context.socket(zmq.REQ) as client:
            client.setsockopt(zmq.LINGER, 0)
            client.setsockopt(zmq.RCVTIMEO, int(WAIT * 1000))
            client.connect(f"ipc://{path}")
            for text in (b"hello", BLOCK, b""):
                client.send(text)
                assert client.recv() == text[::-1]
            assert opened() == set()


def test_leaving_it_ends_a_driver_that_is_still_connected(via, database, redis_server):
    with alone():
        with relay.local(database.address, via, name=".s.PGSQL.5432") as path:
            driver = libpq(path, database)
            assert driver.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):
            driver.execute("SELECT 1")
        driver.close()
        with relay.local(redis_server.address, via) as path:
            other = redis.Redis(unix_socket_path=path, retry=None, socket_timeout=WAIT)
            assert other.ping()
        with pytest.raises(redis.ConnectionError):
            other.ping()
        other.close()
