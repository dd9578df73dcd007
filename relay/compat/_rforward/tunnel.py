"""The reverse tunnel of :mod:`relay.compat.rforward`: one forwarded port of a connected SSH server.

The caller's threads set what the tunnel is to be, and its own thread asks the server for that:

========= ==================== ========= =============================================================================
state     event                next      action
                               state
========= ==================== ========= =============================================================================
LISTENING pause                PAUSED    accept no client; reset the connections; cancel the forward at the server
LISTENING the server denies it PAUSED    accept no client; reset the connections; report the error
LISTENING stop                 STOPPED   as for pause; end the thread
PAUSED    resume               LISTENING accept clients; ask the server to listen
PAUSED    stop                 STOPPED   end the thread
STOPPED   the server denies it STOPPED   report the error
any       another one          the same  none
========= ==================== ========= =============================================================================

A tunnel begins as LISTENING, also before its thread starts, and it may be paused before that.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import paramiko

from ...addresses.values import TCPAddress, check_host_port, check_port
from ...engine.tunnel import Tunnel
from ...errors import CarrierError, ForwardError
from ...transports.tcp import tcp
from .channels import ChannelQueue
from .forwards import Forwards
from .log import DEBUG, DEFAULT, WARN, Log

__all__ = ["RevFwTunnel", "TunnelState"]

_HOST = "127.0.0.1"  # address on which the server listens
_ANSWER = 10.0  # seconds for the server to answer one request
_SLACK = 1.0  # seconds that callers wait longer than the thread that waits for the answer
_PATIENCE = 3 * _ANSWER + _SLACK

_Outcome = SimpleQueue[Exception | None]


class TunnelState(enum.Enum):
    """The state of a reverse tunnel; the docstring of the module has the table."""

    LISTENING, PAUSED, STOPPED = range(3)


class _DeniedError(ForwardError):
    """The server has refused twice."""


class RevFwTunnel(threading.Thread):
    """Relays connections to a port of the SSH server to a target that this program can reach.

    The server listens on its 127.0.0.1. Any number of tunnels, and other forwards of the caller, can share one
    transport: each gets its own connections, even if others are paused or stopped. The thread ends with
    :meth:`stop_thread`, or when the transport ends. On the transport's thread call only :meth:`notify`, :meth:`pause`
    and :meth:`stop_thread`, which do not wait for the server's answer there.

    :param server_port: port on which the server listens; 0 lets it choose, and then the attribute has the port.
    :param remote_host: host of the target: an address or a name, which is resolved for every connection.
    :param remote_port: port of the target.
    :param ssh_transport: a transport after the login. The caller still owns it.
    :param session_instance: its ``HOOK_rforward_request_denied(server_port=…)``, if it has one, is called instead of
        an error when the server has denied the forward twice.
    :param logger: a :class:`logging.Logger`, or a logger of X2Go, which is called with ``(message, loglevel=…)``;
        ``None`` for the logger ``relay.rforward``.
    :param loglevel: a mask of X2Go's bits (8 errors, 16 warnings, 32 notices, 64 information, 128
        details); a logger of X2Go has its own.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument is invalid.

    Source: ``x2go.rforward.X2GoRevFwTunnel`` of Python X2Go; RFC 4254, section 7.
    """

    def __init__(
        self,
        server_port: int,
        remote_host: str,
        remote_port: int,
        ssh_transport: paramiko.Transport,
        session_instance: Any = None,
        logger: Any = None,
        loglevel: int = DEFAULT,
    ) -> None:
        _check("server", check_port, server_port, 0)
        _check("remote", check_host_port, remote_host, remote_port)
        if not isinstance(ssh_transport, paramiko.Transport):
            kind = type(ssh_transport).__name__
            raise TypeError(f"ssh_transport: expected a paramiko.Transport, got {kind}")
        super().__init__(name=f"relay rforward to {TCPAddress(remote_host, remote_port)}", daemon=True)
        self.server_port = server_port
        self.remote_host = remote_host
        self.remote_port = remote_port
        self.ssh_transport = ssh_transport
        self.session_instance = session_instance
        self.logger = Log(logger, loglevel)
        self.problem: CarrierError | None = None
        """Why the thread has ended by itself."""
        self._control = threading.Lock()  # one of pause and resume at a time; not held during a wait for the server
        self._state = TunnelState.LISTENING
        self._listening: TCPAddress | None = None
        self._asked: SimpleQueue[_Outcome | None] = SimpleQueue()  # to follow, of the thread; None ends it
        self._lock = threading.Lock()  # for what follows
        self._serving = False
        self._wards: set[Callable[[], object]] = set()  # each ends a channel handler whose parent this is
        self._channels = ChannelQueue(self.logger)
        self._engine: Tunnel | None = None

    # -- public -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to listen on the server, and relay. Returns once the server listens, or once the hook was called.

        :raises ForwardError: if the server denies it twice (and there is no hook) or does not answer within 10 s.
        :raises CarrierError: if the SSH connection has ended.
        :raises RuntimeError: if it was started before.
        :raises OSError: if the system has no descriptor left.
        """
        if self.ident is not None:
            raise RuntimeError("threads can only be started once")
        self._begin()
        try:
            super().start()
        except BaseException:
            self._end()
            raise
        error = self._apply_state_and_wait(_PATIENCE)
        if error is not None:
            if not self._survives(error):
                self._asked.put(None)
                self.join(_ANSWER)
            self._report(error)

    def run(self) -> None:
        """Run the thread; see :meth:`start`.

        :raises ForwardError: and the others, if it is called directly, as :meth:`start` would.
        """
        try:
            if threading.current_thread() is not self:
                self._begin()
                if (error := self._try_to_apply_state()) is not None:
                    self._report(error)
            self._serve()
        finally:
            self._end()

    def pause(self) -> None:
        """Stop listening on the server, accept no client, and reset the open connections. Idempotent.

        In force, but for the server's answer, at once; that is waited for, for up to ten seconds.
        """
        self._leave(TunnelState.PAUSED)

    def _leave(self, state: TunnelState) -> None:
        with self._control:
            before = self._state
            if before is not TunnelState.STOPPED:
                self._state = state
            if before is not TunnelState.LISTENING:
                return
            self._cut()
        if (error := self._apply_state_and_wait(_ANSWER + _SLACK)) is not None:
            self.logger(str(error), loglevel=WARN)
        self.logger(f"paused thread: {self!r}", loglevel=DEBUG)

    def resume(self) -> None:
        """Listen on the server again, at the same port. Idempotent.

        :raises OSError: as :meth:`start` does; then it is still paused.
        """
        with self._control:
            if self._state is not TunnelState.PAUSED:
                return
            if self.problem is not None:
                raise self.problem
            self._allow()
        if (error := self._apply_state_and_wait(_PATIENCE)) is not None:
            self._report(error)
        else:
            self.logger(f"resumed thread: {self!r}", loglevel=DEBUG)

    def notify(self) -> None:
        """A handler of the caller's own has put a channel for this tunnel into the transport's accept queue: take it.

        Called in that handler, it takes the very channel; elsewhere the oldest one of the queue. A channel that is
        put there by a handler just after this call is found, too.
        """
        self.logger(f"notifying thread of incoming channel: {self!r}", loglevel=DEBUG)
        if self._serving:
            self._forwards().announce(self._channels)

    def stop_thread(self) -> None:
        """End it for good: as :meth:`pause`, and the thread ends. The transport stays open. Idempotent."""
        self.logger(f"stopping thread: {self!r}", loglevel=DEBUG)
        self._leave(TunnelState.STOPPED)
        self._asked.put(None)
        if self.ident is not None and not self._must_not_wait():
            self.join(_ANSWER)

    def cancel_port_forward(self, address: str, port: int) -> None:
        """Stop listening at an address of the server; waits up to ten seconds for its answer.

        :param address: as it was asked for. For the tunnel's own port it is always 127.0.0.1.
        :param port: the port there.
        """
        place = TCPAddress(_HOST if port == self.server_port else address, port)
        if place == self._listening:
            self._listening = None
        may_wait = threading.current_thread() is not self.ssh_transport
        if not self._forwards().cancel(place, _ANSWER if may_wait else 0.0) and may_wait:
            self.logger(f"{place}: no answer from the SSH server to the cancellation", loglevel=WARN)

    def __repr__(self) -> str:
        state = "open" if self._serving else "not open"
        if self._state is not TunnelState.LISTENING:
            state = self._state.name.lower()
        to = TCPAddress(self.remote_host, self.remote_port)
        return f"<{type(self).__name__} {_HOST}:{self.server_port} to {to}, {state}>"

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the engine."""
        factory = tcp(self.remote_host, self.remote_port)
        self._engine = Tunnel(self._channels, factory, timeout=None, name=self.name)
        if self._state is not TunnelState.LISTENING:
            self._cut()
        self._serving = True
        self._forwards().requests.watch(self._on_loss)

    def _try_to_apply_state(self) -> Exception | None:
        try:
            self._apply_state()
        except OSError as error:
            return error
        return None

    def _serve(self) -> None:
        while (outcome := self._asked.get()) is not None:
            outcome.put(self._try_to_apply_state())
        requests = self._forwards().requests
        if requests.ended and self._state is not TunnelState.STOPPED:
            self.problem = requests.lost()
            self.logger(f"{self.problem}; {self!r} ends", loglevel=WARN)

    def _end(self) -> None:
        with self._lock:
            self._serving = False
        self._forwards().requests.unwatch(self._on_loss)
        self._cut()
        if self._engine is not None:
            self._engine.close()
        try:
            while True:
                if (outcome := self._asked.get_nowait()) is not None:
                    outcome.put(self.problem)
        except Empty:
            pass

    def _apply_state(self) -> None:
        """Apply the current state: paused, or listening at the server."""
        if self._state is not TunnelState.LISTENING:
            self._cancel()
        elif self._listening is None:
            try:
                self._listen()
            except OSError:
                with self._control:
                    if self._state is TunnelState.LISTENING:
                        self._state = TunnelState.PAUSED
                    self._cut()
                raise

    def _listen(self) -> None:
        """Ask the server; where it denies that, once more after cancelling what a dead session may hold."""
        forwards = self._forwards()
        wanted = TCPAddress(_HOST, self.server_port)
        granted = forwards.listen(wanted, self._channels, _ANSWER)
        if granted is None:
            forwards.cancel(wanted, _ANSWER)
            granted = forwards.listen(wanted, self._channels, _ANSWER)
        if granted is None:
            raise _DeniedError(
                f"{wanted}: the SSH server does not listen there; check that the port is free "
                "and that the server allows it (AllowTcpForwarding, PermitListen)"
            )
        self._listening = granted
        self.server_port = granted.port

    def _cancel(self) -> None:
        if self._listening is not None:
            self.cancel_port_forward(self._listening.host, self._listening.port)

    def _on_loss(self) -> None:
        """In any thread."""
        self._asked.put(None)

    # -- what they have in common -------------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Accept no client, and reset the open connections."""
        self._channels.refuse()
        if self._engine is not None:
            self._engine.pause(close=True)
            self._channels.cut()
        with self._lock:
            wards = list(self._wards)
        for end in wards:
            end()

    def _allow(self) -> None:
        self._state = TunnelState.LISTENING
        self._channels.allow()
        if self._engine is not None:
            self._engine.resume()

    def _survives(self, error: Exception) -> bool:
        return isinstance(error, _DeniedError) and self._hook() is not None

    def _report(self, error: Exception) -> None:
        hook = self._hook()
        if not isinstance(error, _DeniedError) or hook is None:
            raise error
        self.logger(str(error), loglevel=WARN)
        hook(server_port=self.server_port)

    def _hook(self) -> Callable[..., object] | None:
        hook = getattr(self.session_instance, "HOOK_rforward_request_denied", None)
        return hook if callable(hook) else None

    def _must_not_wait(self) -> bool:
        return threading.current_thread() in (self, self.ssh_transport)

    def _apply_state_and_wait(self, seconds: float) -> Exception | None:
        """Apply the current state on the thread that may block, and wait for it, but not for ever.

        :returns: what went wrong.
        """
        outcome: _Outcome = SimpleQueue()
        with self._lock:
            if not self._serving:
                return self.problem
            self._asked.put(outcome)
        if self._must_not_wait():
            return None
        try:
            return outcome.get(timeout=seconds)
        except Empty:
            return ForwardError(f"{self!r}: the SSH connection takes nothing more; check that the server is running")

    def _forwards(self) -> Forwards:
        return Forwards.of(self.ssh_transport)

    def adopt(self, end: Callable[[], object]) -> bool:
        """Call ``end`` when this is paused; it must not block.

        :returns: ``False`` if it is paused already.
        """
        with self._lock:
            self._wards.add(end)
        return self._state is TunnelState.LISTENING

    def release(self, end: Callable[[], object]) -> None:
        """Do not call it."""
        with self._lock:
            self._wards.discard(end)


def _check(which: str, check: Callable[..., None], *values: Any) -> None:
    """Check a host or a port, and have the error name the parameter."""
    try:
        check(*values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{which}_{error}") from None
