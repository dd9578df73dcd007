"""The targets, and the public tools that load a relay in front of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import create_connection, socket
from typing import Any

from ..counted import CountedProcess
from ..jobs import DIRECT, HELD, Job, Target
from ..machine import LOOPBACK, MeasurementError, Process, compiled, free_port, pinned, program, reserved_port, run
from ..peers.i2p import World
from ..peers.tcp import PEERS, STATUS, inside, with_openssl
from ..sshd import DELAY, Server, delayed, linked, ssh_server
from .crowd import Crowd
from .status import scraped_each_second

SOURCES = Path(__file__).parents[1] / "c"
GIB = 2**30
FILE = 256 * 2**20  # bytes of the file to download
PATIENCE = 60.0  # seconds that a load may take beyond its own time
ANSWERS = 15.0  # seconds for one answer
ANSWER = "fifty bytes, which is what every request receives"

NGINX = """daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {descriptors}; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    log_format session '$ssl_session_reused $ssl_curve';
    server {{
        listen {address}{options};
        {tls}
        root .;
        location = / {{ return 200 "{answer}\\n"; }}
        location = /file {{ }}
    }}
}}
"""
TLS = """ssl_certificate server.pem;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets {tickets};
        access_log sessions.log session;"""

ENDS_TLS = """global
    maxconn 1000
defaults
    mode tcp
    timeout connect 30s
    timeout client 1h
    timeout server 1h
listen target
    bind {address} ssl crt both.pem
    server target 127.0.0.1:{port}
