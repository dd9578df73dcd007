"""Planned renewal of a carrier: another link is made while the old one is up, and the old one is drained."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from ..errors import can_retry
from ..eventloop.loop import Timer
from .carrier import Carrier
from .link import CarrierState
from .retry import RETRY_REJECTED_AFTER

_SPREAD = 0.1  # part of the time by which a renewal may be early, so that fifty carriers do not renew together
_RETRY = 0.1  # part of the time after which a renewal is tried again; one that was rejected waits all of the time
_MAX_DRAINING = 4  # links with streams that earlier renewals have left; with as many there is no further renewal


def renew(carrier: Carrier[Any], seconds: float | None) -> None:
    """Renew a carrier from now on, each time that its link has been up for some time.

    :param carrier: one that has not begun.
    :param seconds: that time; each renewal is up to a tenth earlier. ``None`` for never.
    """
    if seconds is not None:
        carrier.subscribe(_Renewal(carrier, seconds).on_state)


class _Renewal:
    """The renewals of one carrier. Everything runs on the I/O thread."""

    def __init__(self, carrier: Carrier[Any], seconds: float) -> None:
        self._carrier = carrier
        self._seconds = seconds
        self._rejected: Exception | None = None  # the last error of a renewal that no retry repairs
        self._timer = Timer(carrier.timers, self._on_time)

    def on_state(self, state: CarrierState, _: Exception | None) -> None:
        """Start the time with each new link."""
        if state is CarrierState.UP:
            self._start(self._seconds)
        else:
            self._timer.stop()

    def _on_time(self, now: float) -> None:
        link, error = self._carrier.link, self._carrier.replacement_error
        if error is not None and error is not self._rejected and not can_retry(error):
            self._rejected = error
            return self._start(max(self._seconds, RETRY_REJECTED_AFTER))
        self._start(self._seconds * _RETRY)  # unless the renewal succeeds before
        # Streams that never end would leave one more link with each renewal.
        if link is not None and self._carrier.links.replaced < _MAX_DRAINING:
            self._carrier.replace(link, f"it was up for {self._seconds:g} s (renew_after)", logging.INFO)
        return None

    def _start(self, seconds: float) -> None:
        now = time.monotonic()
        self._timer.start(now + seconds * random.uniform(1 - _SPREAD, 1), now)  # noqa: S311  (this needs no secrecy)
