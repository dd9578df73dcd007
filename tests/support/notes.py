"""A double that notes its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Notes:
    """Notes each call of its methods, as their names and arguments.

    :param given: and ``options``: what it was made with.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        self.given, self.options = given, options
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **options: self.calls.append((name, *arguments, *options.items()))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of each call of this name."""
        return [call[1:] for call in self.calls if call[0] == name]

    def only(self, name: str) -> tuple[Any, ...]:
        """Return the arguments of the only call of this name."""
        (arguments,) = self.named(name)
        return arguments
