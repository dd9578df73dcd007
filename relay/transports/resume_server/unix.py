"""Listener for resumable streams at a Unix socket."""

from __future__ import annotations

import socket
from typing import Any

from ...streams.identity import identity_of_process
from ...streams.listener import UpgradeListener
from ...streams.stream import Stream
from ..resume.server import USUAL, Bounds
from .carriers import Carriers, plain_socket


class ResumeListener(Carriers, UpgradeListener):
    """Accepts carriers at a Unix socket, whose users are the identities of the near ends. For a tunnel only.

    :param listening: a listening Unix socket. The listener owns it.
    :param bounds: of its sessions.
    :raises OSError: if the system has no thread or descriptor left; the socket is closed then.
    """

    def __init__(self, listening: socket.socket, bounds: Bounds = USUAL) -> None:
        Carriers.__init__(self, listening)
        self.begin_sessions(bounds, listening.close)

    def upgrade(self, client: socket.SocketType, peer: Any, now: float) -> None:
        """Read the greeting of a carrier; see :meth:`UpgradeListener.upgrade`."""
        client = plain_socket(client)
        client.setblocking(False)
        self.sessions.offer(Stream(client), identity_of_process(client), peer or "")

    def make_room(self, now: float) -> None:
        """Do nothing: greetings have a short time of their own."""

    def close(self) -> None:
        """Close the socket. A session without a carrier ends now, any other one once it loses its own."""
        self.end_sessions()
        Carriers.close(self)
