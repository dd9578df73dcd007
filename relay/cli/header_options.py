"""The options for headers of the PROXY protocol."""

from __future__ import annotations

from typing import Any

import click

from ..access.senders import parse_senders

__all__ = ["accept_proxy", "send_proxy"]


def networks(value: Any) -> tuple[str, ...]:
    """Parse a list of networks with commas between them.

    :raises click.BadParameter: if an entry is none.
    """
    entries = tuple(part.strip() for part in str(value).split(","))
    try:
        parse_senders(entries)
    except ValueError as error:
        raise click.BadParameter(str(error).partition(": ")[2]) from None
    return entries


send_proxy = click.option(
    "--send-proxy",
    type=click.Choice(["v1", "v2"]),
    help="Tell TARGET who the client is, by a header of the PROXY protocol before its first byte.",
)
accept_proxy = click.option(
    "--accept-proxy",
    metavar="NETWORK,...",
    type=networks,
    help="Accept connections from these balancers only, each with a header of the PROXY protocol, which names the "
    "client. unix stands for the programs at a Unix socket.",
)
