"""The exceptions: what they derive from and what they carry."""

from __future__ import annotations

import errno

import pytest

import relay
from relay.errors import can_retry


@pytest.mark.parametrize(
    "name",
    ["AddressError", "AuthenticationError", "CarrierError", "ConnectError", "ForwardError", "HostKeyError", "SAMError"],
)
def test_all_of_them_are_os_errors_with_their_text(name: str) -> None:
    error = getattr(relay, name)("what failed, and what to do")
    assert isinstance(error, relay.RelayError)
    assert isinstance(error, OSError)
    assert str(error) == "what failed, and what to do"


def test_an_address_error_is_a_value_error() -> None:
    assert issubclass(relay.AddressError, ValueError)


def test_they_carry_their_words() -> None:
    assert relay.ConnectError("no", reason="refused").reason == "refused"
    assert relay.CarrierError("no").reason == "carrier_lost"
    assert relay.SAMError("no", result="CANT_REACH_PEER").result == "CANT_REACH_PEER"


PASSING = relay.SAMError("no tunnels yet", result="I2P_ERROR")
PASSING.passing = True


@pytest.mark.parametrize(
    ("error", "is_retried"),
    [
        (relay.ConnectError("away"), True),
        (relay.CarrierError("lost"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), True),
        (TimeoutError("no answer"), True),
        (OSError(errno.EMFILE, "too many"), True),
        (PASSING, True),
        (relay.SAMError("wrong key", result="INVALID_KEY"), False),
        (relay.HostKeyError("changed"), False),
        (relay.AuthenticationError("refused"), False),
        (relay.ForwardError("not allowed"), False),
        (OSError(errno.EADDRINUSE, "in use"), False),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (relay.AddressError("what?"), False),
        (ValueError("what?"), False),
    ],
    ids=repr,
)
def test_a_retry_can_fix_what_passes_by_itself(error: Exception, is_retried: bool) -> None:
    assert can_retry(error) == is_retried
