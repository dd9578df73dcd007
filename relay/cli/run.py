"""What the relaying commands share: listen, try the hops, relay until a signal, drain."""

from __future__ import annotations

import dataclasses
import functools
import logging
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ..addresses.hops import Command, Listen, Route
from ..addresses.i2p import I2PTarget
from ..addresses.values import Target
from ..engine.tunnel import Tunnel
from ..errors import RelayError
from . import startup
from .i2p_options import tell_published
from .options import Options
from .output import closing, failures_reported, logged_to_stderr, reason, say, summary
from .plan import Opened, Opening, Plan, plan
from .probes import SLOW, Attempt, say_slow
from .signals import Signals

__all__ = ["listening", "raise_descriptor_limit", "relay_until_signal", "serve"]

if TYPE_CHECKING:  # a command starts in half the time without them
    from .live import LiveTable
    from .views import TunnelView

logger = logging.getLogger("relay.cli")

REFRESH = 0.5  # seconds between two states of the live table


def serve(
    where: Listen,
    end: Target | I2PTarget | Command,
    options: Options,
    *,
    name: str,
    title: str,
    via: Route = (),
    listen_via: Route = (),
    hint: str = "",
) -> None:
    """Listen, relay until a signal, and drain.

    :param where: the address to listen on.
    :param end: the address to connect to.
    :param options: the limits, and what is printed.
    :param name: of the tunnel.
    :param title: printed before where it listens and where that leads to.
    :param via: the hops on the way to the target, the nearest first.
    :param listen_via: those on the way to where it listens.
    :param hint: what to add to the reason why it cannot listen.
    :raises click.exceptions.Exit: with the status, if it fails; one line has been printed then.
    """
    with (
        logged_to_stderr(options.log_format, verbose=options.verbose, debug=options.debug),
        failures_reported(debug=options.debug),
        Signals() as signals,
    ):
        raise_descriptor_limit()
        made = plan(where, end, options, name=name, via=via, listen_via=listen_via)
        if hint:
            made = dataclasses.replace(made, listen=functools.partial(_hinted, made.listen, hint))
        relay_until_signal(made, signals, title)


def _hinted(listen: Callable[[Opening | None], Any], hint: str, opening: Opening | None) -> Any:
    try:
        return listen(opening)
    except OSError as error:
        raise RelayError(f"{reason(error)}; {hint}") from error


def relay_until_signal(made: Plan, signals: Signals, title: str) -> None:
    """Open a tunnel, relay until a signal, and drain.

    :param made: what is to be opened.
    :param signals: those that end it.
    :param title: printed before where it listens and where that leads to.
    :raises Exception: what a retry cannot fix, or the first failure if the options say so.
    """
    opened = listening(made, signals)
    if opened is None:
        return
    line = f"{title}{opened.title}"
    with opened.tunnel as tunnel:
        say(line)
        tell_published(opened.receive)
        options = made.options
        tried = made.trial(opened.make_send, options.connect_timeout, signals.wake, fail_fast=options.fail_fast)
        run(opened, signals, line if options.watch else None, options.drain)
    if tried.error is not None:
        raise tried.error
    logger.info("%s", summary(tunnel.stats()), extra={"stats": tunnel.stats()})


def listening(made: Plan, signals: Signals) -> Opened | None:
    """Open a tunnel, in a thread of its own: a name server, an SSH server or an I2P router may take its time.

    :param made: what is to be opened. A server that cannot be reached is tried until it can, unless the options say
        that the first failure ends it.
    :param signals: those that end it.
    :returns: the tunnel; ``None`` if a signal came first.
    :raises Exception: why it cannot be opened.
    """
    postponed = threading.Event()  # then the log says what the user waits for
    attempt = Attempt(functools.partial(made.open, None), signals.wake, lambda _: postponed.set())
    heard = signals.wait(SLOW if made.at_i2p else None)
    if heard is None:
        if not postponed.is_set():
            say_slow()
        heard = signals.wait()
    if heard:
        attempt.give_up()
        logger.info("%s: closing before there was an answer", signal.Signals(heard).name)
        return None
    opened: Opened = attempt.outcome()
    return opened


def run(opened: Opened, signals: Signals, watched: str | None, drain: float) -> None:
    """Wait for a signal and drain; return when that is done, or at a second signal. The tunnel is closed next.

    :param opened: the tunnel.
    :param signals: those that end it.
    :param watched: the first line of the live table; ``None`` if there is none.
    :param drain: seconds that connections have to finish.
    """
    startup.is_over()
    view = _view(opened, watched) if watched else None
    with _live_table(view) as table:
        draining: threading.Thread | None = None
        while (heard := signals.wait(REFRESH if table else None)) != 0:
            if heard is not None:
                if draining is not None:
                    return
                wait = closing(opened.tunnel.stats().active, drain)
                logger.info("%s: %s", signal.Signals(heard).name, wait)
                if view is not None:
                    view.closing = wait
                arguments = (opened.tunnel, drain, signals)
                draining = threading.Thread(target=_drain, args=arguments, name="relay-drain", daemon=True)
                draining.start()
            if table is not None:
                table.refresh()


def _view(opened: Opened, title: str) -> TunnelView:
    from .views import TunnelView, hop_state

    return TunnelView(opened.tunnel, title, functools.partial(hop_state, opened.receive, opened.make_send))


def _live_table(view: TunnelView | None) -> AbstractContextManager[LiveTable | None]:
    if view is None:
        return nullcontext()
    from .live import live_table

    return live_table(view) or nullcontext()


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
