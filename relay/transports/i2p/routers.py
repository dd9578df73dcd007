"""The routers at which a session may be: which one is tried first, and why another one has the session now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...addresses.hops import hop_of
from ...addresses.i2p import Bridges
from ...addresses.values import TCPAddress, TLSTarget
from ...carriers.link import strip_prefix
from ...errors import RelayError, can_retry
from ...streams.dialer import Dialer


class OneRouter:
    """One of the routers at which a connector creates sessions.

    :param address: of its SAM bridge.
    """

    __slots__ = ("address", "dialer", "forgotten")

    def __init__(self, address: TCPAddress | TLSTarget) -> None:
        self.address = address
        self.dialer: Dialer | None = None  # kept, so that the connections below stay supervised
        self.forgotten = 0.0  # when it has forgotten the last session of the key, monotonic seconds

    def __str__(self) -> str:
        return str(self.address).partition("?")[0]


class Routers:
    """The routers of one connector, in the order in which they are tried.

    :param name: of the session, in errors and in the log.
    :param bridges: their addresses.
    :param begin_with: the place of the one that is tried first, from 0; it may be greater than their number.
    """

    def __init__(self, name: str, bridges: Bridges, begin_with: int = 0) -> None:
        self.all = tuple(map(OneRouter, bridges))
        self.first = self.all[begin_with % len(self.all)]
        """The one that the next attempt tries first."""
        self.loss: OSError | None = None
        """Why the last session was lost, until there is another one; ``None`` if there is one router."""
        self._name = name
        self._last = self._before = self.first  # those that have had the last session, and the one before it
        self._last_id = ""  # of the last session
        self._last_loss: OSError | None = None  # of the one before it

    def after(self, router: OneRouter) -> OneRouter:
        """Return the next one; the first one after the last one."""
        return self.all[(self.all.index(router) + 1) % len(self.all)]

    def on_session(self, router: OneRouter, session_id: str) -> None:
        """Stay with a router that has created a session. Called before the session can be lost.

        The loss of an earlier session, which is being drained, is of no interest any more.
        """
        self._last_id = session_id
        self._before, self._last, self.first = self._last, router, router
        self._last_loss, self.loss = self.loss, None

    def on_loss(self, router: OneRouter, session_id: str, error: OSError) -> None:
        """Choose the next router if the last session was lost."""
        if len(self.all) > 1 and session_id == self._last_id:
            # The one after it: what has ended the session may still be wrong with this one.
            self.loss, self.first = error, self.after(router)

    def change(self, errors: Mapping[OneRouter, OSError]) -> str:
        """Describe where the last session is.

        :param errors: of the routers that were tried before, in the same attempt.
        :returns: a line for the log if another router was tried first, or has had the session; else an empty text.
        """
        error = errors.get(self._before) or self._last_loss
        if self._before is self._last or error is None:
            return ""
        return f"the session is at the router {self._last}; {self._before}: {self._why(error)}"

    def failure(self, errors: Mapping[OneRouter, OSError], route: Sequence[object]) -> OSError:
        """Return the error of an attempt that has failed at each router; of a kind that can be retried, if one is.

        :param errors: of the routers.
        :param route: the hops to them; an error that names one of these stays as it is.
        """
        # One router that may come back keeps the carrier trying, whatever is finally wrong with the others.
        error = next((one for one in errors.values() if can_retry(one)), [*errors.values()][-1])
        if isinstance(error, RelayError) and hop_of(error, route) is None:
            whys = "; ".join(f"{router}: {self._why(one)}" for router, one in errors.items())
            error.args = (f"{self._name}: no router creates the session: {whys}{error.advice}",)
        return error

    def _why(self, error: OSError) -> str:
        return strip_prefix(self._name, error).removesuffix(getattr(error, "advice", ""))
