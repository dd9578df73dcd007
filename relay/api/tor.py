"""``relay.tor_listen``: an onion service of the tor on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..addresses.hops import Route
from ..addresses.options import Secret
from ..addresses.tor import TorListen
from ..transports.tor.listener import TorListener

__all__ = ["TorListener", "listen_tor", "tor_listen"]


def tor_listen(
    session: str = "",
    *,
    keys: str | os.PathLike[str] | None = None,
    port: int = 80,
    control: str | None = None,
    password: Secret | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
) -> TorListener:
    """Publish an onion service (version 3), and listen there.

    relay publishes it again with the same key whenever tor was restarted. It is gone with the listener.

    :param session: a name, which keeps the address: relay stores the private key in the user's data directory under
        this name. Empty, and without ``keys``, for an address that exists as long as the listener.
    :param keys: a file with the private key, in the form of tor's ``hs_ed25519_secret_key``. relay creates it if it is
        missing (mode 0600), and locks it while it is in use.
    :param port: the port that clients of the service name.
    :param control: tor's control port, ``host:port`` on the loopback, or the path of its control socket; ``None`` for
        ``/run/tor/control`` if it exists, else 127.0.0.1:9051.
    :param password: of ``HashedControlPassword``: text, or a callable that returns it. Without one relay uses tor's
        cookie file.
    :param password_file: an owner-only file that holds it.
    :param password_env: an environment variable that holds it.
    :returns: a listener for :class:`relay.Tunnel`, once tor has taken the service; clients reach it seconds later. Its
        ``host`` is the address ``….onion``. The caller owns it.
    :raises ConnectError: if the control port cannot be reached, or does not answer.
    :raises AuthenticationError: if tor rejects the login, or its cookie cannot be read.
    :raises RelayError: if the key cannot be used, or tor does not publish the service.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument has a value that is not allowed.

    Source: control-spec, "ADD_ONION".
    """
    place = TorListen(
        control=control,
        port=port,
        session=session,
        keys=None if keys is None else os.fspath(keys),
        password=password,
        password_file=password_file,
        password_env=password_env,
    )
    return _started(place)


def listen_tor(
    control: str | None,
    port: int,
    session: str,
    keys: str | None,
    password: Secret | None,
    password_file: str | None,
    password_env: str | None,
    via: Route = (),
    opening: Callable[[TorListener], object] | None = None,
) -> TorListener:
    """Publish an onion service, and listen there.

    :param control: and the others: as for :func:`tor_listen`.
    :param via: none: tor is on this machine.
    :param opening: called with the listener before it starts. The listener then retries without a time limit while tor
        cannot be reached; closing it ends that. ``None`` for one attempt.
    :raises OSError: as :func:`tor_listen` does; with ``opening`` only what a retry cannot fix.
    """
    place = TorListen(
        control=control,
        port=port,
        session=session,
        keys=keys,
        password=password,
        password_file=password_file,
        password_env=password_env,
    )
    return _started(place, opening)


def _started(place: TorListen, opening: Callable[[TorListener], object] | None = None) -> TorListener:
    listener = TorListener(place, str(place))
    try:
        if opening is not None:
            opening(listener)
        listener.start(patient=opening is not None)
    except BaseException:
        listener.close()
        raise
    return listener
