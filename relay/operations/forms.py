"""Values of an instance as JSON."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

__all__ = ["as_json"]


def as_json(value: Any) -> Any:
    """Return what JSON has for a value: an object for a dataclass or a named tuple, by the names of its fields.

    Fields of a dataclass whose metadata have ``json`` false are left out, such as the counters for ``/metrics``.
    """
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.metadata.get("json", True)]
        return {name: as_json(getattr(value, name)) for name in names}
    if hasattr(value, "_asdict"):
        return {name: as_json(each) for name, each in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        return {str(name): as_json(each) for name, each in value.items()}
    return value.value if isinstance(value, enum.Enum) else value
