"""Secrets in addresses, which a command line is no place for."""

from __future__ import annotations

from collections.abc import Sequence

from ..addresses.options import inline_secrets
from ..addresses.parse import parse_hops
from ..addresses.redact import redact
from ..errors import AddressError

__all__ = ["refuse_secrets", "refuse_secrets_of"]


def refuse_secrets(what: str, text: str, names: Sequence[str]) -> None:
    """Refuse an address in which a secret is written.

    :param what: what the address is for, such as ``hop``.
    :param text: the address.
    :param names: those of the secrets that are in it.
    :raises AddressError: if there is one.
    """
    for name in names:
        raise AddressError(
            f"{what} '{redact(text)}': everybody on this machine can read a {name} that is on a command line; "
            f"use {name}_file=FILE or {name}_env=NAME"
        )


def refuse_secrets_of(hops: Sequence[str], what: str = "hop") -> None:
    """Refuse hops in one of which a secret is written.

    :param hops: their addresses.
    :param what: what they are for.
    :raises AddressError: if there is one, or if one cannot be understood.
    """
    for text, hop in zip(hops, parse_hops(hops), strict=True):
        refuse_secrets(what, text, inline_secrets(hop))
