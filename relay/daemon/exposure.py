"""Warnings about listeners that other machines can reach, or may not reach."""

from __future__ import annotations

import logging
from typing import Any

from ..addresses.ssh import SSHListen
from ..addresses.values import TCPAddress, is_loopback
from ..streams.listener import TunnelListener

logger = logging.getLogger("relay.cli")


def warn_if_unsure(where: Any) -> None:
    """Log that an SSH server may listen on another address than requested."""
    if isinstance(where, SSHListen) and isinstance(where.place, TCPAddress) and not is_loopback(where.place.host):
        logger.info("%s listens on its loopback alone unless its sshd has GatewayPorts; it does not say", where.server)


def warn_if_open(listener: TunnelListener) -> None:
    """Warn if other machines can use a proxy without a password, or send one unencrypted."""
    address = listener.listening.getsockname() if listener.listening and listener.protected is not None else None
    if not isinstance(address, tuple) or is_loopback(address[0]):
        return
    if listener.protected:
        text = "%s port %d: users and passwords cross the network in the clear; use it in a network that you trust"
    else:
        text = (
            "proxy on %s port %d has no password: any host that can connect may use it; set --user and --password-file"
        )
    logger.warning(text, *address[:2])
