"""Secrets in addresses, which a command line is no place for."""

from __future__ import annotations

from collections.abc import Sequence

from ..address import masked
from ..errors import AddressError

__all__ = ["refuse_secrets"]


def refuse_secrets(what: str, text: str, names: Sequence[str]) -> None:
    """Refuse an address in which a secret is written.

    :param what: what the address is for, such as ``hop``.
    :param text: the address.
    :param names: those of the secrets that are in it.
    :raises AddressError: if there is one.
    """
    for name in names:
        raise AddressError(
            f"{what} '{masked(text)}': everybody on this machine can read a {name} that is on a command line; "
            f"use {name}_file=FILE or {name}_env=NAME"
        )
