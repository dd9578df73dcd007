"""Dialer through a SOCKS5 or an HTTP proxy: a stream to the proxy becomes one to the target behind it."""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...addresses.hops import Proxy, Route, with_hop
from ...addresses.https import HTTPSProxy
from ...addresses.printable import shown
from ...addresses.values import TCPAddress, is_ipv6
from ...errors import AddressError, AuthenticationError, ConnectError, RelayError
from ...streams.checks import check_time
from ...streams.dialer import Dialer, Engine, Network, Upgrade
from ...streams.promise import Abort, CallbackChain, OnResult, Promise
from ...streams.stream import HANDSHAKE, Stream, StreamPath
from ...streams.trace import Stage, report_to
from ..credentials import secret_of
from .negotiation import Dialogue, Negotiation

if TYPE_CHECKING:  # a proxy without TLS does not load ssl
    from ..tls.client import Client
    from ..websocket.client import Client as WebSocketClient

LONGEST_HOST = 255  # bytes of a name; RFC 1928, section 5
_OVER_WEBSOCKETS = ("ws", "wss")
_WITH_SESSION = ("https", *_OVER_WEBSOCKETS)

Login = tuple[bytes, bytes]
Say = Callable[["Login | None"], Dialogue]


class ProxyNetwork:
    """The network as seen from a proxy.

    :param proxy: the proxy.
    :param below: the network in which the proxy is.
    """

    def __init__(self, proxy: Proxy, below: Network) -> None:
        self._proxy = proxy
        self._below = below
        # Tor gives the streams of another login other circuits (tor(1), IsolateSOCKSAuth).
        self._login: Login | None = (b"relay", secrets.token_hex(16).encode()) if proxy.is_tor else None
        # One for all places: it has read the files, and keeps the session ticket.
        self._client: Client | WebSocketClient | None = None
        if isinstance(proxy, HTTPSProxy):
            from ..tls.client import client_of

            self._client = client_of(proxy.server, below.trace, str(proxy))
        elif proxy.protocol in _OVER_WEBSOCKETS:
            from ...addresses.websocket import WSProxy
            from ...extras import needed

            assert isinstance(proxy, WSProxy)
            needed("websocket", str(proxy))
            from ..websocket.client import Client as WebSocketClient

            self._client = WebSocketClient(proxy.websocket, below.trace, str(proxy))

    def to(self, place: TCPAddress) -> Dialer:
        """Return a dialer for a host and a port, which the proxy resolves."""
        inner = self._below.to(self._proxy.place)
        inner = inner if self._client is None else self._client.over(inner)
        return Proxied(inner, self._proxy, place, self._below.route, self._login)


