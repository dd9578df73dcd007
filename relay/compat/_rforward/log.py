"""The log for X2Go's programs: by bits of a mask, or to their own logger."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from ...transports.ssh.paramiko.messages import guarded

__all__ = ["DEBUG", "DEFAULT", "ERROR", "INFO", "NOTICE", "WARN", "Log"]

ERROR, WARN, NOTICE, INFO, DEBUG = 8, 16, 32, 64, 128  # X2Go's numbers
DEFAULT = ERROR | WARN | NOTICE

_LEVELS = {
    ERROR: logging.ERROR,
    WARN: logging.WARNING,
    NOTICE: logging.INFO + 5,
    INFO: logging.INFO,
    DEBUG: logging.DEBUG,
}


class Log:
    """Says things to a :class:`logging.Logger`, by a mask, or to X2Go's logger, which has a mask of its own.

    :param logger: either of them; ``None`` for the logger ``relay.rforward``.
    :param mask: the bits of what is said to a :class:`logging.Logger`.
    """

    def __init__(self, logger: Any, mask: int) -> None:
        self._logger = logging.getLogger("relay.rforward") if logger is None else logger
        self._mask = mask

    def __call__(self, message: str, loglevel: int = NOTICE) -> None:
        """Say it, with its bit."""
        if not isinstance(self._logger, logging.Logger):
            guarded(partial(self._logger, message, loglevel=loglevel))
        elif loglevel & self._mask:
            self._logger.log(_LEVELS.get(loglevel, logging.INFO), "%s", message)
