"""The exceptions: what they derive from and what they carry."""

from __future__ import annotations

import pytest

import relay


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
