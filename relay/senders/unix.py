"""The way out over a Unix socket."""

from __future__ import annotations

import os
import socket

from ..address import UnixAddress, unix_path
from ..race import Direct, Endpoint

__all__ = ["unix"]


def unix(path: str | os.PathLike[str]) -> Direct:
    """A factory that connects to a Unix stream socket.

    :param path: where it lies; a relative path is taken from the working directory of now.
    :returns: a callable for :class:`relay.Tunnel` that returns a connected :class:`relay.Stream`, and raises
        :class:`relay.ConnectError` if it cannot.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if ``path`` is not a path.
    :raises ValueError: if it is empty, holds a control character or is longer than a Unix socket's may be.
    """
    endpoint = Endpoint(socket.AF_UNIX, unix_path(path))
    return Direct(str(UnixAddress(endpoint.address)), lambda: (endpoint,), literal=True)
