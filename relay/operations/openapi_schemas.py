"""The schemas of the OpenAPI description: they follow from the fields of what the app shows, and from their docs."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any

from ..carriers.link import CarrierState
from ..carriers.listing import CarrierStatus
from ..daemon import status
from ..daemon.member import MemberState
from ..daemon.recent_log import LogLine
from ..daemon.top_keys import KeyChange
from ..daemon.verdicts import Verdict
from ..engine.records import ConnectionState, Stats, WarmFigures
from ..spawning.worker_slot import SlotState, WorkerStatus
from ..targets.group import TargetState
from ..targets.health import HealthState
from ..transports.resume.figures import ResumeFigures
from .tables import ConnectionRow, EndedRow, TargetCell, TunnelRow

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
YES = {"type": "boolean"}
_TIME = {"type": "number", "description": "Seconds since 1970."}
_PLAIN: Mapping[Any, dict[str, Any]] = {
    str: TEXT,
    int: COUNT,
    float: {"type": "number", "minimum": 0},
    bool: YES,
}


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a schema of :data:`SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def words(*allowed: str) -> dict[str, Any]:
    """Return the schema of a text that is one of some words."""
    return {"type": "string", "enum": [*allowed]}


def _values(states: type[enum.Enum]) -> dict[str, Any]:
    return words(*(state.value for state in states))


_CLASSES = {
    status.InstanceStatus: "Instance",
    status.ReloadStatus: "Reloads",
    ResumeFigures: "Resumes",
    WorkerStatus: "Worker",
    Stats: "Figures",
    WarmFigures: "Warm",
    status.ProbeStatus: "Probe",
    status.TunnelStatus: "Tunnel",
    status.CertificateLoads: "CertificateLoads",
    TargetState: "Target",
    status.ConnectionStatus: "Connection",
    CarrierStatus: "Carrier",
    status.BanStatus: "Ban",
    status.QuotaStatus: "Quota",
    status.TunnelVerdict: "Verdict",
    KeyChange: "ChangedKey",
    status.ReloadReport: "Reload",
    status.UpgradeReport: "Upgrade",
    LogLine: "LogLine",
    TunnelRow: "TunnelRow",
    TargetCell: "TargetCell",
    ConnectionRow: "ConnectionRow",
    EndedRow: "EndedRow",
}
"""What the app shows, and the names of the schemas."""

_NARROWED: Mapping[tuple[str, str], dict[str, Any]] = {
    ("Instance", "log_level"): words(*status.LOG_LEVELS),
    ("Worker", "state"): _values(SlotState),
    ("Probe", "kind"): words("connect", "banner", "http"),
    ("Tunnel", "state"): _values(MemberState),
    ("Target", "state"): _values(HealthState),
    ("Connection", "engine"): words("splice", "copy"),
    ("Connection", "state"): words(*dict.fromkeys(state.reported for state in ConnectionState)),
    ("Connection", "by"): {"anyOf": [words("client", "target", "relay", "admin"), {"type": "null"}]},
    ("Connection", "identity"): {"anyOf": [ref("Identity"), {"type": "null"}]},
    ("Carrier", "state"): words(*dict.fromkeys(state.reported.value for state in CarrierState)),
    ("TunnelRow", "warm"): {"anyOf": [ref("Warm"), {"type": "null"}]},
    ("Verdict", "verdict"): words(*(verdict.word for verdict in Verdict)),
}
"""The fields whose values are fewer than their type says."""


def _of_class(described: type, name: str) -> dict[str, Any]:
    """Return the schema of the objects of a class: all its fields, except those that JSON does not have."""
    hints = typing.get_type_hints(described, localns={each.__name__: each for each in _CLASSES})
    if dataclasses.is_dataclass(described):
        for each in dataclasses.fields(described):
            if not each.metadata.get("json", True):
                del hints[each.name]
    about = _docs_of(described)
    fields = {}
    for field, kind in hints.items():
        schema = _NARROWED.get((name, field)) or _of_type(kind)
        fields[field] = {**schema, "description": about[field]} if field in about else schema
    return _object(_as_text((inspect.getdoc(described) or "").partition("\n\n")[0]), **fields)


def _of_type(kind: Any) -> dict[str, Any]:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _CLASSES:
        return ref(_CLASSES[kind])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _values(kind)
    inner = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return {"anyOf": [_of_type(inner[0]), {"type": "null"}]}
    if issubclass(typing.get_origin(kind), Mapping):
        return {"type": "object", "additionalProperties": _of_type(inner[1])}
    return _list(_of_type(inner[0]))


def _docs_of(described: type) -> dict[str, str]:
    """Return what the docs say of the fields of a class: its docstring, or the texts below the fields."""
    found = dict(re.findall(r":param (\w+): (.*?)(?=\n:|\Z)", inspect.getdoc(described) or "", re.DOTALL))
    try:
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(described))).body
    except OSError:  # an installation without the sources
        parsed = ast.Pass()
    body = getattr(parsed, "body", [])
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = below.value.value
    return {name: _as_text(text) for name, text in found.items()}


def _as_text(text: str) -> str:
    """Return a text of the docs without its marks."""
    plain = " ".join(text.replace("``None``", "null").split())
    plain = re.sub(r":\w+:`~?(?:\w+\.)*([^`]*)`|``(.*?)``", r"\1\2", plain)
    return plain[0].upper() + plain[1:]


def _object(about: str, **fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "properties": fields,
        "required": [*fields],
        "additionalProperties": False,
    }


def _list(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def _pages(about: str, **rows: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list, which comes in pages at a status address."""
    more = {**YES, "description": "Whether there are more; at a status address only."}
    return {**_object(about, **rows, more=more), "required": [*rows]}


