"""The network as seen from a relay at the far end of resumable streams, which dials by SOCKS."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol

from ...addresses.hops import Command, Proxy, Route, is_slow
from ...addresses.size import parse_size
from ...addresses.ssh import SSHServer
from ...addresses.values import TCPAddress, UnixAddress
from ...errors import ConnectError, RelayError
from ...streams.dialer import Dialer, Upgrade
from ...streams.promise import Abort, CallbackChain, OnResult
from ...streams.stream import Stream
from ...streams.trace import SILENT, Trace
from ..resume.client import KEPT, Resuming
from ..resume.greeting import Greeting
from ..resume.session import HELD
from ..resume.wire import ProtocolError
from .dialer import Proxied
from .socks_client import request_of

START = (
    'PATH="$PATH:$HOME/.local/bin:$HOME/bin:/usr/local/bin"; export PATH; '
    "command -v relay >/dev/null 2>&1 || { echo missing; exit 0; }; exec relay resume-server --start"
)
"""What a login runs to start the far end; it prints one line."""

OnSaid = Callable[["str | OSError"], object]

_LONGEST_LINE = 4096  # bytes


class _View(Protocol):
    """The places that the hop reaches by itself."""

    def to(self, place: UnixAddress | Command, /) -> Dialer:
        """Return a dialer."""


class _FarRelay(Proxy):
    """The SOCKS server in the resumable streams of a hop, which has the hop's name in errors."""

    __slots__ = ("name",)

    def __str__(self) -> str:
        name: str = object.__getattribute__(self, "name")
        return name


class FarNetwork:
    """The network as seen from the relay at a hop.

    :param name: of the hop, for errors.
    :param carrier: returns a dialer of the hop's resume server.
    :param before: the hops to it.
    :param kept: seconds for which a stream is kept without a carrier, at most; the far end has a limit of its own.
    :param held: bytes that are kept for one stream, at most.
    :param is_slow: whether the relay is reached over I2P or Tor.
    :param trace: observes the sessions as they begin.
    """

    def __init__(
        self,
        name: str,
        carrier: Callable[[], Dialer],
        before: Route,
        kept: float = math.inf,
        held: int = HELD,
        *,
        is_slow: bool = False,
        trace: Trace = SILENT,
    ) -> None:
        self._bounds = kept, held
        self._is_slow = is_slow
        self._trace = trace
        self._name = name
        self._carrier = carrier
        self._before = before
        self._proxy = _FarRelay("socks5", "resume", 1)
        object.__setattr__(self._proxy, "name", name)

    def to(self, place: TCPAddress) -> Dialer:
        """Return a dialer for a host and a port, as the far relay sees them."""
        # Confirming: a stream that turns out to be none later would be a lost carrier.
        carrier = self._carrier().confirming()
        resuming = Resuming(carrier, self._name, *self._bounds, is_slow=self._is_slow)
        resuming.trace = self._trace
        asking = resuming.saying(request_of(place))
        return Proxied(resuming, self._proxy, place, self._before, asking=asking)


def at_server(server: SSHServer, view: _View, before: Route, trace: Trace = SILENT) -> FarNetwork:
    """Return the network as seen from the relay at an SSH server.

    :param server: with ``resume``.
    :param view: the places that the same server without ``resume`` reaches.
    :param before: the hops to the server.
    :param trace: observes the sessions as they begin.
    """
    kept, held = math.inf if server.resume_for is None else server.resume_for, parse_size(server.resume_buffer)

    def carrier() -> Dialer:
        path = server.resume
        if path is not None and path != "yes":
            return _at(view, path)
        options = ""
        if (kept, held) != (KEPT, HELD):  # else those of the relay there
            options = f" --resume-for {server.resume_for or 'none'} --resume-buffer {held}"
        return _Started(view, str(server), f"sh -c '{START}{options}'")

    return FarNetwork(str(server), carrier, before, kept, held, is_slow=is_slow(before, server), trace=trace)


def _at(view: _View, path: str) -> Dialer:
    return view.to(UnixAddress(path)).confirming()


class _Started(Upgrade):
    """Streams to the socket of a relay that a login starts if it does not run.

    :param view: the places that the server reaches.
    :param name: of the server, for errors.
    :param command: starts it, and prints where it listens.
    """

    def __init__(self, view: _View, name: str, command: str) -> None:
        super().__init__(view.to(Command(command)), name)
        self._view = view
        self._socket: Dialer | None = None

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream; see :meth:`Dialer.dial`."""
        steps: CallbackChain[Stream] = CallbackChain(done)

        def to(dialer: Dialer, done: OnResult) -> Abort:
            return dialer.dial(deadline, done, self_contained=self_contained, wait_for_reconnect=wait_for_reconnect)

        def start() -> None:
            steps.begin(functools.partial(to, self.inner), started)

        def started(outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):
                return steps.finish(outcome)

            def read(on_said: OnSaid) -> Abort:
                return Greeting(outcome, b"", _line, deadline, lambda said, rest: on_said(said)).cancel

            def said(line: str | OSError) -> None:
                if isinstance(line, OSError):
                    return steps.finish(self._explained_start(line))
                outcome.close()
                try:
                    path = self._path(line)
                except OSError as error:
                    return steps.finish(error)
                self._socket = _at(self._view, path)
                steps.begin(functools.partial(to, self._socket), steps.finish)
                return None

            if not steps.begin(read, said):
                outcome.close()
            return None

        def first(outcome: Stream | OSError) -> None:
            # The relay there may have ended, because it had no stream for a while.
            if isinstance(outcome, ConnectError):
                start()
            else:
                steps.finish(outcome)

        if self._socket is None:
            start()
        else:
            steps.begin(functools.partial(to, self._socket), first)
        return steps.give_up

    def close_when_idle(self) -> None:
        """Release the shared connection once it has no streams; see :meth:`Dialer.close_when_idle`."""
        if self._socket is not None:
            self._socket.close_when_idle()
        super().close_when_idle()

    def close(self) -> None:
        """Release the shared connection."""
        if self._socket is not None:
            self._socket.close()
        super().close()

    def _path(self, line: str) -> str:
        """Return the path that the far end has printed.

        :raises ConnectError: if it is none.
        """
        if line.startswith("unix /"):
            return line.removeprefix("unix ")
        if line == "missing":
            text = (
                "relay is not installed there, which resume needs; run pipx install 'relay-toolkit[cli]' there, or "
                "leave resume out"
            )
        else:
            text = f"the relay there cannot serve resumable streams ({line[:200]!r}); check its version"
        raise ConnectError(f"{self.target}: {text}")

    def _explained_start(self, error: OSError) -> OSError:
        if isinstance(error, RelayError):
            return error
        if isinstance(error, TimeoutError):
            text = "the relay there did not start in time"
            return ConnectError(f"{self.target}: {text}", reason="connect_timeout")
        return ConnectError(f"{self.target}: the relay there did not start ({error.strerror or error})")


def _line(data: bytes | bytearray) -> tuple[str, int] | None:
    """Read a line; see :class:`Greeting`."""
    end = data.find(b"\n")
    if end < 0:
        if len(data) > _LONGEST_LINE:
            raise ProtocolError("no line")
        return None
    return data[:end].decode("utf-8", "replace").strip(), end + 1
