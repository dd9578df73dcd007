"""The schemas of the OpenAPI description: the values of the app as JSON."""

from __future__ import annotations

from typing import Any

from ..daemon.status import LOG_LEVELS

__all__ = ["COUNT", "SCHEMAS", "TEXT", "YES", "ref", "words"]

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number", "minimum": 0}
YES = {"type": "boolean"}
_TIME = {"type": "number", "description": "Seconds since 1970."}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a schema of :data:`SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _list(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def words(*allowed: str) -> dict[str, Any]:
    """Return the schema of a text that is one of some words."""
    return {"type": "string", "enum": [*allowed]}


def _object(about: str, **fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "properties": fields,
        "required": [*fields],
        "additionalProperties": False,
    }


def _pages(about: str, **rows: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list, which comes in pages at a status address."""
    more = {**YES, "description": "Whether there are more; at a status address only."}
    return {**_object(about, **rows, more=more), "required": [*rows]}


_MOVED = {"received": COUNT, "sent": COUNT}
_RATES = {"received_rate": _or_null(_SECONDS), "sent_rate": _or_null(_SECONDS)}


def _table(row: str) -> dict[str, Any]:
    return _object("One page of a table.", total=COUNT, matching=COUNT, **{"from": COUNT}, rows=_list(ref(row)))


SCHEMAS = {
    "Error": {
        **_object("Why a request failed; problems: of a reload, one each.", error=TEXT, problems=_list(TEXT)),
        "required": ["error"],
    },
    "Instance": _object(
        "The process.",
        version=TEXT,
        pid=COUNT,
        started=_TIME,
        config={"type": "string", "description": "Absolute path of the file; empty for a command line."},
        draining=YES,
        log_level=words(*LOG_LEVELS),
        control={"type": "string", "description": "Path of the control socket; empty if there is none."},
        reloads=_or_null(ref("Reloads")),
        workers=_list(ref("Worker")),
    ),
    "Reloads": _object(
        "The reloads of a process.", succeeded=COUNT, failed=COUNT, was_successful=YES, last_success=_TIME
    ),
    "Worker": _object(
        "A process that relays tunnels.",
        number=COUNT,
        pid=_or_null(COUNT),
        state=words("starting", "running", "stuck", "waiting", "ended"),
        restarts=COUNT,
    ),
    "Figures": _object(
        "Figures of a tunnel since it was opened.",
        accepted=COUNT,
        active=COUNT,
        received={**COUNT, "description": "Bytes from clients."},
        sent={**COUNT, "description": "Bytes to clients."},
        failed={"type": "object", "additionalProperties": COUNT, "description": "Connections by reason."},
        warm_hits={**COUNT, "description": "Connections whose stream was open before their client came."},
        warm_misses={**COUNT, "description": "Connections for which no such stream was ready."},
    ),
    "Warm": _object(
        "The warm streams of a tunnel, which are open before their clients come.",
        ready={**COUNT, "description": "Streams that are open now."},
        hits={**COUNT, "description": "Connections that got one."},
        misses={**COUNT, "description": "Connections for which none was ready."},
        ended={**COUNT, "description": "Streams that the target or a lost carrier ended before a client came."},
        expired={**COUNT, "description": "Streams that were replaced, because no client came in time."},
    ),
    "Probe": _object(
        "The probe of a tunnel.",
        kind=words("connect", "banner", "http"),
        interval=_SECONDS,
        finished=_or_null(_TIME),
        seconds=_SECONDS,
        problem=TEXT,
    ),
    "Tunnel": _object(
        "A tunnel.",
        name=TEXT,
        state=words("opening", "waiting", "listening", "paused", "draining", "closed", "failed"),
        listen=TEXT,
        target=TEXT,
        via=_list(TEXT),
        required=YES,
        since=_TIME,
        hops=TEXT,
        problem=TEXT,
        stuck={**YES, "description": "Whether a worker of it does not answer; relay replaces the worker."},
        figures=_or_null(ref("Figures")),
        warm=_or_null(ref("Warm")),
        probe=_or_null(ref("Probe")),
        certificate_end=_or_null(_TIME),
        certificate_loads=_or_null(ref("CertificateLoads")),
        targets=_list(ref("Target")),
    ),
    "CertificateLoads": _object(
        "How often the certificates of a listener were loaded again after a change.", succeeded=COUNT, failed=COUNT
    ),
    "Target": _object(
        "One of several targets of a tunnel.",
        target=TEXT,
        state=words("up", "down", "probing", "disabled"),
        since={**_SECONDS, "description": "Seconds for which it has been in this state; down includes probing."},
        active={**COUNT, "description": "Connections that are open, or about to be."},
        latency={**_or_null(_SECONDS), "description": "Duration of a connect, or of the probe, on average."},
        failures={**COUNT, "description": "Connects and probes that failed."},
        problem=TEXT,
    ),
    "Connection": _object(
        "A connection, open or ended.",
        id=TEXT,
        tunnel=TEXT,
        peer=TEXT,
        target=_or_null(TEXT),
        age=_SECONDS,
        received=COUNT,
        sent=COUNT,
        engine=words("splice", "copy"),
        state=words("connecting", "open", "half-closed", "closed"),
        reason=_or_null(TEXT),
        started=_TIME,
        by=_or_null(words("client", "target", "relay", "admin")),
        warm={**YES, "description": "Whether its stream was open before its client came."},
        identity=_or_null(ref("Identity")),
        rule={**_or_null(TEXT), "description": "The rule that denied the client."},
    ),
    "Identity": {
        **_object("Who a client is, as its transport can tell.", kind=TEXT, name=TEXT, verified=YES),
        "required": ["kind", "name"],
    },
    "Carrier": _object(
        "An SSH connection or I2P session that streams share.",
        name=TEXT,
        kind=TEXT,
        state=words("connecting", "up", "backing off", "failed", "closed"),
        since=_TIME,
        losses=COUNT,
        streams=COUNT,
        rtt=_or_null(_SECONDS),
        error=TEXT,
        number={**_or_null(COUNT), "description": "Which of several carriers of one hop it is; null for the only one."},
        router={**TEXT, "description": "The I2P router that has the session, of several; else empty."},
        worker={**_or_null(COUNT), "description": "The number of the worker that has it; null for relay itself."},
    ),
    "Ban": _object(
        "A ban.",
        tunnel=TEXT,
        limit={**TEXT, "description": "The name of the limit."},
        key={**TEXT, "description": "The clients that count together; * for all of the tunnel."},
        until=_TIME,
    ),
    "Quota": _object(
        "The use of a quota in the current period.",
        tunnel=TEXT,
        limit=TEXT,
        key=TEXT,
        used={**COUNT, "description": "Bytes."},
        quota=COUNT,
        since=_TIME,
    ),
    "Bans": _pages("Bans, those that last longest first.", bans=_list(ref("Ban"))),
    "Quotas": _pages("Quotas, those of which most was used first.", quotas=_list(ref("Quota"))),
    "Cleared": _object("What was forgotten.", cleared=COUNT),
    "Verdict": _object(
        "The effect of a reload on one tunnel.",
        name=TEXT,
        verdict=words("same", "tuned", "rerouted", "moved", "gone", "new"),
        detail=TEXT,
    ),
    "ChangedKey": _object(
        "The effect of a reload on a key at the top of the file that has changed.",
        key=TEXT,
        effect=words("tuned", "overridden", "upgrade", "restart"),
        remedy={"type": "string", "description": "What puts it in force; empty if the reload does."},
    ),
    "Reload": _object(
        "The effect of a reload.", verdicts=_list(ref("Verdict")), dry_run=YES, keys=_list(ref("ChangedKey"))
    ),
    "Upgrade": _object("The process that has taken the place of this one.", pid=COUNT, version=TEXT),
    "Health": {
        "type": "object",
        "description": "The answer to a health check.",
        "properties": {
            "status": words("ok", "failed", "draining"),
            "problems": {"type": "object", "additionalProperties": TEXT, "description": "By tunnel."},
            "error": TEXT,
        },
        "required": ["status", "problems"],
        "additionalProperties": False,
    },
    "Tunnels": _pages("All tunnels.", tunnels=_list(ref("Tunnel"))),
    "Connections": _pages("Connections.", connections=_list(ref("Connection"))),
    "Carriers": _object("All carriers.", carriers=_list(ref("Carrier"))),
    "Overview": _object(
        "The part of the state that a status page shows.",
        time=_TIME,
        instance=_object("The process.", version=TEXT, pid=COUNT, started=_TIME, config=TEXT, draining=YES, ready=YES),
        totals=_object(
            "Sums of all tunnels.",
            accepted=COUNT,
            active=COUNT,
            received=COUNT,
            sent=COUNT,
            tunnels=COUNT,
            listening=COUNT,
            problems=COUNT,
            failed={"type": "object", "additionalProperties": COUNT, "description": "Connections by reason."},
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
    "TunnelRow": _object(
        "A tunnel, as a page shows it. Long texts are cut.",
        name=TEXT,
        state=TEXT,
        listen=TEXT,
        target=TEXT,
        via=_list(TEXT),
        required=YES,
        since=_TIME,
        hops=TEXT,
        problem=TEXT,
        targets=_list(_object("One of several targets.", target=TEXT, state=TEXT, active=COUNT, problem=TEXT)),
        more_targets={**COUNT, "description": "The targets that are left out."},
        active=COUNT,
        accepted=COUNT,
        failed=COUNT,
        probe={**_or_null(_SECONDS), "description": "Duration of the last probe, if it succeeded."},
        warm=_or_null(ref("Warm")),
        **_MOVED,
        **_RATES,
    ),
    "ConnectionRow": _object(
        "An open connection, as a page shows it.",
        id=TEXT,
        tunnel=TEXT,
        peer=TEXT,
        target=TEXT,
        state=TEXT,
        age=_SECONDS,
        engine=TEXT,
        warm=YES,
        **_MOVED,
        **_RATES,
    ),
    "EndedRow": _object(
        "A connection that has ended, as a page shows it.",
        id=TEXT,
        tunnel=TEXT,
        peer=TEXT,
        target=TEXT,
        ended=_TIME,
        age=_SECONDS,
        reason=TEXT,
        by=TEXT,
        **_MOVED,
    ),
    "LogLine": _object("A line of the log.", time=_TIME, level=TEXT, logger=TEXT, message=TEXT),
    "LogLevel": _object("A log level.", level=words(*LOG_LEVELS)),
}
