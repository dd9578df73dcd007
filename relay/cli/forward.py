"""``relay forward``: listen at one address, connect to another, relay between them."""

from __future__ import annotations

import logging
import resource
import signal
import threading
from contextlib import nullcontext
from typing import Annotated, Literal

import typer

from ..race import place
from ..registry import listen as listen_at
from ..registry import target as factory_for
from ..tunnel import Tunnel
from .output import LiveTable, failures_reported, logged_to_stderr, say, summary
from .signals import Signals

__all__ = ["forward"]

logger = logging.getLogger("relay.cli")

REFRESH = 0.5  # seconds between two states of the live table

SECONDS = "SECONDS"

EXAMPLES = """Examples:

relay forward 8080 db.internal:5432 (127.0.0.1:8080 leads to the database)

relay forward 0.0.0.0:8080 unix:///run/app.sock (every interface; a Unix socket)

relay forward :0 'tls://db.internal:5432?ca=db.pem' (any free port; verified TLS)

relay forward 'tls://0.0.0.0:443?cert=cert.pem&key=key.pem' 127.0.0.1:8080 (ends TLS)
"""


def forward(
    listen: Annotated[
        str, typer.Argument(metavar="LISTEN", help="8080, :0, HOST:PORT, unix:///PATH or tls://HOST:PORT?cert=FILE")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="HOST:PORT, unix:///PATH or tls://HOST:PORT?ca=FILE")],
    via: Annotated[
        list[str] | None, typer.Option(metavar="HOP", help="A hop on the way, the nearest first. None yet.")
    ] = None,
    nconnect: Annotated[
        int, typer.Option(metavar="N", help="The most connections at one time; -1 for no limit. Others wait.")
    ] = -1,
    timeout: Annotated[
        float | None, typer.Option(metavar=SECONDS, help="End a connection after so long, whatever it does.")
    ] = None,
    connect_timeout: Annotated[
        float, typer.Option(metavar=SECONDS, help="Give the target so long to be connected.")
    ] = 30.0,
    idle_timeout: Annotated[
        float | None, typer.Option(metavar=SECONDS, help="End a connection when no byte has moved for so long.")
    ] = None,
    linger: Annotated[
        float, typer.Option(metavar=SECONDS, help="After one direction's end, wait so long for bytes of the other.")
    ] = 60.0,
    drain: Annotated[
        float, typer.Option(metavar=SECONDS, min=0, help="When told to stop, let connections finish for so long.")
    ] = 30.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line for each finished connection.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="A live table of the connections.")] = False,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="How log lines on standard error look.")] = "text",
    debug: Annotated[bool, typer.Option("--debug", help="Everything, with tracebacks.")] = False,
) -> None:
    """Listen at LISTEN and relay every connection to TARGET, until SIGINT, SIGTERM or SIGHUP.

    It listens on the loopback unless another host is written out, and prints where.
    A signal lets the connections finish (--drain); a second one ends them at once.
    """
    with (
        logged_to_stderr(log_format, verbose=verbose, debug=debug),
        failures_reported(debug=debug),
        Signals() as signals,
    ):
        raise_descriptor_limit()
        make_send = factory_for(target, via or ())
        receive = listen_at(listen)
        try:
            tunnel = Tunnel(
                receive,
                make_send,
                nconnect,
                timeout,
                connect_timeout=connect_timeout,
                idle_timeout=idle_timeout,
                linger=linger,
                name="forward",
            )
        except BaseException:
            receive.close()
            raise
        title = f"listening on {place(tunnel.address)} → {make_send.target}"
        with tunnel:
            say(title)
            run(tunnel, signals, title if watch else None, drain)
        logger.info("%s", summary(tunnel.stats()), extra={"stats": tunnel.stats()})


def run(tunnel: Tunnel, signals: Signals, watched: str | None, drain: float) -> None:
    """Wait for a signal and drain; return when that is done, or at a second signal. The tunnel is closed next."""
    with LiveTable(tunnel, watched) if watched else nullcontext() as table:
        closing: threading.Thread | None = None
        while (heard := signals.wait(REFRESH if table else None)) != 0:
            if table is not None:
                table.refresh()
            if heard is None:
                continue
            if closing is not None:
                return
            live = tunnel.stats().active
            wait = f"; {live} live, {drain:g} s to finish" if live and drain else ""
            logger.info("%s: closing%s", signal.Signals(heard).name, wait)
            closing = threading.Thread(target=_drain, args=(tunnel, drain, signals), name="relay-drain", daemon=True)
            closing.start()


def _drain(tunnel: Tunnel, drain: float, signals: Signals) -> None:
    tunnel.close(drain)
    signals.wake()


def raise_descriptor_limit() -> None:
    """Take all the descriptors that the system allows: a connection needs two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        pass  # macOS says "unlimited" and means 10240
