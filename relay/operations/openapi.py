"""The OpenAPI description of the app. A test compares every answer with it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .instance import LOG_LEVELS
from .page import FILES
from .tables import CONNECTION_ORDERS, LONGEST_FILTER, TUNNEL_ORDERS

__all__ = ["document"]

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number", "minimum": 0}
_YES = {"type": "boolean"}
_TIME = {"type": "number", "description": "Seconds since 1970."}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def _words(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": [*words]}


def _object(about: str, **fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "properties": fields,
        "required": [*fields],
        "additionalProperties": False,
    }


_MOVED = {"received": _COUNT, "sent": _COUNT}
_RATES = {"received_rate": _or_null(_SECONDS), "sent_rate": _or_null(_SECONDS)}


def _table(row: str) -> dict[str, Any]:
    return _object("One page of a table.", total=_COUNT, matching=_COUNT, **{"from": _COUNT}, rows=_list(_ref(row)))


_SCHEMAS = {
    "Error": {
        **_object("Why a request failed; problems: of a reload, one each.", error=_TEXT, problems=_list(_TEXT)),
        "required": ["error"],
    },
    "Instance": _object(
        "The process.",
        version=_TEXT,
        pid=_COUNT,
        started=_TIME,
        config={"type": "string", "description": "Absolute path of the file; empty for a command line."},
        draining=_YES,
        log_level=_words(*LOG_LEVELS),
        control={"type": "string", "description": "Path of the control socket; empty if there is none."},
        reloads=_or_null(_ref("Reloads")),
        workers=_list(_ref("Worker")),
    ),
    "Reloads": _object(
        "The reloads of a process.", succeeded=_COUNT, failed=_COUNT, was_successful=_YES, last_success=_TIME
    ),
    "Worker": _object(
        "A process that relays tunnels.",
        number=_COUNT,
        pid=_or_null(_COUNT),
        state=_words("starting", "running", "waiting", "ended"),
        restarts=_COUNT,
    ),
    "Figures": _object(
        "Figures of a tunnel since it was opened.",
        accepted=_COUNT,
        active=_COUNT,
        received={**_COUNT, "description": "Bytes from clients."},
        sent={**_COUNT, "description": "Bytes to clients."},
        failed={"type": "object", "additionalProperties": _COUNT, "description": "Connections by reason."},
        warm_hits={**_COUNT, "description": "Connections whose stream was open before their client came."},
        warm_misses={**_COUNT, "description": "Connections for which no such stream was ready."},
    ),
    "Probe": _object(
        "The probe of a tunnel.",
        kind=_words("connect", "banner", "http"),
        interval=_SECONDS,
        finished=_or_null(_TIME),
        seconds=_SECONDS,
        problem=_TEXT,
    ),
    "Tunnel": _object(
        "A tunnel.",
        name=_TEXT,
        state=_words("opening", "waiting", "listening", "paused", "draining", "closed", "failed"),
        listen=_TEXT,
        target=_TEXT,
        via=_list(_TEXT),
        required=_YES,
        since=_TIME,
        hops=_TEXT,
        problem=_TEXT,
        figures=_or_null(_ref("Figures")),
        probe=_or_null(_ref("Probe")),
        certificate_end=_or_null(_TIME),
    ),
    "Connection": _object(
        "A connection, open or ended.",
        id=_TEXT,
        tunnel=_TEXT,
        peer=_TEXT,
        target=_or_null(_TEXT),
        age=_SECONDS,
        received=_COUNT,
        sent=_COUNT,
        engine=_words("splice", "copy"),
        state=_words("connecting", "open", "half-closed", "closed"),
        reason=_or_null(_TEXT),
        started=_TIME,
        by=_or_null(_words("client", "target", "relay", "admin")),
    ),
    "Carrier": _object(
        "An SSH connection or I2P session that streams share.",
        name=_TEXT,
        kind=_TEXT,
        state=_words("connecting", "up", "backing off", "failed", "closed"),
        since=_TIME,
        losses=_COUNT,
        streams=_COUNT,
        rtt=_or_null(_SECONDS),
        error=_TEXT,
    ),
    "Verdict": _object(
        "The effect of a reload on one tunnel.",
        name=_TEXT,
        verdict=_words("same", "tuned", "rerouted", "moved", "gone", "new"),
        detail=_TEXT,
    ),
    "ChangedKey": _object(
        "The effect of a reload on a key at the top of the file that has changed.",
        key=_TEXT,
        effect=_words("tuned", "overridden", "restart"),
        remedy={"type": "string", "description": "What puts it in force; empty if the reload does."},
    ),
    "Reload": _object(
        "The effect of a reload.", verdicts=_list(_ref("Verdict")), dry_run=_YES, keys=_list(_ref("ChangedKey"))
    ),
    "Health": {
        "type": "object",
        "description": "The answer to a health check.",
        "properties": {
            "status": _words("ok", "failed", "draining"),
            "problems": {"type": "object", "additionalProperties": _TEXT, "description": "By tunnel."},
            "error": _TEXT,
        },
        "required": ["status", "problems"],
        "additionalProperties": False,
    },
    "Tunnels": _object("All tunnels.", tunnels=_list(_ref("Tunnel"))),
    "Connections": _object("Connections.", connections=_list(_ref("Connection"))),
    "Carriers": _object("All carriers.", carriers=_list(_ref("Carrier"))),
    "Overview": _object(
        "The part of the state that a status page shows.",
        time=_TIME,
        instance=_object(
            "The process.", version=_TEXT, pid=_COUNT, started=_TIME, config=_TEXT, draining=_YES, ready=_YES
        ),
        totals=_object(
            "Sums of all tunnels.",
            accepted=_COUNT,
            active=_COUNT,
            received=_COUNT,
            sent=_COUNT,
            tunnels=_COUNT,
            listening=_COUNT,
            problems=_COUNT,
            failed={"type": "object", "additionalProperties": _COUNT, "description": "Connections by reason."},
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
        log=_list(_ref("LogLine")),
    ),
    "TunnelRow": _object(
        "A tunnel, as a page shows it. Long texts are cut.",
        name=_TEXT,
        state=_TEXT,
        listen=_TEXT,
        target=_TEXT,
        via=_list(_TEXT),
        required=_YES,
        since=_TIME,
        hops=_TEXT,
        problem=_TEXT,
        active=_COUNT,
        accepted=_COUNT,
        failed=_COUNT,
        probe={**_or_null(_SECONDS), "description": "Duration of the last probe, if it succeeded."},
        **_MOVED,
        **_RATES,
    ),
    "ConnectionRow": _object(
        "An open connection, as a page shows it.",
        id=_TEXT,
        tunnel=_TEXT,
        peer=_TEXT,
        target=_TEXT,
        state=_TEXT,
        age=_SECONDS,
        engine=_TEXT,
        **_MOVED,
        **_RATES,
    ),
    "EndedRow": _object(
        "A connection that has ended, as a page shows it.",
        id=_TEXT,
        tunnel=_TEXT,
        peer=_TEXT,
        target=_TEXT,
        ended=_TIME,
        age=_SECONDS,
        reason=_TEXT,
        by=_TEXT,
        **_MOVED,
    ),
    "LogLine": _object("A line of the log.", time=_TIME, level=_TEXT, logger=_TEXT, message=_TEXT),
    "LogLevel": _object("A log level.", level=_words(*LOG_LEVELS)),
}


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}


def _answers(ok: str | None, *errors: int, about: str = "") -> dict[str, Any]:
    """Return the answers of an operation: the right one, and those with an error."""
    found: dict[str, Any] = (
        {"200": {"description": about or "The answer.", "content": _content(ok)}}
        if ok
        else {"204": {"description": about or "Done."}}
    )
    for status in (400, *errors):
        found[str(status)] = {"description": _ERRORS[status], "content": _content("Error")}
    return found


_ERRORS = {
    400: "The request is wrong.",
    403: "A page of another site asks for it.",
    404: "There is no such tunnel or connection.",
    409: "The state does not allow it, or the program is ending.",
    413: "The body is too long.",
    422: "The file has a problem, or a tunnel cannot be opened; nothing has changed.",
    500: "A failure of the system.",
}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _in_query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _operation(summary: str, answers: dict[str, Any], *parameters: dict[str, Any], body: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"summary": summary, "responses": answers}
    if parameters:
        made["parameters"] = [*parameters]
    if body:
        made["requestBody"] = {"required": True, "content": _content(body)}
    return made


def _of_type(about: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": about, "content": {kind: {"schema": schema}}}}


def _order(keys: Iterable[str]) -> dict[str, Any]:
    return _words(*(sign + key for key in keys for sign in ("", "-")))


def _health(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    errors = [404] if parameters else []
    answers = _answers("Health", *errors)
    answers["503"] = {"description": "Not healthy; the problems say why.", "content": _content("Health")}
    return _operation(summary, answers, *parameters)


def _paths() -> dict[str, Any]:
    name, tunnel = _in_path("name"), _in_query("tunnel", _TEXT)
    change = _answers(None, 404, 409)
    return {
        "/instance": {"get": _operation("Facts about the process.", _answers("Instance"))},
        "/tunnels": {"get": _operation("All tunnels, in the order of the file.", _answers("Tunnels"))},
        "/tunnels/{name}": {"get": _operation("One tunnel.", _answers("Tunnel", 404), name)},
        "/tunnels/{name}/pause": {"post": _operation("Accept no client; clients wait.", change, name)},
        "/tunnels/{name}/resume": {"post": _operation("Accept clients again.", change, name)},
        "/tunnels/{name}/drain": {"post": _operation("Close the listener; open connections finish.", change, name)},
        "/connections": {"get": _operation("Open connections.", _answers("Connections", 404), tunnel)},
        "/connections/recent": {
            "get": _operation(
                "The last 100 connections of each tunnel that ended.", _answers("Connections", 404), tunnel
            )
        },
        "/connections/{id}": {"delete": _operation("Reset a connection.", _answers(None, 404, 409), _in_path("id"))},
        "/carriers": {"get": _operation("All carriers.", _answers("Carriers"))},
        "/reload": {
            "post": _operation(
                "Read the file again and apply its changes.",
                _answers("Reload", 409, 422, 500),
                _in_query("dry_run", {**_YES, "default": False}),
            )
        },
        "/log-level": {"put": _operation("Set the log level.", _answers(None, 409, 413), body="LogLevel")},
        "/reopen": {"post": _operation("Open the log files again.", _answers(None, 409, 500))},
        "/stop": {"post": _operation("End as after SIGTERM; twice: at once.", _answers(None, 409))},
        "/livez": {"get": _health("Whether each tunnel's loop turns.")},
        "/readyz": {"get": _health("Whether the required tunnels listen and their probes succeed.")},
        "/readyz/{name}": {"get": _health("The same of one tunnel.", name)},
        "/metrics": {
            "get": _operation(
                "Metrics for Prometheus.",
                _of_type("The text format.", "text/plain", _TEXT),
            )
        },
        **{
            path: {"get": _operation("A file of the status page.", _of_type("The file.", kind, _TEXT))}
            for path, (_, kind) in FILES.items()
        },
        "/events": {
            "get": _operation(
                "Server-sent events for the status page, at most one each second.",
                _of_type("Each event is an Overview.", "text/event-stream", _ref("Overview"))
                | {
                    str(status): {"description": _ERRORS[status], "content": _content("Error")} for status in (400, 403)
                },
                _in_query("filter", {**_TEXT, "description": "Words that each row has.", "maxLength": LONGEST_FILTER}),
                _in_query("tunnels", _order(TUNNEL_ORDERS)),
                _in_query("tunnels_from", _COUNT),
                _in_query("connections", _order(CONNECTION_ORDERS)),
                _in_query("connections_from", _COUNT),
            )
        },
        "/openapi.json": {
            "get": _operation(
                "This description.",
                _of_type("OpenAPI 3.1.", "application/json", {"type": "object"}),
            )
        },
    }


@cache
def document() -> dict[str, Any]:
    """Return the description, as JSON has it."""
    try:
        known = version("relay-toolkit")
    except PackageNotFoundError:
        known = "0"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "relay",
            "version": known,
            "description": "Control and status of a running relay. The status address answers GET only.",
        },
        "paths": _paths(),
        "components": {"schemas": _SCHEMAS},
    }
