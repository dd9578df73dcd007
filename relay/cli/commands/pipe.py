"""``relay pipe``: standard input and output as the client of a target."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext

import click

from ...addresses.hops import is_slow
from ...addresses.i2p import CONNECT_TIMEOUT, LINGER
from ...api.urls import dialer
from ...daemon.failures import carriers_quiet, configuration_read
from ...daemon.signals import Signals, die_of
from ...engine.stdio import carry
from ...errors import ConnectError
from ...streams.checks import check_time
from ...streams.dialer import Dialer
from ...streams.promise import Promise
from ...streams.stream import Stream
from .. import startup
from ..addresses import read_hops, read_target
from ..options import SECONDS, GroupedCommand, debug, option_of_tunnel, seconds, seconds_or_zero, via
from ..output import failures_reported, logged_to_stderr

EXAMPLES = """Examples:

printf 'GET / HTTP/1.0\\r\\n\\r\\n' | relay pipe intranet:80 --via ssh://me@bastion (a request, and its whole answer)

ssh -o ProxyCommand='relay pipe %h:%p --via ssh://me@bastion' me@inner (so do scp, sftp and rsync -e)

ssh -o ProxyCommand='relay pipe %h:%p' me@NAME.b32.i2p (an SSH server that is an I2P destination)

GIT_SSH_COMMAND="ssh -o ProxyCommand='relay pipe %h:%p --via socks5://127.0.0.1:9050'" git fetch

relay help hops lists the parameters of hops, SSH servers and I2P routers.
"""


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument(
    "target", metavar="TARGET", help="HOST:PORT, PORT, unix:///PATH, tls://HOST:PORT?ca=FILE or i2p://NAME.i2p[:PORT]"
)
@via
@option_of_tunnel("connect_timeout")
@click.option("--idle-timeout", metavar=SECONDS, type=seconds, help="Exit after this long without traffic [no limit].")
@click.option(
    "--linger",
    metavar=SECONDS,
    type=seconds_or_zero,
    help="Idle timeout after a half-close [no limit; over I2P or Tor 5].",
)
@click.option("--verbose", "-v", is_flag=True, help="Log to standard error what relay does.")
@debug
def pipe(
    target: str,
    via: Sequence[str],
    connect_timeout: float | None,
    idle_timeout: float | None,
    linger: float | None,
    verbose: bool,
    debug: bool,
) -> None:
    """Connect standard input and output to TARGET.

    relay passes on the EOF of standard input and still receives the reply; the target's EOF ends the output. There
    relay prints only what the target sends. If the connection is refused or reset, relay exits with status 1 and one
    line.

    With --via, the last hop connects to TARGET: it resolves the name, and Unix paths are on that machine.
    """
    # Before anything is opened: the first socket would get the number of the closed standard stream.
    _fill_gaps()
    with (
        logged_to_stderr("text", verbose=verbose, debug=debug),
        nullcontext() if verbose or debug else carriers_quiet(logging.WARNING),
        failures_reported(debug=debug),
        Signals() as signals,
    ):
        hops = read_hops(via, target)
        place = read_target(target, hops)
        startup.preload_backend(hops)
        if connect_timeout is None:
            connect_timeout = CONNECT_TIMEOUT if is_slow(hops, place) else 30.0
        with configuration_read():
            made = dialer(hops, place)
        with made as factory:
            with startup.preconnect_hops(hops, connect_timeout):
                stream = _connected(factory, connect_timeout, signals)
            if stream is not None and linger is None and not stream.half_close:
                linger = LINGER
            heard = _carried(stream, idle_timeout, linger, signals)
    if heard:
        # Outside of the with: the log is written and the connections are closed before the signal ends the process.
        die_of(heard)


def _carried(stream: Stream | None, idle_timeout: float | None, linger: float | None, signals: Signals) -> int | None:
    """Copy both directions, and return the signal that ended it, if one did."""
    try:
        if stream is not None and carry(stream, idle_timeout=idle_timeout, linger=linger, cancel=signals):
            return None
    except BrokenPipeError:
        return signal.SIGPIPE  # as for every program whose output has no reader: silently
    return signals.wait()


def _connected(factory: Dialer, timeout: float | None, signals: Signals) -> Stream | None:
    """Dial once; return ``None`` if a signal came first.

    :raises OSError: if the stream cannot be opened.
    """
    limit = check_time("--connect-timeout", timeout)  # which may be infinite
    deadline = None if limit is None else time.monotonic() + limit
    answer: Promise[Stream] = Promise()
    # Confirming: a pipe must fail when the target refuses, before any byte of standard input is read and lost.
    give_up = factory.confirming().dial(deadline, answer.put, wait_for_reconnect=False)
    try:
        stream = answer.get(deadline, signals)
    finally:
        give_up()
    if stream is None and not signals.is_set():
        raise ConnectError(f"{factory.target}: no answer in time", reason="connect_timeout")
    return stream


def _fill_gaps() -> None:
    """Open /dev/null for a closed standard input, output or error, so that no connection gets its number."""
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number
