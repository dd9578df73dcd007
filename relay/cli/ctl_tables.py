"""The tables of ``relay ctl``. What a relay says may come from the network: no control character is printed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ..addresses.printable import printable
from ..streams.identity import client_text
from .output import size
from .views import age, shown_state

Row = Mapping[str, Any]

_FIGURES = (
    "open",
    "total",
    "received",
    "sent",
    "failed",
    "age",
    "streams",
    "losses",
    "rtt",
    "warm",
    "ends in",
    "used",
    "quota",
    "part",
)
_GAP = "  "


def listening(tunnels: Sequence[Row]) -> int:
    """Return how many tunnels listen."""
    return sum(tunnel["state"] == "listening" for tunnel in tunnels)


def status_lines(instance: Row, tunnels: Sequence[Row]) -> Iterator[str]:
    """Yield the lines about a process."""
    what = printable(instance["config"]) or "a command line"
    ending = ", draining" if instance["draining"] else ""
    yield f"relay {printable(instance['version'])}, process {instance['pid']}, {what}{ending}"
    level = printable(instance["log_level"])
    own = ", and info of the start, reloads and the end" if level == "warning" else ""
    yield f"up {age(time.time() - instance['started'])}, log level {level}{own}"
    yield f"{listening(tunnels)} of {len(tunnels)} tunnels listen"
    if workers := instance.get("workers"):  # that of an older relay has none
        running = sum(worker["state"] == "running" for worker in workers)
        pids = ", ".join(str(worker["pid"]) for worker in workers if worker["pid"] is not None)
        restarts = sum(worker["restarts"] for worker in workers)
        yield f"{running} of {len(workers)} workers run (processes {pids}), {restarts} restarts"
    if any((resumes := instance.get("resumes") or {}).get(each) for each in ("attempts", "resumes", "losses")):
        yield (
            f"streams that lost their connection: {resumes['resumes']} resumed, {resumes['losses']} lost, "
            f"{size(resumes['held'])} held"
        )
    for tunnel in tunnels:
        if tunnel["problem"]:
            yield f"{printable(tunnel['name'])}: {printable(tunnel['problem'])}"


def print_tunnels(tunnels: Sequence[Row]) -> None:
    """Print a table of tunnels, and their problems below it."""
    rows = []
    has_warm = any(map(_warm, tunnels))
    labels = {name: "" for tunnel in tunnels for name in tunnel.get("labels", ())}  # that of an older relay has none
    for tunnel in tunnels:
        figures = tunnel["figures"]
        counts = (
            [
                str(figures["active"]),
                str(figures["accepted"]),
                size(figures["received"]),
                size(figures["sent"]),
                str(sum(figures["failed"].values())),
            ]
            if figures is not None
            else [""] * 5
        )
        via = f" via {', '.join(tunnel['via'])}" if tunnel["via"] else ""
        state = shown_state(tunnel["state"], tunnel["hops"])
        rows.append([tunnel["name"], state, f"{tunnel['listen']} → {tunnel['target']}{via}", *counts])
        if has_warm:
            rows[-1].append(_warm(tunnel))
        rows[-1] += (labels | tunnel.get("labels", {})).values()
    columns = ["tunnel", "state", "from → to", "open", "total", "received", "sent", "failed", *["warm"] * has_warm]
    columns += labels
    _print(columns, rows, below=[("from → to",)])
    for tunnel in tunnels:
        for target in tunnel.get("targets", ()):  # an older relay has none
            problem = f": {target['problem']}" if target["problem"] else ""
            _print_text(f"{tunnel['name']}: target {target['target']}, {_target(target)}{problem}")
        probe = tunnel["probe"]
        for problem in (tunnel["problem"], probe["problem"] if probe else ""):
            if problem:
                _print_text(f"{tunnel['name']}: {problem}")


def _target(target: Row) -> str:
    """Return the state of one of several targets, and its connections."""
    latency = "" if target["latency"] is None else f", answers in {target['latency'] * 1000:.1f} ms"
    return f"{target['state']} for {age(target['since'])}, {target['active']} open{latency}"


def _warm(tunnel: Row) -> str:
    """Return how many warm streams are ready, and how many clients got one, of how many; empty without such streams."""
    warm = tunnel.get("warm")  # that of an older relay has none
    return f"{warm['ready']} ready, {warm['hits']}/{warm['hits'] + warm['misses']}" if warm else ""


def print_warm(tunnels: Sequence[Row]) -> None:
    """Print a line for each tunnel that has warm streams."""
    for tunnel in tunnels:
        if warm := tunnel.get("warm"):
            ready, hits, clients = warm["ready"], warm["hits"], warm["hits"] + warm["misses"]
            figures = f"{ready} warm stream{'s' * (ready != 1)} ready, {hits} of {clients} clients got one"
            _print_text(f"{tunnel['name']}: {figures}")


def print_connections(connections: Sequence[Row], *, ended: bool = False) -> None:
    """Print a table of connections.

    :param ended: whether they have ended, each with its reason.
    """
    has_warm = any(each.get("warm") for each in connections)  # an older relay does not know
    has_resumed = any(each.get("resumes") for each in connections)
    rows = [
        [
            each["id"],
            each["tunnel"],
            _client(each),
            each["target"] or "",
            f"{each['reason'] or each['state']}{f' ({rule})' if (rule := each.get('rule')) else ''}",
            age(each["age"]),
            size(each["received"]),
            size(each["sent"]),
            *["yes" if each.get("warm") else ""] * has_warm,
            *[f"{each.get('resumes')} ×" if each.get("resumes") else ""] * has_resumed,
        ]
        for each in connections
    ]
    columns = ["id", "tunnel", "client", "target", "reason" if ended else "state", "age", "received", "sent"]
    columns += ["warm"] * has_warm + ["resumed"] * has_resumed
    _print(columns, rows, below=[("client", "target"), ("id",)])


def _client(connection: Row) -> str:
    identity = connection.get("identity") or {"kind": "", "name": ""}  # an older relay has none
    return client_text(connection["peer"], identity["kind"], identity["name"])


def print_carriers(carriers: Sequence[Row]) -> None:
    """Print a table of carriers, and their errors below it."""
    has_workers = any(each.get("worker") for each in carriers)  # an older relay does not know
    has_routers = any(each.get("router") for each in carriers)  # nor does it this
    rows = [
        [
            each["name"] + _number(each),
            each["kind"],
            each["state"],
            age(max(0.0, time.time() - each["since"])),
            str(each["streams"]),
            str(each["losses"]),
            "" if each["rtt"] is None else f"{each['rtt'] * 1000:.1f} ms",
            *[str(each.get("router") or "")] * has_routers,
            *[str(each.get("worker") or "")] * has_workers,
        ]
        for each in carriers
    ]
    columns = ["carrier", "kind", "state", "age", "streams", "losses", "rtt"]
    columns += [*["router"] * has_routers, *["worker"] * has_workers]
    _print(columns, rows, below=[("carrier",)])
    for each in carriers:
        if each["error"]:
            _print_text(f"{each['name']}{_number(each)}: {each['error']}")


def _number(carrier: Row) -> str:
    """Return which of several carriers of a hop it is; an older relay does not know."""
    return f" ({carrier['number']})" if carrier.get("number") else ""


def print_bans(bans: Sequence[Row]) -> None:
    """Print a table of bans."""
    now = time.time()
    rows = [[each["key"], each["tunnel"], each["limit"], age(max(0.0, each["until"] - now))] for each in bans]
    _print(["key", "tunnel", "limit", "ends in"], rows, below=[("key",)])


def print_quotas(quotas: Sequence[Row]) -> None:
    """Print a table of quotas."""
    rows = [
        [
            each["key"],
            each["tunnel"],
            each["limit"],
            size(each["used"]),
            size(each["quota"]),
            f"{100 * each['used'] / each['quota']:.0f} %",
        ]
        for each in quotas
    ]
    _print(["key", "tunnel", "limit", "used", "quota", "part"], rows, below=[("key",)])


def verdict_lines(verdicts: Sequence[Row], keys: Sequence[Row] = ()) -> Iterator[str]:
    """Yield a line for each key and each tunnel that a reload changes, or one if it changes none."""
    changed = [each for each in verdicts if each["verdict"] != "same"]
    for each in keys:
        yield f"key {printable(each['key'])}: {printable(each['remedy'] or each['effect'])}"
    for each in changed:
        detail = f" ({printable(each['detail'])})" if each["detail"] else ""
        yield f"{printable(each['name'])}: {printable(each['verdict'])}{detail}"
    if not changed and not keys:
        yield "nothing has changed"


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]], below: Sequence[Sequence[str]]) -> None:
    """Print a table.

    :param below: the columns that stand in lines below each row, whole, if the terminal is too narrow for them.
    """
    console = _console()
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    shown, lower = list(range(len(columns))), []
    if console.is_terminal and sum(widths) + len(_GAP) * (len(widths) - 1) > console.width:
        lower = [[columns.index(title) for title in line] for line in below]
        shown = [number for number in shown if not any(number in line for line in lower)]

    def line(row: Sequence[str]) -> str:
        return _GAP.join(_aligned(columns[number], row[number], widths[number]) for number in shown).rstrip()

    console.print(Text(line(columns), style="bold"), soft_wrap=True)
    for row in cells:
        console.print(Text(line(row)), soft_wrap=True)
        for numbers in lower:
            console.print(Text(_GAP + " → ".join(row[number] for number in numbers)), soft_wrap=True)


def _aligned(title: str, cell: str, width: int) -> str:
    return " " * (width - cell_len(cell)) + cell if title in _FIGURES else set_cell_size(cell, width)


def _print_text(text: str) -> None:
    _console().print(Text(printable(text)), soft_wrap=True)


def _console() -> Console:
    return Console(highlight=False)
