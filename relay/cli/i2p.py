"""What the commands have in common that may go over I2P: their options, which become parameters of an address."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import quote

import typer

from .output import say

__all__ = ["Sam", "tell_published", "with_parameters"]

logger = logging.getLogger("relay.cli")

Sam = Annotated[
    str | None, typer.Option("--sam", metavar="HOST:PORT", help="The I2P router's SAM bridge [127.0.0.1:7656].")
]


def with_parameters(address: str, parameters: Iterable[tuple[str, str | None]]) -> str:
    """An address with further parameters.

    :param address: of I2P, as text.
    :param parameters: names and values; those whose value is ``None`` are left out.
    """
    given = [(name, value.encode("utf-8", "surrogateescape")) for name, value in parameters if value]
    more = "&".join(f"{name}={quote(value, safe='/:@,+=~')}" for name, value in given)
    if not more:
        return address
    return address + ("" if address.endswith("?") else "&" if "?" in address else "?") + more


def tell_published(listener: Any) -> None:
    """Say when a listener at I2P has been reached from outside, the first time on standard output.

    :param listener: one that is not at I2P says nothing.
    """
    if hasattr(listener, "wait_published"):
        threading.Thread(target=_tell, args=(listener,), name="relay-published", daemon=True).start()


def _tell(listener: Any) -> None:
    if not listener.wait_published(None):
        return
    say(f"published {listener.b32}")
    listener.subscribe(lambda state, _: logger.info("published again") if state == "published" else None)
