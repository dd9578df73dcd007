"""The addresses of a command line: each text is parsed once, and none may hold a secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from ..addresses.hops import Command, Hop, Listen, Route
from ..addresses.i2p import I2PListen, I2PTarget
from ..addresses.options import inline_secrets
from ..addresses.parse import parse_elsewhere, parse_hops, parse_listen, parse_target
from ..addresses.redact import redact
from ..addresses.ssh import SSHListen
from ..addresses.values import Target
from ..errors import AddressError

if TYPE_CHECKING:
    from ..addresses.tor import TorListen

Value = TypeVar("Value")


def read_hops(via: Sequence[str], target: str) -> Route:
    """Return the hops of ``--via``.

    :param target: the address after them, for errors.
    :raises AddressError: if one cannot be understood or holds a secret.
    """
    route = parse_hops(via, target)
    for text, hop in zip(via, route, strict=True):
        without_secrets("hop", text, hop)
    return route


def read_target(text: str, route: Sequence[Hop] = ()) -> Target | I2PTarget | Command:
    """Return the address of TARGET.

    :param route: the hops to it.
    :raises AddressError: if it cannot be understood or holds a secret.
    """
    return without_secrets("target", text, parse_target(text, route[-1] if route else None))


def read_listen(text: str) -> Listen:
    """Return the address of LISTEN.

    :raises AddressError: if it cannot be understood or holds a secret.
    """
    return without_secrets("listen address", text, parse_listen(text))


def read_server(text: str) -> SSHListen | I2PListen | TorListen:
    """Return the address of ``--on``.

    :raises AddressError: if it cannot be understood or holds a secret.
    """
    return without_secrets("listen address", text, parse_elsewhere(text, "--on"))


def without_secrets(what: str, text: str, value: Value) -> Value:
    """Return the value of an address.

    :param what: the role of the address, such as ``hop``.
    :param text: the address.
    :raises AddressError: if it holds a secret.
    """
    for name in inline_secrets(value):
        raise AddressError(
            f"{what} '{redact(text)}': all users of this machine can read a {name} that is on a command line; "
            f"use {name}_file=FILE or {name}_env=NAME"
        )
    return value