def _table(row: str) -> dict[str, Any]:
    return _object("One page of a table.", total=COUNT, matching=COUNT, **{"from": COUNT}, rows=_list(ref(row)))


_REASONS = {"type": "object", "additionalProperties": COUNT, "description": "Connections by reason."}

SCHEMAS = {
    **{name: _of_class(described, name) for described, name in _CLASSES.items()},
    "Error": {
        **_object("Why a request failed; problems: of a reload, one each.", error=TEXT, problems=_list(TEXT)),
        "required": ["error"],
    },
    "Identity": {
        **_object("Who a client is, as its transport can tell.", kind=TEXT, name=TEXT, verified=YES),
        "required": ["kind", "name"],
    },
    "Tunnels": _pages("All tunnels.", tunnels=_list(ref("Tunnel"))),
    "Connections": _pages("Connections.", connections=_list(ref("Connection"))),
    "Carriers": _object("All carriers.", carriers=_list(ref("Carrier"))),
    "Bans": _pages("Bans, those that last longest first.", bans=_list(ref("Ban"))),
    "Quotas": _pages("Quotas, those of which most was used first.", quotas=_list(ref("Quota"))),
    "Cleared": _object("What was forgotten.", cleared=COUNT),
    "Health": {
        **_object(
            "The answer to a health check.",
            status=words("ok", "failed", "draining"),
            problems={"type": "object", "additionalProperties": TEXT, "description": "By tunnel."},
            error=TEXT,
        ),
        "required": ["status", "problems"],
    },
    "Overview": _object(
        "The part of the state that a status page shows.",
        time=_TIME,
        instance=_object("The process.", version=TEXT, pid=COUNT, started=_TIME, config=TEXT, draining=YES, ready=YES),
        totals=_object(
            "Sums of all tunnels.",
            **dict.fromkeys(("accepted", "active", "received", "sent", "tunnels", "listening", "problems"), COUNT),
            failed=_REASONS,
        ),
        history={
            **_list({"type": "array", "items": {"type": "number"}, "minItems": 5, "maxItems": 5}),
            "description": "The last 2 minutes: time, bytes per second from clients and to them, open connections, "
            "new connections per second.",
        },
        tunnels=_table("TunnelRow"),
        connections=_table("ConnectionRow"),
        ended=_table("EndedRow"),
        carriers=_table("Carrier"),
        bans=_table("Ban"),
        log=_list(ref("LogLine")),
    ),
    "LogLevel": _object("A log level.", level=words(*status.LOG_LEVELS)),
}
