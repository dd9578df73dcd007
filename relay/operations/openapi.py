"""The OpenAPI description of the app. A test compares every answer with it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..daemon.status import MOST_ROWS
from .openapi_schemas import COUNT, SCHEMAS, TEXT, YES, ref, words
from .page import FILES
from .tables import CONNECTION_ORDERS, LONGEST_FILTER, PAGE, TUNNEL_ORDERS


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(name)}}


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
    return {"name": name, "in": "path", "required": True, "schema": TEXT}


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
    return words(*(sign + key for key in keys for sign in ("", "-")))


def _health(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    errors = [404] if parameters else []
    answers = _answers("Health", *errors)
    answers["503"] = {"description": "Not healthy; the problems say why.", "content": _content("Health")}
    return _operation(summary, answers, *parameters)


def _first() -> dict[str, Any]:
    about = f"Rows to pass over: at a status address an answer has {PAGE} at most."
    return {**_in_query("from", COUNT), "description": about}


def _ledger(kind: str, schema: str) -> dict[str, Any]:
    tunnel, first, key = _in_query("tunnel", TEXT), _first(), {**_in_query("key", TEXT), "required": True}
    return {
        "get": _operation(f"The {kind} of clients, at most {MOST_ROWS}.", _answers(schema, 404), tunnel, first),
        "delete": _operation(f"Forget the {kind} of a key.", _answers("Cleared", 404, 409), key, tunnel),
    }


def _of_tunnels() -> dict[str, Any]:
    name, tunnel, first = _in_path("name"), _in_query("tunnel", TEXT), _first()
    change = _answers(None, 404, 409)
    recent = "The last 100 connections of each tunnel that ended."
    target = _in_query("target", TEXT)
    return {
        "/instance": {"get": _operation("Facts about the process.", _answers("Instance"))},
        "/tunnels": {"get": _operation("All tunnels, in the order of the file.", _answers("Tunnels"), first)},
        "/tunnels/{name}": {"get": _operation("One tunnel.", _answers("Tunnel", 404), name)},
        "/tunnels/{name}/pause": {"post": _operation("Accept no client; clients wait.", change, name)},
        "/tunnels/{name}/resume": {"post": _operation("Accept clients again.", change, name)},
        "/tunnels/{name}/drain": {"post": _operation("Close the listener; open connections finish.", change, name)},
        **{
            f"/tunnels/{{name}}/{verb}": {"post": _operation(about, change, name, {**target, "required": True})}
            for verb, about in (
                ("enable", "Give one of several targets connections again, after a probe."),
                ("disable", "Give one of several targets no new connections."),
            )
        },
        "/connections": {"get": _operation("Open connections.", _answers("Connections", 404), tunnel, first)},
        "/connections/recent": {"get": _operation(recent, _answers("Connections", 404), tunnel, first)},
        "/connections/{id}": {"delete": _operation("Reset a connection.", _answers(None, 404, 409), _in_path("id"))},
        "/bans": _ledger("bans", "Bans"),
        "/quotas": _ledger("quotas", "Quotas"),
        "/carriers": {"get": _operation("All carriers.", _answers("Carriers"))},
    }


def _of_the_process() -> dict[str, Any]:
    dry_run = _in_query("dry_run", {**YES, "default": False})
    reload = _operation("Read the file again and apply its changes.", _answers("Reload", 409, 422, 500), dry_run)
    upgrade = _operation(
        "Start the command line again, and hand the listening sockets over.", _answers("Upgrade", 409, 422, 500)
    )
    return {
        "/reload": {"post": reload},
        "/upgrade": {"post": upgrade},
        "/log-level": {"put": _operation("Set the log level.", _answers(None, 409, 413), body="LogLevel")},
        "/reopen": {"post": _operation("Open the log files again.", _answers(None, 409, 500))},
        "/stop": {
            "post": _operation("End as after SIGTERM; a further call begins the next step.", _answers(None, 409))
        },
    }


def _of_monitoring() -> dict[str, Any]:
    metrics = _operation("Metrics for Prometheus.", _of_type("The text format.", "text/plain", TEXT))
    return {
        "/livez": {"get": _health("Whether each tunnel's loop turns.")},
        "/readyz": {"get": _health("Whether the required tunnels listen and their probes succeed.")},
        "/readyz/{name}": {"get": _health("The same of one tunnel.", _in_path("name"))},
        "/metrics": {"get": metrics},
    }


def _of_the_page() -> dict[str, Any]:
    files = {
        path: {"get": _operation("A file of the status page.", _of_type("The file.", kind, TEXT))}
        for path, (_, kind) in FILES.items()
    }
    answers = _of_type("Each event is an Overview.", "text/event-stream", ref("Overview"))
    for status in (400, 403):
        answers[str(status)] = {"description": _ERRORS[status], "content": _content("Error")}
    events = _operation(
        "Server-sent events for the status page, at most one each second.",
        answers,
        _in_query("filter", {**TEXT, "description": "Words that each row has.", "maxLength": LONGEST_FILTER}),
        _in_query("tunnels", _order(TUNNEL_ORDERS)),
        _in_query("tunnels_from", COUNT),
        _in_query("connections", _order(CONNECTION_ORDERS)),
        _in_query("connections_from", COUNT),
    )
    return {**files, "/events": {"get": events}}


def _paths() -> dict[str, Any]:
    itself = _operation("This description.", _of_type("OpenAPI 3.1.", "application/json", {"type": "object"}))
    described = {"/openapi.json": {"get": itself}}
    return {**_of_tunnels(), **_of_the_process(), **_of_monitoring(), **_of_the_page(), **described}


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
        "components": {"schemas": SCHEMAS},
    }
