"""A ``relay.tls`` factory and the server behind it, for the tests of both."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from helpers import WAIT, Certificates, Thread, TLSEnd

import relay

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """The context, which speaks this version alone from now on."""
    context.minimum_version = context.maximum_version = version
    return context


class Rig:
    """A factory, and a TLS server that the test plays itself."""

    def __init__(self, certificates: Certificates, listener: socket.socket, context: ssl.SSLContext) -> None:
        self.certificates = certificates
        self.listener = listener
        self.context = context
        self.factory = relay.tls("localhost", listener.getsockname()[1], ca=certificates.ca)
        self._open: list[Any] = []

    def accept(self) -> TLSEnd:
        connection = self.listener.accept()[0]
        connection.settimeout(WAIT)
        self._open.append(connection)
        return TLSEnd(connection, self.context, server_side=True)

    def connect(self) -> tuple[relay.Stream, TLSEnd]:
        """A stream and its server's end."""
        server = Thread(self.accept)
        stream = self.factory(deadline=time.monotonic() + WAIT)
        stream.socket.settimeout(WAIT)
        self._open.append(stream)
        return stream, server.result()

    def close(self) -> None:
        for one in self._open:
            one.close()
