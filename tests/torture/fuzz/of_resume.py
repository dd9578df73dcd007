"""Targets: the resume protocol, its greetings in both roles and its frames."""

from __future__ import annotations

from relay.transports.resume.session import Budget, Session
from relay.transports.resume.wire import LONGEST_HELLO, ProtocolError, read_answer, read_hello

from .checks import FindingError, equal, pieces, rejecting

_WINDOW = 100


def resume_greetings(data: bytes) -> None:
    """Greetings of both roles: what is read is what its bytes say, and one that is not whole has a bound."""
    for read in (read_hello, read_answer):
        with rejecting(ProtocolError):
            found = read(data)
            if found is None:
                if len(data) > LONGEST_HELLO + 256:
                    raise FindingError("a greeting without an end")
            else:
                equal(found[0].encode(), data[: found[1]], "its bytes")


def _session(parts: list[bytes]) -> tuple[Session, bool]:
    session = Session(Budget(), window=_WINDOW)
    session.attach(1000)
    session.write(b"hello")
    session.write_end()
    while session.output():
        pass
    with rejecting(ProtocolError):
        for part in parts:
            session.feed(part)
        return session, False
    return session, True


def resume_session(data: bytes) -> None:
    """One end with an other one that sends anything: the same in whatever pieces, and within the window."""
    whole, parts = pieces(data)
    (one, is_wrong), (other, is_other_wrong) = _session([whole]), _session(parts)
    equal(is_wrong, is_other_wrong, "cut to pieces")
    if len(one.inbox) > _WINDOW:
        raise FindingError(f"{len(one.inbox)} bytes are held")
    if not is_wrong:
        facts = [
            (bytes(each.inbox), each.received, each.outgoing, each.incoming, each.word, each.peer_word, each.kept)
            for each in (one, other)
        ]
        equal(facts[0], facts[1], "cut to pieces")
    for _ in range(10):
        if not one.output():
            return
    raise FindingError("what is sent has no end")
