"""The listener and the factory that a worker makes from the values of a plan."""

from __future__ import annotations

import base64
import pickle
import socket
from typing import Any

from ..api.urls import dialer
from ..spawning.recipes import listen_at


def make(receive: socket.socket, *, values: str) -> tuple[Any, Any]:
    """Make the listener and the factory of a tunnel.

    :param receive: the socket that listens already.
    :param values: the address of the listener, the target and the hops to it, pickled, in Base64. They come from the
        command, over a socket that no other program has.
    :raises OSError: if a file cannot be read.
    :raises ValueError: if its content is wrong.
    """
    where, end, via = pickle.loads(base64.b64decode(values))  # noqa: S301  (see above)
    make_send = dialer(via, end)
    try:
        return listen_at(where, receive), make_send
    except BaseException:
        make_send.close()
        raise
