"""The sockets and the access log that a command opens for operators, as values."""

from __future__ import annotations

from typing import NamedTuple


class EndpointPlan(NamedTuple):
    """The addresses at which a command listens for operators, before they are opened.

    :param control: the path of the control socket, or ``none``; ``None`` for the default one if there is a file.
    :param status: the address of the status server; ``None`` for none.
    :param is_public: whether that may be one that other machines can reach.
    :param token_file: the file with the token of its clients.
    :param config: the absolute path of the file of the tunnels; empty for a command line.
    """

    control: str | None = None
    status: str | None = None
    is_public: bool = False
    token_file: str | None = None
    config: str = ""


class LogPlan(NamedTuple):
    """The access log of a command, before it is opened, and the other file that it writes.

    :param path: of the file; ``None`` for no access log.
    :param interval: seconds between two lines of an open connection; ``None`` for none.
    :param state: the file of bans and quotas; ``None`` for none.
    """

    path: str | None
    interval: float | None
    state: str | None = None
