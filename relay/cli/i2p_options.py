"""The options of commands for I2P, and what is printed of a destination."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import click

from ..addresses.i2p import Bridges
from ..addresses.i2p_parser import parse_sam
from .output import print_line

logger = logging.getLogger("relay.cli")

_STANDING_BY = "standing by"  # a state of a listener

sam = click.option(
    "--sam",
    metavar="HOST:PORT",
    multiple=True,
    help="SAM bridge of the I2P router [127.0.0.1:7656]. Repeatable: the next router when one is lost.",
)


def read_bridges(sam: Sequence[str]) -> Bridges | None:
    """Return the SAM bridges of the command line, as :func:`relay.addresses.i2p_parser.parse_sam` does.

    :param sam: the values of ``--sam``; ``None`` is returned if there are none.
    """
    return parse_sam(tuple(sam)) if sam else None


def tell_published(listener: Any, prefix: str = "") -> None:
    """Report when a listener at I2P has been reached from outside, or stands by: on standard output, later in the log.

    :param listener: any listener; ignored if it is not at I2P.
    :param prefix: the beginning of the line.
    """
    if hasattr(listener, "wait_published"):
        if listener.state == _STANDING_BY:
            print_line(f"{prefix}standing by {listener.b32}")
        listener.subscribe(lambda state, _: _log_standing_by(state, prefix))
        try:
            threading.Thread(target=_tell, args=(listener, prefix), name="relay-published", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            logger.warning("%s%s; relay will not report that it is published", prefix, error)


def _log_standing_by(state: str, prefix: str) -> None:
    if state == _STANDING_BY:
        logger.info("%sstanding by: another relay serves the destination", prefix)


def _tell(listener: Any, prefix: str) -> None:
    if not listener.wait_published(None):
        return
    print_line(f"{prefix}published {listener.b32}")
    listener.subscribe(lambda state, _: logger.info("%spublished again", prefix) if state == "published" else None)
