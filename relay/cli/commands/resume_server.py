"""``relay resume-server``: the far end of streams that outlive a lost connection."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import signal
import socket
from typing import Any

import click

from ...addresses.i2p import I2PListen
from ...addresses.resume import ResumeListen
from ...addresses.values import UnixListen
from ...daemon.options import Options
from ...daemon.plan import RESUME_SESSION, make_proxy_plan
from ...daemon.routed_targets import with_session
from ...daemon.runtime import make_directory, runtime_directories
from ...daemon.signals import Signals
from ...errors import AddressError, RelayError
from ...eventloop import reserve
from ...process import interpreter, start_detached
from ...streams.listener import TunnelListener
from ...transports.dynamic import parse_rule
from ...transports.resume.figures import BUDGET
from ...transports.resume.server import Bounds
from ...transports.resume_server.listen import usual_kept
from ..addresses import read_listen
from ..options import SECONDS, GroupedCommand, options_about, seconds, size, with_options
from ..output import failures_reported, logged_to_stderr, print_line
from ..run import relay_one

EXAMPLES = """Examples:

relay resume-server (at a Unix socket of this user; ssh://HOST?resume=yes starts it by itself)

relay resume-server unix:///srv/relay/resume.sock (for ssh://HOST?resume=/srv/relay/resume.sock)

relay resume-server 'tls://0.0.0.0:4443?cert=FILE&client_ca=FILE' (for resume:tls://HOST:4443?cert=FILE&ca=FILE)

relay resume-server i2p:?keys=FILE --allow NAME.b32.i2p (for resume:i2p://OTHER.b32.i2p?keys=FILE)

relay resume-server --resume-for 600 (streams wait for ten minutes)
"""
NAME = "resume.sock"


def _buffer(value: Any) -> int:
    return size(value, 64 << 10)


def _memory(value: Any) -> int:
    return size(value, 1 << 20)


@click.command("resume-server", cls=GroupedCommand, epilog=EXAMPLES)
@click.argument(
    "listen",
    metavar="[LISTEN]",
    required=False,
    help="unix:///PATH, tls://HOST:PORT?cert=FILE&client_ca=FILE, wss://HOST:PORT/PATH?cert=FILE&client_ca=FILE or "
    "i2p: [resume.sock in the runtime directory of this user]",
)
@click.option(
    "--resume-for",
    metavar=SECONDS,
    type=seconds,
    help="Time for which a stream without a connection is kept [120; at I2P 300].",
)
@click.option(
    "--resume-buffer",
    metavar="SIZE",
    type=_buffer,
    default="4MiB",
    help="Memory of one stream at most [4MiB].",
)
@click.option(
    "--resume-memory",
    metavar="SIZE",
    type=_memory,
    default="256MiB",
    help="Memory of all streams at most; then they wait [256MiB].",
)
@click.option(
    "--resume-streams",
    metavar="NUMBER",
    type=click.IntRange(min=1),
    default=1024,
    help="Streams of one user at most [1024].",
)
@click.option(
    "--start",
    is_flag=True,
    help="Start one behind, unless one runs, and print where it listens. It ends after --resume-for without a stream.",
)
@click.option("--ends-idle", is_flag=True, hidden=True)
@options_about("clients")
@with_options
def resume_server(
    listen: str | None,
    resume_for: float | None,
    resume_buffer: int,
    resume_memory: int,
    resume_streams: int,
    start: bool,
    ends_idle: bool,
    options: Options,
) -> None:
    """Serve resumable streams at LISTEN, until SIGINT, SIGTERM or SIGHUP.

    A relay elsewhere reaches a Unix socket over SSH, with ssh://HOST?resume=yes or resume=/PATH, and any LISTEN with
    resume:ADDRESS. When its connection is lost, its streams wait here for another one, and go on with the next byte.
    relay dials what these streams ask for, from this machine.

    Only the user of the socket gets in; at tls:// and wss:// each client with a certificate of client_ca does, and at
    i2p: the destinations that --allow names. A stream belongs to the client that has begun it. --linger is a
    day here, as that of the near end counts.
    """
    with (
        logged_to_stderr(options.log_format, verbose=options.verbose, debug=options.debug),
        failures_reported(debug=options.debug),
    ):
        where = _read(listen) if listen is not None else ResumeListen(UnixListen(_usual_path()))
        if listen is None:
            make_directory(where.place.path)
        if resume_for is None:
            resume_for = usual_kept(where)
        if not start:
            BUDGET.limit = resume_memory
            return _serve(where, options, Bounds(resume_for, resume_streams, resume_buffer), ends_idle=ends_idle)
        if not isinstance(where.place, UnixListen):
            raise AddressError(f"--start: it starts one for a login, at unix:///PATH; run it at {where.place} without")
        return _start(where.place, resume_for, resume_buffer, resume_memory, resume_streams)


def _read(text: str) -> ResumeListen:
    """Return the address of LISTEN.

    :raises AddressError: if no resume server listens there.
    """
    place: Any = read_listen(text)
    if isinstance(place, ResumeListen):
        place = place.place
    if isinstance(place, I2PListen):
        place = with_session(place, RESUME_SESSION, keys=None, session=None, transient=False)
    try:
        return ResumeListen(place)
    except ValueError as error:
        raise AddressError(f"listen address '{place}': {error}") from None


def _serve(where: ResumeListen, options: Options, bounds: Bounds, *, ends_idle: bool) -> None:
    with Signals() as signals:
        reserve.keep()
        plan = make_proxy_plan(where, options, name="resume-server", rules=[parse_rule("*=direct")], bounds=bounds)

        def listen(opening: Any, inherited: Any) -> TunnelListener:
            made: Any = plan.listen(opening, inherited)
            if ends_idle:
                made.sessions.on_idle = lambda: os.kill(os.getpid(), signal.SIGTERM)
            return made  # type: ignore[no-any-return]

        relay_one(dataclasses.replace(plan, listen=listen), signals, "listening on ")


def _usual_path() -> str:
    """Return the path of the socket of this user.

    :raises AddressError: if there is no directory for it.
    """
    directory = runtime_directories()[0]
    if directory == "/run/relay" and os.geteuid() != 0 and "RUNTIME_DIRECTORY" not in os.environ:
        # A login without pam_systemd has no runtime directory.
        directory = os.path.join(os.path.expanduser("~"), ".relay")
    return os.path.join(directory, NAME)


def _start(where: UnixListen, kept: float, held: int, memory: int, streams: int) -> None:
    """Print where one listens that runs already, or that this starts."""
    if not _listens(where.path):
        options = {
            "for": "none" if kept == math.inf else f"{kept:g}",
            "buffer": held,
            "memory": memory,
            "streams": streams,
        }
        given = [word for name, value in options.items() for word in (f"--resume-{name}", str(value))]
        words = ["-m", "relay", "resume-server", "--ends-idle", *given, str(where)]
        child = start_detached([*interpreter(), *words])
        assert child.stdout is not None
        with child.stdout as said:
            # Another login may have started one at the same moment.
            if not said.readline() and not _listens(where.path):
                raise RelayError(f"{where}: the resume server did not start; run relay resume-server to see why")
        child.returncode = 0  # it goes on, and init waits for it
    print_line(f"unix {where.path}")


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
        except OSError as error:
            return error.errno == errno.EAGAIN  # it is there, and its backlog is full
        return True
