"""The user instructions of what relay does, which differ by less than 1 % where times differ by 20 %."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..counted import CountedProcess, started, wait_until_asleep, whole
from ..goals import Metric, Row, Sample
from ..jobs import Job, Target
from ..loads.lockstep import Lockstep
from ..loads.status import scrape
from ..loads.tcp import Lab
from ..machine import LOOPBACK, MeasurementError, Process, relay_command, reserved_port
from ..peers.duties import DUTIES
from ..peers.i2p import Destination
from ..peers.tcp import NEWER, with_openssl
from .up import wait_for

WARM = 40  # pieces of work before the first one that counts
TIMES = 400  # that count
HANDSHAKES = 100
MIBS = 20
TUNNELS = 500


@contextmanager
def under_way(lab: Lab, duty: str, peer: str, load: Lockstep, target: Target | None = None) -> Iterator[CountedProcess]:
    """One peer, and a load whose target is where it leads."""
    with closing(load), lab.counted(DUTIES[duty][peer], replace(target or Target(0), port=load.target)) as process:
        load.port = process.port
        yield process


def counted(process: CountedProcess, work: Callable[[], object], times: int = TIMES, warm: int = WARM) -> Sample:
    """The instructions of each piece of work, after so many to warm up."""
    for _ in range(warm):
        work()
    process.begin()
    for _ in range(times):
        work()
    return {"instructions": process.count() / times}


def connections(lab: Lab, peer: str, duty: str) -> Sample:
    """Connections, each with a request and its answer."""
    with under_way(lab, duty, peer, load := Lockstep()) as process:
        if duty in ("socks", "rule"):
            load.greet = partial(_greet, load)
        return counted(process, load.connection)


def _greet(load: Lockstep, client: socket.socket) -> None:
    """Ask a SOCKS server for the target; its last answer comes before the first bytes of that."""
    client.sendall(b"\5\1\0")
    client.recv(2)
    load.settle()
    client.sendall(b"\5\1\0\1" + socket.inet_aton(LOOPBACK) + load.target.to_bytes(2, "big"))


def requests(lab: Lab, peer: str) -> Sample:
    """Requests and answers of one connection."""
    with under_way(lab, "plain", peer, load := Lockstep()) as process:
        client, target = load.pair()
        with client, target:
            return counted(process, partial(load.exchange, client, target))


def bulk(lab: Lab, peer: str, piece: int) -> Sample:
    """Pieces of bulk that are large enough to be spliced, or not."""
    with under_way(lab, "plain", peer, load := Lockstep()) as process:
        client, target = load.pair()
        with client, target:
            return counted(process, partial(load.pour, client, target, piece), MIBS, 2)


def over_tls(lab: Lab, peer: str, tickets: bool, name: str | None = None) -> Sample:
    """Connections to a target that speaks TLS 1.3, and that is an address or a name."""
    ca, context = lab.certificate(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca.with_name("both.pem"))
    context.num_tickets = 2 if tickets else 0
    with under_way(lab, "plain", peer, load := Lockstep(context), Target(0, ca, name=name)) as process:
        sample = counted(process, load.connection, HANDSHAKES, 10)
        if bool(load.resumed) != tickets:
            raise MeasurementError(f"{load.resumed} sessions were resumed")
        return sample


def by_name(lab: Lab, peer: str) -> Sample:
    """Connections to a target that is a name."""
    with under_way(lab, "plain", peer, load := Lockstep(), Target(0, name="localhost")) as process:
        return counted(process, load.connection)


def groups(lab: Lab, peer: str) -> Sample:
    """Connections to a target whose OpenSSL has a post-quantum group: a relay that ends TLS."""
    ca, load = lab.certificate(), Lockstep()
    with closing(load), reserved_port() as port:
        pair = f"cert={ca.with_name('server.pem')}&key={ca.with_name('server.key')}"
        words = [relay_command(), "forward", f"tls://{LOOPBACK}:{port}?{pair}", f"{LOOPBACK}:{load.target}"]
        job = Job(lab.folder(), port, Target(load.target), 0)
        target = Process([*with_openssl(NEWER, job), *words], port, job.directory / "log")
        with target, lab.counted(DUTIES["groups"][peer], Target(port, ca)) as process:
            load.port = process.port
            return counted(process, load.connection, HANDSHAKES, 10)


def over_ssh(lab: Lab, peer: str, duty: str) -> Sample:
    """Streams of one connection over SSH, by the program with its child."""
    with (
        lab.ssh_server() as server,
        under_way(lab, duty, peer, load := Lockstep(), Target(0, server=server)) as process,
    ):
        return counted(process, load.connection)


def over_i2p(lab: Lab, peer: str) -> Sample:
    """Streams of one session at the embedded SAM bridge, which connects to the target by itself."""
    with closing(Lockstep(half_close=False)) as load, reserved_port() as port:
        bridge = [sys.executable, "-m", "relay.testing.sambridge", "--port", str(port)]
        with (
            Process(bridge, port, lab.folder() / "log"),
            Destination((LOOPBACK, port), load.target) as there,
            lab.counted(DUTIES["i2p"][peer], Target(0, name=f"i2p://{there.address}?sam={LOOPBACK}:{port}")) as process,
        ):
            load.port = process.port
            return counted(process, load.connection)


def importing(lab: Lab, peer: str) -> Sample:
    """``import relay``, and the class that a program uses first."""
    python, directory = [sys.executable, "-P", "-c"], lab.folder()
    said = [whole([*python, words], directory) for words in ("pass", "import relay; relay.Tunnel")]
    return {"instructions": said[1] - said[0]}


def help_of_relay(lab: Lab, peer: str) -> Sample:
    """From the start of the command to its end."""
    return {"instructions": whole([relay_command(), "--help"], lab.folder())}


@contextmanager
def up(lab: Lab, tunnels: int, *, begin: bool = False, status: bool = False) -> Iterator[tuple[CountedProcess, Path]]:
    """The command with a file of tunnels, once all of them listen."""

    def start(job: Job) -> list[str]:
        path = job.directory / "relay.toml"
        path.touch(0o600)
        write(path, tunnels, job.port)
        return [relay_command(), "up", str(path)]

    with lab.counted(start, Target(1), begin=begin) as process:
        wait_for(process.log, f"{tunnels} of {tunnels} tunnels listen")
        wait_until_asleep(started())
        yield process, process.log.with_name("relay.toml")


def write(path: Path, tunnels: int, port: int, changed: int = 1) -> None:
    """A file: one tunnel in the middle leads to a port that changes."""
    text = [f'control = "none"\nstatus = "unix://{path.with_name("status")}"\n']
    for number in range(tunnels):
        target = changed if number == tunnels // 2 else 1
        text.append(
            f'[tunnels.t{number}]\nlisten = "{LOOPBACK}:{0 if number else port}"\ntarget = "{LOOPBACK}:{target}"\n'
        )
    path.write_text("".join(text))


def starting(lab: Lab, peer: str) -> Sample:
    """From the start of the command until it listens."""
    with up(lab, TUNNELS, begin=True) as (process, _):
        return {"instructions": process.count()}


def reloading(lab: Lab, peer: str) -> Sample:
    """Reloads, of which each changes one tunnel."""
    with up(lab, TUNNELS) as (process, path):
        done = 0

        def reload() -> None:
            nonlocal done
            done += 1
            write(path, TUNNELS, process.port, changed=1 + done % 2)
            process.signal(signal.SIGHUP)
            wait_for(process.log, f"reload: 1 of {TUNNELS} tunnels changed", done)
            wait_until_asleep(started())

        return counted(process, reload, 3, 1)


def scraping(lab: Lab, peer: str) -> Sample:
    """Scrapes of the metrics of a file of tunnels."""
    with up(lab, 100) as (process, path):

        def one() -> None:
            scrape(path.with_name("status"))
            wait_until_asleep(started())

        return counted(process, one, 20, 3)


def _row(title: str, measure: Callable[[Lab, str], Sample], *peers: str) -> Row:
    metric = Metric("instructions", "thousand instructions", False, scale=1e-3)
    return Row(title, "instructions", peers or ("relay",), (metric,), measure)


def _connections(title: str, duty: str) -> Row:
    return _row(title, partial(connections, duty=duty), *DUTIES[duty])


_PLAIN = tuple(DUTIES["plain"])
TABLES = {"instructions": "User instructions"}
ROWS = {
    "count-connection": _connections("a new connection", "plain"),
    "count-limit": _connections("with a limit of each address", "limit"),
    "count-access": _connections("with an access list of five rules", "access"),
    "count-header": _connections("with a PROXY header to the target", "header"),
    "count-log": _connections("with a line in the access log", "log"),
    "count-warm": _connections("with a warm stream", "warm"),
    "count-socks": _connections("by SOCKS", "socks"),
    "count-rule": _connections("by SOCKS, with three rules", "rule"),
    "count-request": _row("a keep-alive request", requests, *_PLAIN),
    "count-copied": _row("a MiB in pieces of 16 KiB", partial(bulk, piece=2**14), *_PLAIN),
    "count-spliced": _row("a MiB in pieces of 32 KiB", partial(bulk, piece=2**15), *_PLAIN),
    "count-tls-full": _row("a new connection to TLS, full handshake", partial(over_tls, tickets=False), *_PLAIN[:2]),
    "count-tls-resumed": _row("a new connection to TLS, resumed session", partial(over_tls, tickets=True), *_PLAIN[:2]),
    "count-tls-name": _row("the same, to a name", partial(over_tls, tickets=True, name="localhost")),
    "count-tls-name-full": _row(
        "a new connection to TLS, to a name, full handshake", partial(over_tls, tickets=False, name="localhost")
    ),
    "count-tls-groups": _row("to TLS with OpenSSL 3.5, resumed session", groups, *DUTIES["groups"]),
    "count-name": _row("a new connection to a name", by_name),
    "count-paramiko": _row("a new stream over SSH, paramiko", partial(over_ssh, duty="paramiko")),
    "count-openssh": _row(
        "a new stream over SSH, the OpenSSH client", partial(over_ssh, duty="openssh"), "relay", "ssh"
    ),
    "count-i2p": _row("a new stream over I2P, embedded bridge", over_i2p),
    "count-metrics": _row("a scrape of the metrics of 100 tunnels", scraping),
    "count-import": _row("import relay, and its Tunnel", importing),
    "count-help": _row("relay --help", help_of_relay),
    "count-up": _row(f"relay up, {TUNNELS} tunnels, until all listen", starting),
    "count-reload": _row(f"a reload of {TUNNELS} tunnels, one changed", reloading),
}
