"""The calls of a carrier that may block: connecting and closing, each on a thread of its own."""

from __future__ import annotations

import errno
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

from ..errors import CarrierError, ConnectError
from ..eventloop.histogram import CONNECT_TIMES, Durations
from ..streams.promise import Cancellation, Promise
from .link import AnyLink, Connector

logger = logging.getLogger("relay")

_ANSWER = 10.0  # seconds for the first answer over a link that replaces another one


class BlockingCalls(Generic[AnyLink]):
    """Calls the connector and the links of one carrier.

    :param name: of the carrier, for the log and the threads.
    :param connector: makes the links.
    :param attempt_timeout: seconds for one attempt.
    :param call: calls a function in the carrier's thread.
    """

    def __init__(
        self,
        name: str,
        connector: Connector[AnyLink],
        attempt_timeout: float,
        call: Callable[[Callable[[], object]], bool],
    ) -> None:
        self.cancel = Cancellation()  # set when the carrier is closed
        self.connect_times = Durations(CONNECT_TIMES)
        """How long the attempts took that have made a link."""
        self._name = name
        self._connector = connector
        self._attempt_timeout = attempt_timeout
        self._call = call

    def connect(
        self,
        connected: Callable[[AnyLink, Sequence[CarrierError]], object],
        failed: Callable[[Exception], object],
        lost: Callable[[AnyLink, CarrierError], object],
        *,
        confirm: bool = False,
    ) -> None:
        """Start an attempt. Each callback is called in the carrier's thread.

        :param connected: takes the link, and the error if it was lost already.
        :param failed: takes the error; it is called before this returns if no thread is available.
        :param lost: takes a link that was lost later, and the error.
        :param confirm: whether the attempt has failed if the peer does not answer over the new link.
        """
        run = functools.partial(self._connect, connected, failed, lost, confirm)
        thread = threading.Thread(target=run, name=f"relay {self._name} connecting", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            failed(OSError(errno.EAGAIN, str(error)))

    def close_link(self, link: AnyLink) -> None:
        """Close a link."""
        self._in_thread(functools.partial(self._log_failure_of, link.close))

    def close(self, link: AnyLink | None, then: Callable[[], object]) -> None:
        """Close a link, if there is one, and the connector; then call ``then`` in the same thread."""
        self._in_thread(functools.partial(self._close, link, then))

    def _connect(
        self,
        connected: Callable[[AnyLink, Sequence[CarrierError]], object],
        failed: Callable[[Exception], object],
        lost: Callable[[AnyLink, CarrierError], object],
        confirm: bool,
    ) -> None:
        errors: list[CarrierError] = []  # the link may be lost before it is known
        known: list[AnyLink] = []
        answer: Promise[bool] = Promise()

        def on_lost(error: CarrierError) -> None:
            errors.append(error)
            answer.put(error)
            if known:
                self._call(functools.partial(lost, known[0], error))

        begun = time.monotonic()
        try:
            link = self._connector.connect(begun + self._attempt_timeout, self.cancel, on_lost)
            if confirm:
                self._confirm(link, answer)
            known.append(link)
        except BaseException as error:  # noqa: BLE001  (an unexpected error is final, and goes to the clients)
            failure = error if isinstance(error, Exception) else RuntimeError(repr(error))  # sys.exit() of a callback
            self._call(functools.partial(failed, failure))
        else:
            self.connect_times.add([time.monotonic() - begun])
            self._call(functools.partial(connected, link, errors))

    def _confirm(self, link: AnyLink, answer: Promise[bool]) -> None:
        """Wait until the peer has answered over a new link; close the link if it does not."""
        try:
            link.confirm(functools.partial(answer.put, True))
            if answer.get(time.monotonic() + _ANSWER, self.cancel) is None:
                raise ConnectError(f"{self._name}: the new connection brings no answer", reason="connect_timeout")
        except BaseException:
            self._log_failure_of(link.close)
            raise

    def _close(self, link: AnyLink | None, then: Callable[[], object]) -> None:
        if link is not None:
            self._log_failure_of(link.close)
        # After the link: the connector's dialers are under it.
        self._log_failure_of(self._connector.close)
        # Last: an attempt that has not returned may still wait on its descriptor.
        self.cancel.close()
        then()

    def _log_failure_of(self, close: Callable[[], object]) -> None:
        try:
            close()
        except Exception:
            logger.exception("%s: closing it failed", self._name)

    def _in_thread(self, function: Callable[[], object]) -> None:
        """Call a function on a thread of its own; here if no thread is available."""
        try:
            threading.Thread(target=function, name=f"relay {self._name} closing", daemon=True).start()
        except RuntimeError:
            # Better late than never: a link that is not closed keeps its streams open.
            function()
