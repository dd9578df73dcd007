"""The addresses at which a command listens for operators."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EndpointPlan"]


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
