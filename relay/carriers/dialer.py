"""Streams over a carrier, and waiting for its link: the common part of SSH and SAM."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic

from ..errors import CarrierError, ConnectError, RelayError
from ..streams.checks import check_time
from ..streams.dialer import Dialer
from ..streams.promise import Abort, CallbackChain, Cancel, OnResult, Promise
from ..streams.stream import Stream, StreamPath
from .carrier_set import SharedCarrier
from .link import AnyLink, CarrierState, Watcher
from .pool import CarrierRef

_MAX_RESTARTS = 3  # times that one stream is started again because the carrier was lost under it

Begin = Callable[[AnyLink, OnResult], Abort]


def dial(
    carrier: SharedCarrier[AnyLink],
    begin: Begin[AnyLink],
    deadline: float | None,
    done: OnResult,
    *,
    wait_for_reconnect: bool = True,
    numbers: tuple[int, int] = (1, 2),
) -> Abort:
    """Open a stream over a carrier once its link is up, and again if the link is lost before the stream is open.

    :param begin: starts to open the stream over the link that it gets, with a callback for the outcome, and returns a
        function that gives up. A :class:`CarrierError` as the outcome means that the link is lost.
    :param deadline: as for :meth:`relay.streams.dialer.Dialer.dial`.
    :param done: as for :meth:`relay.streams.dialer.Dialer.dial`.
    :param wait_for_reconnect: whether to wait, until the deadline, for another attempt when one has failed.
    :param numbers: those of the carrier and of the target on the route, for the path of the stream.
    :returns: gives up: ``done`` is not called after that.
    """
    return _PendingStream(carrier, begin, deadline, done, wait_for_reconnect, numbers).begin()


class _PendingStream(Generic[AnyLink]):
    """One stream that is being opened."""

    __slots__ = (
        "_begin", "_begun", "_carrier", "_deadline", "_link", "_lost", "_numbers", "_restarts", "_steps", "_up",
        "_wait_for_reconnect",
    )  # fmt: skip

    def __init__(
        self,
        carrier: SharedCarrier[AnyLink],
        begin: Begin[AnyLink],
        deadline: float | None,
        done: OnResult,
        wait_for_reconnect: bool,
        numbers: tuple[int, int],
    ) -> None:
        self._carrier = carrier
        self._begin = begin
        self._deadline = deadline
        self._wait_for_reconnect = wait_for_reconnect
        self._steps = CallbackChain(done)
        self._link: AnyLink | None = None
        self._lost: tuple[AnyLink, CarrierError] | None = None
        self._restarts = 0
        self._numbers = numbers
        self._begun = self._up = time.monotonic()

    def begin(self) -> Abort:
        link = self._carrier.link
        if link is None or self._lost is not None:
            self._steps.begin(self._wait, self._on_link_at_last)
        else:
            self._on_link(link)
        return self._steps.give_up

    def _wait(self, callback: Callable[[AnyLink | Exception], object]) -> Abort:
        return self._carrier.when_up(
            callback, self._deadline, wait_for_reconnect=self._wait_for_reconnect, instead_of=self._lost
        )

    def _on_link_at_last(self, outcome: AnyLink | Exception) -> None:
        self._up = time.monotonic()
        self._on_link(outcome)

    def _on_link(self, outcome: AnyLink | Exception) -> None:
        if isinstance(outcome, Exception):
            return self._steps.finish(as_oserror(outcome))
        self._link = outcome
        self._steps.begin(self._open, self._on_stream)

    def _open(self, on_result: OnResult) -> Abort:
        assert self._link is not None
        try:
            return self._begin(self._link, on_result)
        except Exception as error:
            raise as_oserror(error) from error

    def _on_stream(self, outcome: Stream | OSError) -> None:
        # Nothing was sent on a stream that was never open, so that it can begin again unseen.
        if isinstance(outcome, CarrierError) and self._link is not None and self._restarts < _MAX_RESTARTS:
            self._lost = self._link, outcome
            self._restarts += 1
            self.begin()
        else:
            if isinstance(outcome, Stream):
                outcome.path = self._path()
            self._steps.finish(outcome)

    def _path(self) -> StreamPath:
        begun, up, (carrier, target) = self._begun, self._up, self._numbers
        opened = (target, time.monotonic() - up)
        steps = (opened,) if up == begun else ((carrier, up - begun), opened)
        return StreamPath(steps, self._carrier.name, self._restarts + 1)


class CarrierDialer(Dialer, Generic[AnyLink]):
    """A dialer whose streams share a supervised connection.

    :param target: the name of the target in records.
    :param holder: the reference to the connection.
    """

    def __init__(self, target: str, holder: CarrierRef[AnyLink]) -> None:
        super().__init__(target)
        self._holder = holder

    @property
    def state(self) -> str:
        """The state of the shared connection: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``."""
        held = self._holder.shared
        return held.state.value if held is not None else CarrierState.CLOSED.value

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change of the connection's state.

        The connection stays open from now on. Closing this dialer ends the calls; its next use resumes them.

        :param watcher: called in a thread of relay with the new state, an enumeration member whose ``value`` is that of
            :attr:`state`, and with the error, or ``None``. It must not block; an error that it raises is logged.
        :raises OSError: if the system has no threads or descriptors left.
        """
        self._holder.subscribe(watcher)

    @property
    def last_error(self) -> str | None:
        """The last error of the shared connection; ``None`` if there is none."""
        held = self._holder.shared
        error = held.error if held is not None else None
        return str(as_oserror(error)) if error is not None else None

    def ready(self, timeout: float | None = 30.0) -> None:
        """Connect, and log in if there is a login, unless the connection is open, and wait for one attempt.

        After a :class:`ConnectError` or :class:`CarrierError` relay retries in the background, until this dialer is
        closed.

        :param timeout: seconds; ``None`` for no limit.
        :raises HostKeyError: if the server's host key is not trusted.
        :raises AuthenticationError: if the server accepts none of the credentials.
        :raises ConnectError: if the server is unreachable or does not reply in time.
        :raises CarrierError: if the connection was lost meanwhile.
        :raises RelayError: if the configuration is unusable, or a program is missing.
        :raises TypeError: if ``timeout`` is not a number.
        :raises ValueError: if it is not positive.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        wait_until_up(self._holder.carrier(), deadline, None, wait_for_reconnect=False)

    def close_when_idle(self) -> None:
        """Release the connection, which closes when its last stream has ended. Does not wait."""
        self._holder.close(drain_timeout=0.0)

    def close(self) -> None:
        """Release the connection, which closes when its last stream has ended. Idempotent; the next use reconnects."""
        self._holder.close()


def wait_until_up(
    carrier: SharedCarrier[AnyLink],
    deadline: float | None,
    cancel: Cancel | None,
    *,
    wait_for_reconnect: bool,
    instead_of: tuple[AnyLink, CarrierError] | None = None,
) -> AnyLink:
    """Wait until a carrier is up, and return its link.

    :param deadline: as for :meth:`relay.carriers.carrier.Carrier.when_up`, and so are the parameters after ``cancel``.
    :param cancel: ends the wait when set.
    :raises OSError: why it is not up.
    """
    answer: Promise[AnyLink] = Promise()
    give_up = carrier.when_up(answer.put, deadline, wait_for_reconnect=wait_for_reconnect, instead_of=instead_of)
    try:
        link = answer.get(deadline, cancel)
    except OSError:
        raise
    except Exception as error:
        raise as_oserror(error) from error
    finally:
        give_up()
    if link is None:
        problem = "the attempt was given up" if answer.cancelled else "not connected in time"
        raise ConnectError(f"{carrier.name}: {problem}", reason="connect_timeout")
    return link


def as_oserror(error: Exception) -> OSError:
    """Return the error as callers expect it: an OSError as it is, any other as the cause of a :class:`RelayError`."""
    if isinstance(error, OSError):
        return error
    made = RelayError(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made
