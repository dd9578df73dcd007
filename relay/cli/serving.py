"""What the relaying commands share: listen, try the hops, relay until a signal, drain."""

from __future__ import annotations

import functools
import logging
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from ..address import SSHListen
from ..hops import inline_secrets, over_i2p, to_i2p
from ..i2paddress import I2PListen, I2PTarget
from ..parsing import parse_hops, parse_listen, parse_target
from ..race import place
from ..registry import listen as listen_at
from ..registry import target as factory_for
from ..tunnel import Tunnel
from .i2p import tell_published
from .options import Options
from .output import LiveTable, carriers_quiet, failures_reported, logged_to_stderr, say, summary, view_of
from .secrets import refuse_secrets
from .signals import Signals
from .trying import SLOW, Attempt, SessionTrial, Trial, say_slow

__all__ = ["listening", "over_hops", "raise_descriptor_limit", "relay_until_signal", "serve"]

logger = logging.getLogger("relay.cli")

REFRESH = 0.5  # seconds between two states of the live table


def serve(
    listen: str,
    target: str,
    options: Options,
    *,
    name: str,
    title: str,
    via: Sequence[str] = (),
    listen_via: Sequence[str] = (),
) -> None:
    """Listen, relay until a signal, and drain.

    :param listen: the address to listen at.
    :param target: the address to connect to.
    :param options: the limits, and what is printed.
    :param name: of the tunnel.
    :param title: printed before where it listens and where that leads to.
    :param via: the hops on the way to the target, the nearest first.
    :param listen_via: those on the way to where it listens.
    :raises typer.Exit: with the status, if it fails; one line has been printed then.
    """
    with (
        logged_to_stderr(options.log_format, verbose=options.verbose, debug=options.debug),
        failures_reported(debug=options.debug),
        Signals() as signals,
    ):
        raise_descriptor_limit()
        on, at_i2p = _where(listen, listen_via)
        over, slow, to_i2p = over_hops(via), *_i2p(target, via)
        options = options.settled(over_i2p=at_i2p or slow, at_i2p=at_i2p or to_i2p)
        make_send = factory_for(target, via)
        receive = listening(lambda: listen_at(listen, listen_via), signals, at_i2p=at_i2p)
        if receive is None:
            return
        trial = SessionTrial if to_i2p else Trial
        ends = title, f"{on} → {make_send.target}{over}"
        relay_until_signal(receive, make_send, options, signals, name=name, ends=ends, trial=trial)


def relay_until_signal(
    receive: Any,
    make_send: Any,
    options: Options,
    signals: Signals,
    *,
    name: str,
    ends: tuple[str, str],
    trial: type[Trial] = Trial,
) -> None:
    """Relay until a signal, and drain.

    :param receive: the listener; it is closed in the end.
    :param make_send: the factory; likewise.
    :param options: the limits, and what is printed.
    :param signals: those that end it.
    :param name: of the tunnel.
    :param ends: what is printed before and after where it listens.
    :param trial: how the hops are tried in the beginning.
    :raises Exception: what another try would not mend.
    """
    tunnel = _tunnel(receive, make_send, options, name)
    title = f"{ends[0]}{place(tunnel.address)}{ends[1]}"
    with tunnel:
        say(title)
        tell_published(receive)
        tried = trial(make_send, options.connect_timeout, signals.wake)
        run(tunnel, signals, title if options.watch else None, options.drain)
    if tried.error is not None:
        raise tried.error
    logger.info("%s", summary(tunnel.stats()), extra={"stats": tunnel.stats()})


def _where(listen: str, via: Sequence[str]) -> tuple[str, bool]:
    """The server on which it listens, for the title, empty for this machine; and whether that is at I2P.

    :raises AddressError: if there is a secret in an address.
    """
    address = parse_listen(listen)
    if isinstance(address, I2PListen):
        refuse_secrets("listen address", listen, address.router.inline_secrets)
        return over_hops(via), True
    if not isinstance(address, SSHListen):
        return "", False
    refuse_secrets("listen address", listen, address.server.inline_secrets)
    return f" on {address.server}{over_hops(via)}", False


def _i2p(target: str, via: Sequence[str]) -> tuple[bool, bool]:
    """Whether the way to the target leads over I2P, and whether the target is itself there.

    :raises AddressError: if there is a secret in its address.
    """
    hops = parse_hops(via)
    address = parse_target(target, hops[-1] if hops else None)
    if isinstance(address, I2PTarget):
        refuse_secrets("target", target, address.router.inline_secrets)
        return True, True
    return over_i2p(hops, address), to_i2p(hops, address)


def over_hops(via: Sequence[str]) -> str:
    """The hops, for the title.

    :raises AddressError: if there is a secret in one of them.
    """
    hops = parse_hops(via)
    for text, hop in zip(via, hops, strict=True):
        refuse_secrets("hop", text, inline_secrets(hop))
    return f" via {', '.join(map(str, hops))}" if hops else ""


def listening(listen: Callable[[], Any], signals: Signals, *, at_i2p: bool = False) -> Any:
    """Listen, in a thread of its own: a name server, an SSH server or an I2P router may take its time.

    :param listen: returns the listener.
    :param signals: those that end it.
    :param at_i2p: whether it is said what takes so long.
    :returns: the listener; ``None`` if a signal came first.
    """
    with carriers_quiet(logging.WARNING):
        attempt = Attempt(listen, signals.wake)
        heard = signals.wait(SLOW if at_i2p else None)
        if heard is None:
            say_slow()
            heard = signals.wait()
    if heard:
        attempt.give_up()
        logger.info("%s: closing before there was an answer", signal.Signals(heard).name)
        return None
    return attempt.outcome()


def _tunnel(receive: Any, make_send: Any, options: Options, name: str) -> Tunnel:
    try:
        return Tunnel(
            receive,
            make_send,
            options.nconnect,
            options.timeout,
            connect_timeout=options.connect_timeout,
            idle_timeout=options.idle_timeout,
            linger=options.linger,
            name=name,
        )
    except BaseException:
        receive.close()
        raise


def run(tunnel: Tunnel, signals: Signals, watched: str | None, drain: float) -> None:
    """Wait for a signal and drain; return when that is done, or at a second signal. The tunnel is closed next."""
    with LiveTable(functools.partial(view_of, tunnel, watched)) if watched else nullcontext() as table:
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
