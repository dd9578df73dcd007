"""Streams over a carrier, and waiting for one: what SSH and SAM share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from ..errors import CarrierError, ConnectError, RelayError
from ..streams.dialer import Answer, Done, GiveUp, Steps
from ..streams.happy_eyeballs import Cancel
from ..streams.stream import Stream
from .carrier import Carrier
from .link import AnyLink

__all__ = ["as_oserror", "dial", "wait_for"]

_AGAIN = 3  # times that one stream is begun again because the carrier was lost under it

Begin = Callable[[AnyLink, Done], GiveUp]


def dial(
    carrier: Carrier[AnyLink], begin: Begin[AnyLink], deadline: float | None, done: Done, *, patient: bool = True
) -> GiveUp:
    """Begin to make a stream over a carrier: when it is up, and again if it is lost before the stream is there.

    :param begin: begins to make the stream over the link that it is given, tells the function that it is given as well,
        and returns what gives it up; a :class:`CarrierError` says that the link is lost.
    :param deadline: and the others: as for :meth:`relay.streams.dialer.Dialed.dial`.
    """
    return _Dial(carrier, begin, deadline, done, patient=patient).begin()


class _Dial(Generic[AnyLink]):
    """One stream on its way."""

    __slots__ = ("_begin", "_carrier", "_deadline", "_link", "_lost", "_patient", "_steps", "_times")

    def __init__(
        self, carrier: Carrier[AnyLink], begin: Begin[AnyLink], deadline: float | None, done: Done, *, patient: bool
    ) -> None:
        self._carrier = carrier
        self._begin = begin
        self._deadline = deadline
        self._patient = patient
        self._steps = Steps(done)
        self._link: AnyLink | None = None
        self._lost: tuple[AnyLink, CarrierError] | None = None
        self._times = 0

    def begin(self) -> GiveUp:
        link = self._carrier.link
        if link is None or self._lost is not None:
            self._steps.begin(self._wait, self._up)
        else:
            self._up(link)
        return self._steps.give_up

    def _wait(self, told: Callable[[AnyLink | Exception], object]) -> GiveUp:
        return self._carrier.wait(told, self._deadline, patient=self._patient, instead_of=self._lost)

    def _up(self, outcome: AnyLink | Exception) -> None:
        if isinstance(outcome, Exception):
            return self._steps.finish(as_oserror(outcome))
        self._link = outcome
        self._steps.begin(self._open, self._opened)

    def _open(self, told: Done) -> GiveUp:
        assert self._link is not None
        try:
            return self._begin(self._link, told)
        except Exception as error:
            raise as_oserror(error) from error

    def _opened(self, outcome: Stream | OSError) -> None:
        if isinstance(outcome, CarrierError) and self._link is not None and self._times < _AGAIN:
            self._lost = self._link, outcome
            self._times += 1
            self.begin()
        else:
            self._steps.finish(outcome)


def wait_for(
    carrier: Carrier[AnyLink],
    deadline: float | None,
    cancel: Cancel | None,
    *,
    patient: bool,
    instead_of: tuple[AnyLink, CarrierError] | None = None,
) -> AnyLink:
    """Wait until a connection is up; the parameters are those of :meth:`relay.carriers.carrier.Carrier.wait`.

    :raises OSError: why it is not.
    """
    answer: Answer[AnyLink] = Answer()
    give_up = carrier.wait(answer.put, deadline, patient=patient, instead_of=instead_of)
    try:
        link = answer.get(deadline, cancel)
    except OSError:
        raise
    except Exception as error:
        raise as_oserror(error) from error
    finally:
        give_up()
    if link is None:
        given_up = cancel is not None and cancel.is_set()
        problem = "the attempt was given up" if given_up else "not connected in time"
        raise ConnectError(f"{carrier.name}: {problem}", reason="connect_timeout")
    return link


def as_oserror(error: Exception) -> OSError:
    """An error as callers expect it: a bug or the like becomes a :class:`RelayError`."""
    if isinstance(error, OSError):
        return error
    made = RelayError(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made
