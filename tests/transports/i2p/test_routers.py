"""Which router is tried first, and what is reported of a change."""

import pytest

from relay.addresses.i2p_parser import parse_sam
from relay.errors import AuthenticationError, CarrierError, ConnectError
from relay.transports.i2p.routers import Routers

REFUSED = ConnectError("here: refused; check it", reason="refused")
REFUSED.advice = "; check it"
DENIED = AuthenticationError("here: denied")
LOST = CarrierError("here: lost")


def made(begin_with=0, count=3):
    return Routers("here", parse_sam([f"r:{number}" for number in range(1, count + 1)]), begin_with)


def test_a_loss_chooses_the_next_one_and_it_stays():
    routers = made()
    one, two, three = routers.all
    routers.on_session(one, "a")
    assert routers.change({}) == ""
    routers.on_loss(one, "a", LOST)
    assert (routers.first, routers.loss) == (two, LOST)
    routers.on_session(three, "b")
    assert routers.change({two: REFUSED}) == "the session is at the router r:3; r:1: lost"
    assert (routers.first, routers.loss) == (three, None)
    routers.on_session(three, "c")  # a planned renewal
    assert routers.change({}) == ""


@pytest.mark.parametrize(
    ("errors", "kind", "text"),
    [
        ([REFUSED, DENIED], ConnectError, "here: no router creates the session: r:1: refused; r:2: denied; check it"),
        ([DENIED, DENIED], AuthenticationError, "here: no router creates the session: r:1: denied; r:2: denied"),
        ([OSError(24, "no descriptor")] * 2, OSError, "[Errno 24] no descriptor"),
    ],
)
def test_the_error_of_all(errors, kind, text):
    copies = [type(error)(*error.args) for error in errors]
    for copy in copies:
        if isinstance(copy, ConnectError):
            copy.advice = REFUSED.advice
    routers = made(count=2)
    error = routers.failure(dict(zip(routers.all, copies, strict=True)), ())
    assert (type(error), str(error)) == (kind, text)


def test_an_error_that_names_a_hop_stays_as_it_is():
    routers = made(count=2)
    errors = dict.fromkeys(routers.all, ConnectError("ssh://h: refused"))
    assert str(routers.failure(errors, ("ssh://h",))) == "ssh://h: refused"


def test_only_the_loss_of_the_last_session_moves_it_and_only_to_another_router():
    assert [str(made(begin_with).first) for begin_with in (0, 2, 3, 7)] == ["r:1", "r:3", "r:1", "r:2"]
    for routers, lost in ((made(), "a"), (made(count=1), "b")):
        for session in "ab":
            routers.on_session(routers.first, session)
        one = routers.first
        routers.on_loss(one, lost, LOST)
        assert (routers.first, routers.loss) == (one, None)
