"""The options in the signatures and docstrings of public functions, for :func:`help` and the API reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from .options import SECRET, Option, options_of

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_MARK = ":param options: {options}\n"
_WIDTH = 120


def shows_options(
    *owners: type,
    own: tuple[str, ...] = (),
    takes_others: bool = False,
    brief: type | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Decorated], Decorated]:
    """Return a decorator that shows the options of classes as keywords of a function or class.

    The function has ``**options``, and its docstring the line ``:param options: {options}``. What the function has as
    a parameter, or describes, stays as it is.

    :param owners: the classes that declare the options.
    :param own: the options that the function does not take.
    :param takes_others: whether the function accepts further keywords.
    :param brief: one of these classes, whose options have no details here.
    :param defaults: those that are not the ones of the classes.
    """
    options = {
        name: replace(option, details="") if owner is brief else option
        for owner in owners
        for name, option in options_of(owner).items()
        if name not in own
    }
    changed = defaults or {}

    def decorate(function: Decorated) -> Decorated:
        call: Any = vars(function)["__init__"] if isinstance(function, type) else function
        signature = inspect.signature(call)
        *parameters, others = signature.parameters.values()
        shown = [
            _parameter(name, replace(option, default=changed[name]) if name in changed else option)
            for name, option in options.items()
            if name not in signature.parameters
        ]
        call.__signature__ = signature.replace(
            parameters=[*parameters, *shown, *([others.replace(annotation="Any")] if takes_others else [])]
        )
        # Since Python 3.13 a docstring has no indentation when it arrives here.
        text = inspect.cleandoc(function.__doc__ or "")
        lines = [
            _filled(f":param {name}: {description(option)}")
            for name, option in options.items()
            if f":param {name}: " not in text
        ]
        function.__doc__ = text.replace(_MARK, "\n".join([*lines, ""]))
        return function

    return decorate


def _parameter(name: str, option: Option) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=option.default, annotation=annotation(option))


def _filled(text: str) -> str:
    """Return a text in lines; textwrap does it, too, but takes a tenth of the time of ``import relay``."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= _WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def annotation(option: Option) -> str:
    """Return the type of an option as a keyword."""
    keyword = option.kind.keyword
    return f"{keyword} | None" if option.default is None and not keyword.endswith("None") else keyword


def description(option: Option) -> str:
    """Return what an option means as a keyword."""
    text = f"{option.help}."
    if option.kind is SECRET:
        text += " Text, or a callable that returns it."
    if option.details:
        text += f" {option.details}"
    if option.usual:
        text += f" ``None`` stands for {option.usual}."
    return text
