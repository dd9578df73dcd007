"""Reverse forwarding over an open SSH transport, under the names of ``x2go.rforward``.

``from relay.compat import rforward``, or ``from relay.compat.rforward import …``, is all that a program written for it
changes. The native form, with a supervised connection of its own, is :func:`relay.ssh_listen`.
"""

from __future__ import annotations

import threading
from typing import Any

import paramiko

from ..engine.tunnel import Tunnel
from ..transports.tcp import tcp
from ._rforward.channels import ChannelQueue
from ._rforward.forwards import Forwards
from ._rforward.log import INFO, WARN, Log
from ._rforward.tunnel import RevFwTunnel

__all__ = [
    "RevFwChannelThread",
    "RevFwTunnel",
    "X2GoRevFwChannelThread",
    "X2GoRevFwTunnel",
    "rev_forward_channel_handler",
    "transport_tcp_handler",
    "x2go_rev_forward_channel_handler",
    "x2go_transport_tcp_handler",
]


class RevFwChannelThread(threading.Thread):
    """A thread for one channel of a reverse tunnel.

    :param channel: the channel.
    :param remote: the target, ``(host, port)``.
    :param kwargs: as for :class:`threading.Thread`; without a ``target`` it does what
        :func:`rev_forward_channel_handler` does.

    Source: ``x2go.rforward.X2GoRevFwChannelThread`` of Python X2Go.
    """

    def __init__(self, channel: Any, remote: tuple[str, int] | None = None, **kwargs: Any) -> None:
        if kwargs.get("target") is None and remote is not None:
            values = {"chan": channel, "addr": remote[0], "port": remote[1]}
            kwargs |= {"target": rev_forward_channel_handler, "kwargs": values | dict(kwargs.get("kwargs") or {})}
        super().__init__(**kwargs)
        self.channel = channel
        if remote is not None:
            self.remote_host, self.remote_port = remote
        self.daemon = True


def rev_forward_channel_handler(
    chan: Any = None,
    addr: str = "",
    port: int = 0,
    parent_thread: RevFwTunnel | None = None,
    logger: Any = None,
) -> None:
    """Connect to a target and relay between it and a channel, until both have ended or the parent is paused.

    :param chan: the channel, or anything with the socket interface. It is closed in the end.
    :param addr: host of the target: an address or a name.
    :param port: its port.
    :param parent_thread: the tunnel whose :meth:`RevFwTunnel.pause` ends it.
    :param logger: as for :class:`RevFwTunnel`, without a mask; ``None`` for none.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if ``addr`` or ``port`` is invalid.

    Source: ``x2go.rforward.x2go_rev_forward_channel_handler`` of Python X2Go.
    """
    factory = tcp(addr, port)
    say = Log(logger, -1) if logger is not None else _silence
    origin = getattr(chan, "origin_addr", None)
    channels = ChannelQueue(say)
    over = threading.Event()
    with Tunnel(channels, factory, timeout=None, name=f"rforward channel to {factory.target}") as tunnel:

        def end() -> None:
            tunnel.pause(close=True)
            over.set()

        wanted = parent_thread is None or parent_thread.adopt(end)
        try:
            if channels.put(chan, origin, over.set) and wanted:
                over.wait()
            else:
                end()
        finally:
            if parent_thread is not None:
                parent_thread.release(end)
    for record in tunnel.recent():
        if record.reason in ("done", "closed"):
            say(f"reverse tunnel to {factory.target} closed from {origin!r}", INFO)
        else:
            say(f"reverse tunnel to {factory.target} from {origin!r}: {record.reason}", WARN)


def _silence(message: str, loglevel: int = 0) -> None:
    pass


def transport_tcp_handler(chan: paramiko.Channel, origin: tuple[str, int], server: tuple[str, int]) -> None:
    """A handler for ``transport.request_port_forward(…, handler=…)``.

    It hands each channel to the tunnel that asked for its address and port, and leaves others in the transport's accept
    queue. Tunnels do not need it: they get their channels whatever the handler.

    :param chan: the channel.
    :param origin: address of the client, ``(host, port)``.
    :param server: forwarded address, ``(host, port)``.

    Source: ``x2go.rforward.x2go_transport_tcp_handler`` of Python X2Go.
    """
    transport = chan.get_transport()
    forwards = Forwards.known(transport)
    is_known, owner = forwards.find(*server) if forwards is not None else (False, None)
    if not is_known:
        transport._queue_incoming_channel(chan)
    elif owner is not None:
        owner.take(chan)
    else:
        chan.close()


X2GoRevFwTunnel = RevFwTunnel
X2GoRevFwChannelThread = RevFwChannelThread
x2go_rev_forward_channel_handler = rev_forward_channel_handler
x2go_transport_tcp_handler = transport_tcp_handler