"""


@dataclass
class Relay:
    """One peer at work: where to reach it, and what it has cost since its load began (nothing if there is no relay)."""

    port: int
    process: Process | None = None
    _before: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """Its load begins."""
        self._before = self.process.cpu() if self.process else 0.0

    def cost(self, amount: float) -> dict[str, float]:
        """The processor time since :meth:`begin`, in seconds for each of ``amount`` pieces of work."""
        return {"cpu": (self.process.cpu() - self._before) / amount} if self.process else {}


class Lab:
    """The place of the measurements: starts targets and peers, each afresh, and ends them.

    :param directory: for configurations, logs and compiled programs.
    :param seconds: of load in one measurement.
    """

    def __init__(self, directory: Path, seconds: int) -> None:
        self.directory = directory
        self.seconds = seconds
        self.cores = sorted(os.sched_getaffinity(0))
        self._jobs = 0
        self._world: World | None = None  # one at a time, for as long as it is asked for: it takes a minute to be made
        self._kind = ""

    def i2p(self, kind: str, use: str = "") -> World:
        """A private I2P network; it stays up until another one is asked for, or the lab is closed.

        :param kind: of :data:`benchmarks.peers.i2p.WORLDS`.
        :param use: what it is for, if that would disturb other measurements.
        """
        if self._world is None or self._kind != kind + use:
            self.close()
            self._jobs += 1
            self._world = World(kind, self.directory / str(self._jobs))
            self._kind = kind + use
        return self._world

    def close(self) -> None:
        """End the peers that stay up between measurements."""
        world, self._world = self._world, None
        if world is not None:
            world.close()

    def _job(self, target: Target, connections: int = HELD) -> Job:
        self._jobs += 1
        directory = self.directory / str(self._jobs)
        directory.mkdir()
        return Job(directory, free_port(), target, self.cores[-1], connections)

    @contextmanager
    def relay(self, name: str, target: Target, connections: int = HELD) -> Iterator[Relay]:
        """One peer in front of ``target``.

        :param connections: the most that there will be at one time.
        """
        if name == DIRECT:
            yield Relay(target.port)
            return
        job = self._job(target, connections)
        with Process(PEERS[name].start(job), job.port, job.directory / "log") as process:
            with scraped_each_second(job.directory / STATUS) if name == "relay-status" else nullcontext():
                yield Relay(job.port, process)

    @contextmanager
    def counted(
        self, start: Callable[[Job], list[str]], target: Target, *, begin: bool = False
    ) -> Iterator[CountedProcess]:
        """One peer in front of ``target`` whose instructions are counted.

        :param start: makes its argument list.
        :param begin: whether its start counts, too.
        """
        with reserved_port() as port:
            job = replace(self._job(target), port=port)
            process = CountedProcess(start(job), port, job.directory, start=begin)
        with process:
            yield process

    def folder(self) -> Path:
        """An empty directory."""
        return self._job(Target(0)).directory

    def certificate(self) -> Path:
        """A certificate for ``localhost`` in a directory of its own; returns the file of its authority."""
        return self._job(Target(0)).certify()

    def command(self, name: str, target: Target) -> list[str]:
        """Return the command of a peer that connects standard input and output to ``target``."""
        return PEERS[name].start(self._job(target))

    @contextmanager
    def pouring(self, *words: str) -> Iterator[Target]:
        """A server of pour.c.

        :param words: what it does, and what comes after its port.
        """
        job = self._job(Target(0))
        kind, *more = words
        with Process([self.pour(), kind, str(job.port), *more], job.port, job.directory / "log"):
            yield Target(job.port)

    def pour(self) -> str:
        """The program of pour.c."""
        return compiled(SOURCES / "pour.c", self.directory)

    @contextmanager
    def one_core(self) -> Iterator[None]:
        """Whatever is started inside shares one core, and not the one of busy threads if there is another."""
        with pinned(self.cores[0]):
            yield

    @contextmanager
    def busy_program(self) -> Iterator[None]:
        """A program that keeps the other core busy."""
        job = self._job(Target(0))
        with Process(inside("beside")(job), job.port, job.directory / "log"):
            yield

    @contextmanager
    def iperf3_server(self, port: int | None = None) -> Iterator[Target]:
        """An iperf3 server for one test.

        :param port: where, if that is known already.
        """
        job = self._job(Target(0))
        target = Target(port or job.port)
        arguments = ["iperf3", "-s", "-1", "-B", LOOPBACK, "-p", str(target.port)]
        with Process(arguments, target.port, job.directory / "log"):
            yield target

    @contextmanager
    def echo_server(self) -> Iterator[Target]:
        """A server that sends back what it gets."""
        job = self._job(Target(0))
        with Process([self._pingpong(), "echo", str(job.port)], job.port, job.directory / "log"):
            yield Target(job.port)

    @contextmanager
    def opening_server(self, kind: str) -> Iterator[Target]:
        """A server for :meth:`first_bytes`.

        :param kind: ``echo``, which sends back what it gets, or ``greet``, which speaks first.
        """
        job = self._job(Target(0))
        with Process([self._opening(), kind, str(job.port)], job.port, job.directory / "log"):
            yield Target(job.port)

    @contextmanager
    def ssh_server(self, *, far: bool = False, milliseconds: int = DELAY) -> Iterator[Server]:
        """A real SSH server.

        :param far: whether it is at the far end of a long link.
        :param milliseconds: of that link, each way.
        """
        with (
            ssh_server(self._job(Target(0)).directory) as server,
            delayed(server, milliseconds) if far else nullcontext(server) as it,
        ):
            yield it

    @contextmanager
    def crowd_server(self) -> Iterator[Target]:
        """A server that sends back what it gets, or zeros without end; for :meth:`crowd` and :meth:`ping`."""
        job = self._job(Target(0))
        with Process([self._crowd(), "serve", str(job.port)], job.port, job.directory / "log"):
            yield Target(job.port)

    def crowd(self, kind: str, port: int, count: int) -> Crowd:
        """Connections that are held while something else is measured; the parameters are those of :class:`Crowd`."""
        return Crowd(self._crowd(), kind, port, count)

    @contextmanager
    def long_link(self, target: Target, milliseconds: int) -> Iterator[Target]:
        """The same target at the far end of a long link.

        :param target: on this machine.
        :param milliseconds: of the link, each way.
        """
        with linked(target.port, milliseconds, self._job(Target(0)).directory) as port:
            yield replace(target, port=port)

    @contextmanager
    def over_tls(self, target: Target) -> Iterator[Target]:
        """HAProxy, which ends TLS in front of a target; for loads that are no HTTP."""
        job = self._job(target)
        ca = job.certify()
        configuration = job.write("target.cfg", ENDS_TLS.format(address=f"{LOOPBACK}:{job.port}", port=target.port))
        arguments = [program("haproxy"), "-db", "-C", str(job.directory), "-f", configuration]
        with Process(arguments, job.port, job.directory / "log"):
            yield Target(job.port, ca)

    @contextmanager
    def web_server(self, connections: int = HELD) -> Iterator[Target]:
        """A server, nginx, which answers 50 bytes.

        :param connections: the most that there will be at one time.
        """
        job = self._job(Target(0), connections)
        with self._nginx(job, " backlog=4096", ""):
            yield Target(job.port)

    @contextmanager
    def tls_server(self, tickets: bool = True, openssl: tuple[int, int] | None = None) -> Iterator[tuple[Target, Path]]:
        """The same with TLS, a large file, and a log of one line for each request.

        A line is ``r`` if the session was resumed, else a dot, and the group by which keys were agreed on.

        :param tickets: whether sessions can be resumed.
        :param openssl: the least version of its OpenSSL; ``None`` for the one that it has.
        """
        job = self._job(Target(0))
        ca = job.certify()
        with (job.directory / "file").open("wb") as file:
            file.truncate(FILE)
        words = with_openssl(openssl, job)
        with self._nginx(job, " ssl backlog=4096", TLS.format(tickets="on" if tickets else "off"), words):
            yield Target(job.port, ca), job.directory / "sessions.log"

    def _nginx(self, job: Job, options: str, tls: str, words: Sequence[str] = ()) -> Process:
        address = f"{LOOPBACK}:{job.port}"
        descriptors = job.connections + 1000
        text = NGINX.format(address=address, options=options, tls=tls, answer=ANSWER, descriptors=descriptors)
        path = job.write("target.conf", text)
        arguments = [*words, program("nginx"), "-p", str(job.directory), "-c", path, "-e", "stderr"]
        return Process(arguments, job.port, job.directory / "log")

    def _pingpong(self) -> str:
        return compiled(SOURCES / "pingpong.c", self.directory)

    def _crowd(self) -> str:
        return compiled(SOURCES / "crowd.c", self.directory)

    def _opening(self) -> str:
        return compiled(SOURCES / "opening.c", self.directory)

    def ping(self, port: int) -> dict[str, float]:
        """64-byte round trips: ``count``, ``seconds``, and ``p50`` and ``p99`` in microseconds."""
        return _numbers(run([self._pingpong(), "ping", str(port), str(self.seconds)], self.seconds + PATIENCE))

    def first_bytes(self, port: int, kind: str) -> dict[str, float]:
        """New connections, one after another, and how long each takes to its first byte: as :meth:`ping`.

        :param kind: ``speak``, where the client does so first, or ``hear``, where the server does.
        """
        return _numbers(run([self._opening(), kind, str(port), str(self.seconds)], self.seconds + PATIENCE))


def iperf3(port: int, streams: int, seconds: int, *, down: bool = False) -> tuple[int, float]:
    """iperf3 from here to its server; returns the bytes that arrived and in how many seconds.

    :param down: whether its server sends.
    """
    arguments = ["iperf3", "-J", "-c", LOOPBACK, "-p", str(port), "-P", str(streams), "-t", str(seconds)]
    total = json.loads(run([*arguments, *["-R"] * down], seconds + PATIENCE))["end"]["sum_received"]
    return total["bytes"], total["seconds"]


def iperf3_shares(port: int, streams: int, seconds: int) -> tuple[list[int], float]:
    """iperf3 from here to its server; returns the bytes of each stream that arrived, and in how many seconds."""
    arguments = ["iperf3", "-J", "-c", LOOPBACK, "-p", str(port), "-P", str(streams), "-t", str(seconds)]
    end = json.loads(run(arguments, seconds + PATIENCE))["end"]
    return [stream["receiver"]["bytes"] for stream in end["streams"]], end["sum_received"]["seconds"]


def warm_iperf3(port: int) -> None:
    """A mebibyte to its server, so that what a relay makes once is there before the load begins."""
    run(["iperf3", "-c", LOOPBACK, "-p", str(port), "-n", "1M"], ANSWERS)


def warm_wrk(port: int) -> None:
    """One request to the web server, the same way."""
    run(["curl", "-sSf", "-o", "/dev/null", f"http://{LOOPBACK}:{port}/"], ANSWERS)


def wrk(port: int, seconds: int, *, keep: bool, connections: int = 32) -> dict[str, float]:
    """As :func:`wrk_figures`.

    :raises MeasurementError: if a request failed.
    """
    numbers = wrk_figures(port, seconds, keep=keep, connections=connections)
    if numbers["errors"] or not numbers["requests"]:
        raise MeasurementError(f"wrk: {numbers['errors']:.0f} errors, {numbers['requests']:.0f} requests")
    return numbers


def wrk_figures(port: int, seconds: int, *, keep: bool, connections: int = 32) -> dict[str, float]:
    """wrk, with one thread; returns ``requests``, ``seconds`` and ``errors``.

    :param keep: whether connections are kept, or each request has one of its own.
    :param connections: how many at a time.
    """
    header = [] if keep else ["-H", "Connection: close"]
    script = ["-s", str(Path(__file__).with_name("wrk.lua"))]
    url = f"http://{LOOPBACK}:{port}/"
    said = run(
        ["wrk", "-t", "1", "-c", str(connections), "-d", str(seconds), *script, *header, url], seconds + PATIENCE
    )
    return _numbers(said.splitlines()[-1])


def downloads(port: int, gibibytes: int) -> tuple[int, float]:
    """curl, which fetches the large file over and over on one connection; returns the bytes and the seconds."""
    url = f"http://{LOOPBACK}:{port}/file?[1-{gibibytes * GIB // FILE}]"
    start = time.monotonic()
    said = run(["curl", "-sSf", "-o", "/dev/null", "-w", "%{size_download}\n", url], gibibytes * 10 + PATIENCE)
    return sum(map(int, said.split())), time.monotonic() - start


@contextmanager
def held(port: int, listener: socket) -> Iterator[None]:
    """9,000 idle connections, each of which has carried a byte both ways.

    :param port: where the relay listens.
    :param listener: where it leads.
    """
    with ExitStack() as stack:
        for _ in range(HELD):
            client = stack.enter_context(create_connection((LOOPBACK, port), timeout=ANSWERS))
            client.sendall(b"?")
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(ANSWERS)
            server.sendall(server.recv(1))
            if not client.recv(1):
                raise MeasurementError("a connection ended while others were opened")
        yield


def _numbers(text: str) -> dict[str, float]:
    numbers: dict[str, Any] = json.loads(text)
    return numbers
