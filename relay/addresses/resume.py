"""Resume servers as values: ``resume:tls://far.example:4443?cert=…`` as a hop, and where one listens.

Pure: nothing here does I/O. Every value is frozen and checked when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .i2p import I2PListen, I2PRouter, I2PTarget
from .values import TargetOverTCP, TCPAddress, TLSListen, TLSTarget, UnixListen, WithCertificate

_WITH_CERTIFICATE = "give a client certificate with cert=FILE, and key=FILE if its key is elsewhere"
INSTEAD = "use tls:// or wss:// with cert=FILE, i2p://, unix://, exec: or port:, or ssh://HOST?resume=yes"
_LISTENERS = "use unix:///PATH, tls:// or wss:// with client_ca=FILE, or i2p:"


class _AtAddress:
    __slots__ = ()

    place: Any

    @property
    def router(self) -> I2PRouter:
        """The router of its address, if that is at I2P.

        :raises AttributeError: if it is not.
        """
        router: I2PRouter = self.place.router
        return router


@dataclass(frozen=True, slots=True)
class ResumeServer(_AtAddress):
    """``resume:ADDRESS`` as a hop: a ``relay resume-server`` at an address, whose streams outlive their connections.

    The relay there dials what follows.

    :param place: the target address at which it is reached; a value of :func:`relay.addresses.parse.parse_target`.
    :raises ValueError: if a server there could not know who its clients are.
    """

    place: Any

    def __post_init__(self) -> None:
        place = self.place
        if isinstance(place, TCPAddress) or (isinstance(place, TargetOverTCP) and not hasattr(place, "cert")):
            raise ValueError(f"a server does not know who its clients are there; {INSTEAD}")
        if isinstance(place, TLSTarget | TargetOverTCP) and getattr(place, "cert", None) is None:
            raise ValueError(f"the server has to know who its clients are; {_WITH_CERTIFICATE}")
        if isinstance(place, I2PTarget) and place.router.keys is None:
            text = "after a lost session this destination would be another one, which the streams do not belong to"
            raise ValueError(f"{text}; set keys=FILE")

    def __str__(self) -> str:
        return f"resume:{str(self.place).partition('?')[0]}"


@dataclass(frozen=True, slots=True)
class ResumeListen(_AtAddress):
    """``resume:ADDRESS`` to listen on: a resume server, whose clients name their targets.

    :param place: where it listens; a value of :func:`relay.addresses.parse.parse_listen`.
    :raises ValueError: if a listener there does not know who its clients are.
    """

    place: Any

    def __post_init__(self) -> None:
        place = self.place
        if getattr(place, "trusted_proxies", None) is not None:
            text = "trusted_proxies= names the reverse proxies that say who a client is, without its certificate"
            raise ValueError(f"{text}; leave it out, and let clients connect without a proxy")
        if isinstance(place, UnixListen | I2PListen):
            return
        if not isinstance(place, TLSListen | WithCertificate):
            raise ValueError(f"streams belong to the client that began them, and none is known there; {_LISTENERS}")
        if place.client_ca is None:
            text = "streams belong to the client that began them, and any client may connect there"
            raise ValueError(f"{text}; set client_ca=FILE to the authority of its clients")

    def __str__(self) -> str:
        return f"resume:{self.place}"


def place_of(one: Any) -> Any:
    """Return the address of a resume server, for a hop or for one to listen on; any other address itself."""
    return one.place if isinstance(one, _AtAddress) else one
