"""The program's side of a tunnel in a child process; :mod:`relay.spawning.child` is the other."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..addresses.options import secret_variables
from ..engine.records import ConnectionRecord, Metrics, Stats
from ..errors import RelayError
from ..streams.checks import check_time
from .wire import Channel, Message, to_address, to_error, to_log_record, to_metrics, to_record, to_stats

if TYPE_CHECKING:
    from ..process import Process

__all__ = ["ChildTunnel"]

logger = logging.getLogger("relay")

_START = 60.0  # seconds for a child to listen: a name to listen at may have to be looked up
_START_AT_I2P = 600.0  # the same where a router builds tunnels first
_ANSWER = 10.0  # seconds for any other answer
_END = 5.0  # seconds for a child to end before it is killed

_living: set[ChildTunnel] = set()


class ChildTunnel:
    """A tunnel in a child process, made by :func:`spawn`: the members of :class:`~relay.Tunnel`, and :attr:`pid`.

    Every member may be called from any thread. Those that ask the child raise :class:`RelayError` if it has died or
    does not answer. In a forked child of the program it is closed, and the tunnel stays with the program.

    :param process: the child, which has the other end of ``control`` as its standard input.
    :param control: one end of a socketpair.
    :param receive: the socket to listen with, if there is one.
    :param request: what the child is to do; see :func:`relay.spawning.child.main`.
    :raises Exception: what the child raised, or :class:`RelayError` if it does not listen; the arguments then stay with
        the caller.
    """

    def __init__(
        self, process: Process, control: socket.socket, receive: socket.socket | None, request: Message
    ) -> None:
        self._process = process
        self._control = control
        self._channel = Channel(control)
        self._receive = receive
        self._turn = threading.Lock()  # held while the child is asked
        self._gate = threading.Lock()  # held while the control socket is shut down or closed
        self._number = 0
        self._closing = False
        self._last: Message = {}  # answers to what may still be asked when the tunnel is closed
        self._lost = ""  # why there are none
        self._events, its_events = socket.socketpair()
        try:
            with its_events:
                answer = self._begin(request, its_events)
            self.name: str = answer["name"]
            self._address = to_address(answer["address"])
            self._thread = threading.Thread(target=self._watch, name=self.name, daemon=True)
            _living.add(self)
            self._thread.start()
        except BaseException:
            _living.discard(self)
            self._events.close()
            raise

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    @property
    def address(self) -> Any:
        """The address of the listener, as ``getsockname()`` returns it."""
        return self._address

    def pause(self, close: bool = False) -> None:
        """Accept no more connections; in force when the call returns.

        :param close: whether live connections are ended, too, by a reset.
        :raises RelayError: if the child has died or does not answer.
        """
        self._ask("pause", close)

    def resume(self) -> None:
        """Accept connections again after :meth:`pause`; in force when the call returns.

        :raises RelayError: if the child has died or does not answer.
        """
        self._ask("resume")

    def connections(self) -> list[ConnectionRecord]:
        """The live connections, one record each.

        :raises RelayError: if the child has died or does not answer.
        """
        return [to_record(fields) for fields in self._ask("connections")]

    def recent(self) -> list[ConnectionRecord]:
        """The last 100 connections that ended, oldest first, each with its reason.

        :raises RelayError: if the child has died or does not answer.
        """
        return [to_record(fields) for fields in self._ask("recent")]

    def stats(self) -> Stats:
        """The counters of the tunnel.

        :raises RelayError: if the child has died or does not answer.
        """
        return to_stats(self._ask("stats"))

    def metrics(self) -> Metrics:
        """All counters of the tunnel, for monitoring.

        :raises RelayError: if the child has died or does not answer.
        """
        return to_metrics(self._ask("metrics"))

    def kill(self, connection_id: str) -> bool:
        """Reset one open connection; see :meth:`relay.Tunnel.kill`.

        :raises RelayError: if the child has died or does not answer.
        """
        return bool(self._ask("kill", connection_id))

    def join(self, timeout: float | None = None) -> None:
        """Wait until the child has ended, for whatever reason.

        :param timeout: seconds to wait; ``None`` for ever.
        """
        self._thread.join(timeout)

    def close(self, drain: float = 0.0) -> None:
        """Stop listening at once, end every connection, and wait for the child to end. Idempotent, from any thread.

        Called from a log handler it marks the tunnel as closing and returns. A child that does not end is killed.

        :param drain: seconds that connections may take to finish first; those that are left are reset. A second call
            with a shorter time shortens it.
        :raises TypeError: if ``drain`` is not a number.
        :raises ValueError: if it is negative.
        """
        seconds = check_time("drain", drain, zero=True)
        self._closing = True
        if self._receive is not None:
            self._receive.close()
        if seconds != 0:
            with contextlib.suppress(RelayError):  # the child has ended: there is nothing left to wait for
                self._ask("drain", seconds)
        if threading.current_thread() is not self._thread:
            self._thread.join(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
            self._end()
        elif seconds == 0:
            self._close_control()

    def __enter__(self) -> ChildTunnel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closing" if self._closing else "open"
        if not self._thread.is_alive():
            state = "lost" if self._lost else "closed"
        return f"<{type(self).__name__} {self.name!r} at {self._address}, process {self.pid}, {state}>"

    def _begin(self, request: Message, its_events: socket.socket) -> Message:
        """Tell the child what to do, and wait until it listens."""
        patience = _START_AT_I2P if str(request["listen"]).lower().startswith("i2p") else _START
        patience += request.get("ready") or 0.0
        deadline = time.monotonic() + patience
        ends = [its_events] if self._receive is None else [its_events, self._receive]
        try:
            socket.send_fds(self._control, [b"\n"], [end.fileno() for end in ends])
            own = {"level": logger.getEffectiveLevel(), "program": os.getpid(), "secrets": sorted(secret_variables())}
            request = {**request, **own}
            self._channel.send(request, deadline)
            answer = self._channel.receive(deadline)
        except TimeoutError:
            raise RelayError(f"the child process did not listen within {patience:.0f} s") from None
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        if answer is None:
            raise RelayError(
                f"the child process did not start: it {_describe_exit(self._process)}; see its standard error"
            )
        if "error" in answer:
            raise to_error(answer["error"])
        return answer

    def _ask(self, call: str, *arguments: object) -> Any:
        """Call a member of the child's tunnel."""
        try:
            answer = self._exchange(call, arguments, time.monotonic() + _ANSWER)
        except TimeoutError:
            text = f"{self.name}: the child process {self.pid} did not answer within {_ANSWER:.0f} s"
            raise RelayError(text) from None
        except OSError:
            answer = None
        if answer is None:
            return self._read_final_state(call)
        if "error" in answer:
            raise to_error(answer["error"])
        return answer["value"]

    def _exchange(self, call: str, arguments: Sequence[object], deadline: float) -> Message | None:
        if not self._turn.acquire(timeout=_ANSWER):
            raise TimeoutError
        try:
            self._number += 1
            number, level = self._number, logger.getEffectiveLevel()
            self._channel.send({"number": number, "call": call, "arguments": arguments, "level": level}, deadline)
            while (answer := self._channel.receive(deadline)) is not None and answer["number"] != number:
                pass  # an earlier call did not wait for it
            return answer
        finally:
            self._turn.release()

    def _read_final_state(self, call: str) -> Any:
        if threading.current_thread() is not self._thread:
            self._thread.join(_END)
        if self._lost:
            raise RelayError(f"{self.name}: {self._lost}")
        return self._last.get(call)

    def _watch(self) -> None:
        """Take what the child says unasked, until its end."""
        channel = Channel(self._events)
        try:
            while (message := channel.receive()) is not None:
                if "log" in message:
                    _log(message["log"])
                else:
                    self._last = message["last"]
                    self._closing = self._closing or message["expired"]
        finally:
            self._record_exit()

    def _record_exit(self) -> None:
        fate = _describe_exit(self._process)
        if not self._closing or not self._last:
            self._lost = f"the child process {self.pid} {fate}, and its connections are lost; spawn it again"
        with self._turn, self._gate:
            self._control.close()
        self._events.close()
        if self._receive is not None:
            self._receive.close()
        _living.discard(self)
        if self._lost:
            logger.error("%s: %s", self.name, self._lost)

    def _close_control(self) -> None:
        """Let the child end as it would at the end of this program. Never blocks."""
        self._closing = True
        with self._gate:
            try:
                self._control.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended

    def _end(self) -> None:
        self._close_control()
        self._thread.join(_END)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(_END)

    def _forget(self) -> None:
        """Reset the object in a forked child: the watching thread does not run, and no other thread releases a lock."""
        self._turn = threading.Lock()
        self._gate = threading.Lock()
        self._closing = True
        self._last = {}
        self._lost = "it stays with the process that spawned it"
        self._process.returncode = 0  # not a child of this process
        self._control.close()
        self._events.close()
        if self._receive is not None:
            self._receive.close()


def _log(fields: Message) -> None:
    record = to_log_record(fields)
    its_logger = logging.getLogger(record.name)
    try:
        if its_logger.isEnabledFor(record.levelno):
            its_logger.handle(record)
    except Exception:  # noqa: BLE001 - a user's filter or handler; it must not end the watch
        threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))


def _describe_exit(process: Process) -> str:
    """Wait for the end of a process, and describe it."""
    status = process.wait()
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _close_all() -> None:
    """At the interpreter's end, while there still is one for the log records."""
    living = list(_living)
    for child in living:
        child._close_control()
    for child in living:
        child._end()


def _forget_all() -> None:
    while _living:
        _living.pop()._forget()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
