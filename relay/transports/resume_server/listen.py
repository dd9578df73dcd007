"""Listening for resumable streams at any address that knows its clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...addresses.i2p import I2PListen
from ...addresses.resume import ResumeListen
from ...addresses.values import TLSListen, UnixListen
from ..resume.client import KEPT
from ..resume.server import Bounds

if TYPE_CHECKING:
    from ..tcp import Inherited

_KEPT_AT_I2P = 300.0  # seconds; after the loss of a session, routers take two minutes until streams arrive again


def usual_kept(address: ResumeListen) -> float:
    """Return the seconds for which a stream without a carrier is kept, where the user has not given them.

    :param address: where the far end listens.
    """
    return _KEPT_AT_I2P if isinstance(address.place, I2PListen) else KEPT


def listen_resume(address: ResumeListen, *, bounds: Bounds, inherited: Inherited | None = None) -> Any:
    """Listen for resumable streams on this machine.

    :param address: where; not at I2P.
    :param bounds: of its sessions.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises ValueError: if a file does not hold what it should.
    :raises OSError: if a file cannot be read or the address cannot be had.
    """
    place = address.place
    if isinstance(place, UnixListen):
        from ..unix import listen_unix
        from .unix import ResumeListener

        return ResumeListener(listen_unix(place.path, place.mode, place.group, inherited=inherited), bounds=bounds)
    from ..tcp import listen_tcp

    if isinstance(place, TLSListen):
        from ..tls.listener import server_credentials
        from .tls import ResumeTLSListener

        credentials = server_credentials(place.cert, place.key, place.client_ca, place.alpn, place.groups)
        listening = listen_tcp(place.host, place.port, mptcp=place.mptcp, inherited=inherited)
        return ResumeTLSListener(listening, credentials, bounds=bounds)
    from ...extras import needed

    needed("websocket", str(place))
    from ..websocket.listener import credentials_of
    from .websocket import ResumeWebSocketListener

    found = credentials_of(place)
    return ResumeWebSocketListener(listen_tcp(place.host, place.port, inherited=inherited), place, found, bounds=bounds)


def make_i2p(bounds: Bounds) -> Callable[..., Any]:
    """Return what makes an :class:`~relay.transports.i2p.listener.I2PListener` for resumable streams.

    :param bounds: of its sessions.
    """
    from .i2p import ResumeI2PListener

    return lambda *place: ResumeI2PListener(*place, bounds=bounds)
