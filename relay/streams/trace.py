"""The steps of a dialer on its way to a stream, for an observer such as ``relay doctor``.

A network has a trace, and every dialer, upgrade and shared connection that is made from it reports its steps there. All
of them call the same two methods, so the observer needs no knowledge of a protocol. By default nothing is observed.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator
from typing import TypeVar

Outcome = TypeVar("Outcome")


class Stage(enum.StrEnum):
    """The kinds of steps, with the facts that they report."""

    RESOLVE = "resolve"
    """Addresses of a name. Facts: ``endpoints``, a sequence of :class:`~relay.eventloop.sockets.Endpoint`."""
    CONNECT = "connect"
    """A kernel socket to the first address that answers. Begins with ``endpoints``; facts: ``socket``."""
    TLS = "tls"
    """A TLS handshake. Begins with ``servername``; facts, also of a failure: ``connection``, an ``ssl.SSLObject``."""
    WEBSOCKET = "websocket"
    """An opening handshake of a WebSocket. Begins with ``path``; facts: ``subprotocol``."""
    PROXY = "proxy"
    """A request to a proxy. Begins with ``protocol``, ``place`` and ``user``."""
    SSH_CLIENT = "ssh client"
    """A login by the OpenSSH client, which reports no steps. Facts: none."""
    KEY_EXCHANGE = "key exchange"
    """SSH versions and key exchange. Facts, also of a failure: ``transport``, of paramiko."""
    HOST_KEY = "host key"
    """Verification of the host key. Begins with ``settings`` and ``blob``, the public key."""
    LOGIN = "login"
    """SSH authentication. Facts: ``offered``, ``rejected`` and ``accepted`` methods and keys."""
    CHANNEL = "forwarding"
    """A stream that an SSH server opens to a target. Begins with ``server``."""
    PROGRAM = "program"
    """A program that is started, until it listens. Facts: ``place``, where it does."""
    RESUME = "resume"
    """A session with a resume server, with the carrier and the start of the server. Facts: ``kept``, in seconds."""
    BRIDGE = "sam bridge"
    """A connection to a SAM bridge, from the connect to the answer to HELLO. Facts: ``version``."""
    SESSION = "i2p session"
    """A SAM session, with the tunnels that the router builds for it. Facts: none."""
    DESTINATION = "destination"
    """A stream to an I2P destination, including the lookup by the router."""


class Step:
    """One step under way; its last call is ``done`` or ``failed``, in any thread. This one is not observed."""

    __slots__ = ()

    def note(self, error: BaseException) -> None:
        """Report the error of one attempt, after which the step continues with another attempt."""

    def done(self, **facts: object) -> None:
        """Report success, with the facts of its :class:`Stage`."""

    def failed(self, error: BaseException, **facts: object) -> None:
        """Report the error with which the step has failed."""


class Trace:
    """An observer of steps. This one observes nothing."""

    __slots__ = ()

    changes_nothing = False
    """Whether files of the user must stay as they are: ``accept_new`` then trusts a key without storing it."""

    def begin(self, stage: Stage, subject: str, **facts: object) -> Step:
        """Report that a step begins; called in any thread, and must not block.

        :param stage: its kind.
        :param subject: the target, hop or session.
        :param facts: those of its stage.
        """
        return _UNOBSERVED


_UNOBSERVED = Step()
SILENT = Trace()


@contextlib.contextmanager
def observed(trace: Trace, stage: Stage, subject: str, **facts: object) -> Iterator[dict[str, object]]:
    """Report a step that is a block of code; its error is raised again.

    :param trace: the observer, and the parameters of :meth:`Trace.begin`.
    :returns: for the facts of the step, which the block adds.
    """
    found: dict[str, object] = {}
    step = trace.begin(stage, subject, **facts)
    try:
        yield found
    # An interrupt as well: each step that has begun must end for its observer.
    except BaseException as error:
        step.failed(error, **found)
        raise
    step.done(**found)


def report_to(step: Step, on_result: Callable[[Outcome], object]) -> Callable[[Outcome], object]:
    """Return a callback that reports a stream or an error to a step before it passes it on."""

    def report(outcome: Outcome) -> None:
        if isinstance(outcome, BaseException):
            step.failed(outcome)
        else:
            step.done()
        on_result(outcome)

    return report