class Proxied(Upgrade):
    """Streams to a place through a proxy. Each is the very stream to the proxy, once that has connected.

    Names are resolved by the proxy. The password is read anew for each stream.

    :param below: makes streams to the proxy; it is closed with this factory.
    :param proxy: which.
    :param place: where the streams lead to, as the proxy sees it.
    :param before: the hops to the proxy, whose errors keep their names.
    :param login: the login, if it is none of the user's.
    :param asking: makes streams to a SOCKS proxy that have the request in them already; ``None`` to send it.
    :raises AddressError: if the address cannot be sent to a proxy: a zone, or a name that is too long.
    """

    def __init__(
        self,
        below: Dialer,
        proxy: Proxy,
        place: TCPAddress,
        before: Route,
        login: Login | None = None,
        asking: Dialer | None = None,
    ) -> None:
        super().__init__(below, str(place))
        _check(place)
        self._proxy = proxy
        self._before = before
        self._login = login
        self._asking = asking
        if asking is not None:
            from .socks_client import expect as connect
            from .socks_client import log_in
        elif proxy.protocol == "socks5" or proxy.protocol in _OVER_WEBSOCKETS:
            from .socks_client import connect, log_in
        else:
            from .http_client import connect, log_in
        self._connect: Say = functools.partial(connect, proxy, place)
        self._log_in: Say = functools.partial(log_in, proxy)

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream; see :meth:`Dialer.dial`."""
        reach = functools.partial(
            (self._asking or self.inner).dial,
            deadline,
            self_contained=self_contained,
            wait_for_reconnect=wait_for_reconnect,
        )
        return self._begin(reach, self._connect, deadline, done)

    def ready(self, timeout: float | None = 30.0) -> None:
        """Try the route to the proxy, and whether a SOCKS5 proxy lets us in (HTTP has no question for that).

        :param timeout: seconds; ``None`` for as long as it takes.
        :raises ConnectError: if it cannot be reached, does not answer in time, or is no such proxy.
        :raises AuthenticationError: if it does not accept the user and the password.
        :raises OSError: why there is no route to it.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            self.inner.ready(timeout)
        except OSError as error:
            raise with_hop(error, self._proxy, self._before) from error
        answer: Promise[Stream] = Promise()
        reach = functools.partial(self.inner.dial, deadline, wait_for_reconnect=False)
        give_up = self._begin(reach, self._log_in, deadline, answer.put)
        try:
            stream = answer.get(deadline, None)
        finally:
            give_up()
        if stream is None:
            raise ConnectError(f"{self._proxy}: no answer in time", reason="connect_timeout")
        stream.close()

    def _begin(self, reach: Callable[[OnResult], Abort], say: Say, deadline: float | None, done: OnResult) -> Abort:
        steps = CallbackChain(done)
        number = max(1, len(self.route))  # of the proxy
        begun = time.monotonic()

        def known(login: Login | OSError | None) -> None:
            if isinstance(login, OSError):
                return steps.finish(login)
            steps.begin(reach, functools.partial(reached, login))
            return None

        def reached(login: Login | None, outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):
                return steps.finish(with_hop(outcome, self._proxy, self._before))
            now = time.monotonic()
            path = outcome.path or StreamPath(((number, now - begun),))
            if self._proxy.protocol in _WITH_SESSION:  # the handshake is a part of the step to the proxy
                path = path._replace(steps=tuple((number if at <= HANDSHAKE else at, s) for at, s in path.steps))
            then = functools.partial(agreed, path, now)
            if not steps.begin(lambda on_stream: self._negotiate(outcome, say(login), deadline, on_stream), then):
                outcome.close()
            return None

        def agreed(path: StreamPath, connected: float, outcome: Stream | OSError) -> None:
            if isinstance(outcome, Stream):
                outcome.target = self.target
                if self._proxy.is_tor:  # tor answers EOF by closing both directions
                    outcome.half_close = False
                outcome.path = path.extended(number + 1, time.monotonic() - connected)
            steps.finish(outcome)

        # The password first: a stream to the proxy must not wait for a callable that asks a user.
        steps.begin(self._read_login, known)
        return steps.give_up

    introduces = False  # a header is for the target, so it goes through the proxy, and not under its session

    def on(self, engine: Engine) -> Dialer:
        """Return itself for a proxy in a session: its answer is looked at in a kernel socket; see :meth:`Dialer.on`."""
        if self._proxy.protocol in _WITH_SESSION:
            return self
        other = super().on(engine)
        if isinstance(other, Proxied) and self._asking is not None:
            other._asking = self._asking.on(engine)
        return other

    def confirming(self) -> Dialer:
        """Return itself: the proxy replies before there is a stream."""
        return self

    def _negotiate(self, stream: Stream, dialogue: Dialogue, deadline: float | None, done: OnResult) -> Abort:
        proxy = self._proxy
        step = self.trace.begin(Stage.PROXY, str(proxy), protocol=proxy.protocol, place=self.target, user=proxy.user)
        return Negotiation(stream, dialogue, deadline, report_to(step, done), self._lost).give_up

    def _read_login(self, on_login: Callable[[Login | OSError | None], object]) -> Abort:
        """Read the user and the password, in a thread where that may block."""
        proxy = self._proxy
        if proxy.user is None:
            on_login(self._login)
        # These two cannot block; a file may lie on a server, and a callable may ask.
        elif isinstance(proxy.password, str) or proxy.password_env is not None:
            on_login(_login(proxy))
        else:
            read = threading.Thread(
                target=lambda: on_login(_login(proxy)), name=f"relay password of {proxy}", daemon=True
            )
            try:
                read.start()
            except RuntimeError as error:
                raise ConnectError(f"{proxy}: {error}", reason="factory_error") from error
        return _nothing

    def _lost(self, error: BaseException) -> OSError:
        """The error of a stream to the proxy that has ended too early."""
        if self._proxy.protocol in _OVER_WEBSOCKETS and isinstance(error, RelayError):
            return ConnectError(str(error))
        if isinstance(self._proxy, HTTPSProxy):
            from ..tls.records import TLSError

            # Since TLS 1.3 a server rejects a client's certificate after the handshake.
            if isinstance(error, TLSError) and error.reason == "denied":
                return ConnectError(f"{error}; check whether it needs cert=, or another one", reason="denied")
            if isinstance(error, TLSError):
                return ConnectError(str(error))
        if isinstance(error, RelayError):
            return with_hop(error, self._proxy, self._before)
        if isinstance(error, EOFError):
            what = "an HTTP proxy" if self._proxy.protocol.startswith("http") else "a SOCKS5 proxy"
            return ConnectError(
                f"{self._proxy}: it closed the connection instead of an answer; check that it is {what}"
            )
        why = error.strerror if isinstance(error, OSError) else None
        return ConnectError(f"{self._proxy}: the connection to the proxy was lost ({why or error})")


def _login(proxy: Proxy) -> Login | OSError:
    try:
        password = secret_of(proxy, "password", f"{proxy.user}'s password of {proxy.place}: ")
        return (proxy.user or "").encode(), (password or "").encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # its text would have the secret in it
        return AuthenticationError(f"{proxy}: the password is no text that can be sent (UTF-8)")
    except OSError as error:
        return error


def _check(place: TCPAddress) -> None:
    """Raise :class:`AddressError` for an address that cannot be sent to a proxy."""
    host, name = place.host, shown(str(place))
    if "%" in host:
        raise AddressError(f"{name}: a proxy does not know zones; remove the % and the text after it")
    if not host.isascii() or not host.isprintable() or " " in host or (":" in host and not is_ipv6(host)):
        raise AddressError(f"{name}: proxies take only ASCII names; write it in its IDNA form")
    if len(host) > LONGEST_HOST:
        shorter = "a name in .b32.i2p is shorter than a destination"
        raise AddressError(f"{host[:16]}…: a proxy takes no name of more than {LONGEST_HOST} bytes; {shorter}")


def _nothing() -> None:
    pass
