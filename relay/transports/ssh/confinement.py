"""The limit of a sandbox: relay starts no program but ``ssh -G``, which reads a configuration."""

from __future__ import annotations

_is_confined = False


def confine() -> None:
    """Note that the process has a sandbox, which is for as long as it lives."""
    global _is_confined  # noqa: PLW0603  (there is one process)
    _is_confined = True


def is_confined() -> bool:
    """Return whether there is a sandbox."""
    return _is_confined
