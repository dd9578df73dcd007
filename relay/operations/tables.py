"""The tables of the status page: the rows that a page shows, in its order, with texts that are safe and short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar

from ..addresses.printable import printable
from ..carriers.listing import CarrierStatus
from ..daemon.status import BanStatus, ConnectionStatus, Rates, TunnelStatus

if TYPE_CHECKING:  # a relay whose tunnels have one target starts faster without it
    from ..targets.group import TargetState

ROWS = 25  # of each table
PAGE = 500
"""The rows of an answer at a status address."""
TARGETS = 10  # of one tunnel, those that are not up first
LONGEST = 200  # characters of a text that may come from the network
LONGEST_FILTER = 200  # characters
LONGEST_OFFSET = 7  # digits of the number of rows to skip

Row = TypeVar("Row")
_Order = Callable[[Any, Any, Any], Any]  # of a row, the rates, and the problems of the tunnels


class View(NamedTuple):
    """The part of the state that one page shows.

    :param filter: words; a row is shown if its texts contain each of them.
    :param tunnels: the order of the tunnels, a key of :data:`TUNNEL_ORDERS`; with ``-`` before it, the reverse.
    :param tunnels_from: the number of tunnels to skip.
    :param connections: the order of the connections, a key of :data:`CONNECTION_ORDERS`, as for the tunnels.
    :param connections_from: the number of connections to skip.
    """

    filter: str = ""
    tunnels: str = "problem"
    tunnels_from: int = 0
    connections: str = "age"
    connections_from: int = 0

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> View:
        """Return the view that a query describes; its keys are the names of the fields.

        :raises ValueError: if a value is wrong.
        """
        default = cls()
        words = query.get("filter", "")
        if len(words) > LONGEST_FILTER:
            raise ValueError(f"filter: expected at most {LONGEST_FILTER} characters")
        return cls(
            words,
            _order(query.get("tunnels", default.tunnels), "tunnels", TUNNEL_ORDERS),
            offset(query.get("tunnels_from", "0"), "tunnels_from"),
            _order(query.get("connections", default.connections), "connections", CONNECTION_ORDERS),
            offset(query.get("connections_from", "0"), "connections_from"),
        )


def _order(value: str, name: str, orders: Mapping[str, object]) -> str:
    if value.removeprefix("-") not in orders:
        raise ValueError(f"{name}: expected one of {', '.join(orders)}; put - before it for the reverse")
    return value


def offset(value: str, name: str) -> int:
    """Return the number of rows to skip.

    :param value: as the query has it.
    :param name: of the value, for the error.
    :raises ValueError: if it is no number, or too large.
    """
    if not value.isdecimal() or not value.isascii() or len(value) > LONGEST_OFFSET:
        raise ValueError(f"{name}: expected a number of rows")
    return int(value)


class TargetCell(TypedDict):
    """One of several targets."""

    target: str
    state: str
    active: int
    problem: str


class TunnelRow(TypedDict):
    """A tunnel, as a page shows it. Long texts are cut."""

    name: str
    state: str
    listen: str
    target: str
    via: list[str]
    required: bool
    since: float
    hops: str
    problem: str
    targets: list[TargetCell]
    more_targets: int
    """The targets that are left out."""
    labels: list[str]
    """Each the name and the text of a label."""
    active: int
    accepted: int
    received: int
    sent: int
    received_rate: float | None
    sent_rate: float | None
    failed: int
    warm: dict[str, int] | None
    probe: float | None
    """Duration of the last probe, if it succeeded."""


class ConnectionRow(TypedDict):
    """An open connection, as a page shows it."""

    id: str
    tunnel: str
    peer: str
    target: str
    state: str
    age: float
    received: int
    sent: int
    received_rate: float | None
    sent_rate: float | None
    engine: str
    warm: bool


class EndedRow(TypedDict):
    """A connection that has ended, as a page shows it."""

    id: str
    tunnel: str
    peer: str
    target: str
    ended: float
    age: float
    received: int
    sent: int
    reason: str
    by: str


class Tables(NamedTuple):
    """All rows at one moment."""

    tunnels: Sequence[TunnelStatus]
    problems: Mapping[str, str]
    """By tunnel: why it is not ready, or what else is wrong with it; see :func:`problem_shown`."""
    connections: Sequence[ConnectionStatus]
    ended: Sequence[ConnectionStatus]
    """Newest first."""
    carriers: Sequence[CarrierStatus]
    bans: Sequence[BanStatus]
    """Those that last longest first."""
    tunnel_rates: Rates
    """By the name of a tunnel."""
    connection_rates: Rates
    """By the id of a connection."""

    def shown(self, view: View) -> dict[str, Any]:
        """Return what a page shows, as JSON has it."""
        words = view.filter.casefold().split()
        tunnels = _matching(self.tunnels, words, _words_of_tunnel)
        connections = _matching(self.connections, words, _words_of_connection)
        carriers = _matching(self.carriers, words, lambda one: (one.name, one.kind, one.state, one.error))
        bans = _matching(self.bans, words, lambda one: (one.key, one.tunnel, one.limit))
        return {
            "tunnels": _table(
                self.tunnels,
                _sorted(tunnels, view.tunnels, TUNNEL_ORDERS, self.tunnel_rates, self.problems),
                view.tunnels_from,
                lambda one: _tunnel(one, self.problems.get(one.name, ""), self.tunnel_rates.of(one.name)),
            ),
            "connections": _table(
                self.connections,
                _sorted(connections, view.connections, CONNECTION_ORDERS, self.connection_rates, self.problems),
                view.connections_from,
                lambda one: _connection(one, self.connection_rates.of(one.id)),
            ),
            "ended": _table(self.ended, _matching(self.ended, words, _words_of_connection), 0, _ended),
            "carriers": _table(self.carriers, sorted(carriers, key=lambda one: one.state == "up"), 0, _carrier),
            "bans": _table(self.bans, bans, 0, _ban),
        }


def _tunnel(tunnel: TunnelStatus, problem: str, rates: tuple[float | None, float | None]) -> TunnelRow:
    figures = tunnel.figures
    probe = tunnel.probe
    return {
        "name": short(tunnel.name),
        "state": tunnel.state,
        "listen": short(tunnel.listen),
        "target": short(tunnel.target),
        "via": [short(hop) for hop in tunnel.via],
        "required": tunnel.required,
        "since": tunnel.since,
        "hops": tunnel.hops,
        "problem": short(tunnel.problem or problem, 500),
        "targets": [_target(one) for one in sorted(tunnel.targets, key=_is_up)[:TARGETS]],
        "more_targets": max(0, len(tunnel.targets) - TARGETS),
        "labels": [f"{name}: {short(text)}" for name, text in tunnel.labels.items()],
        "active": figures.active if figures else 0,
        "accepted": figures.accepted if figures else 0,
        "received": figures.received if figures else 0,
        "sent": figures.sent if figures else 0,
        "received_rate": rates[0],
        "sent_rate": rates[1],
        "failed": sum(figures.failed.values()) if figures else 0,
        "warm": tunnel.warm._asdict() if tunnel.warm is not None else None,
        "probe": probe.seconds if probe is not None and probe.finished is not None and not probe.problem else None,
    }


def _target(target: TargetState) -> TargetCell:
    problem = short(target.problem.removeprefix(f"{target.target}: "))
    return {"target": short(target.target), "state": target.state, "active": target.active, "problem": problem}


def _is_up(target: TargetState) -> bool:
    return target.state == "up"


def _connection(connection: ConnectionStatus, rates: tuple[float | None, float | None]) -> ConnectionRow:
    return {
        "id": connection.id,
        "tunnel": short(connection.tunnel),
        "peer": short(connection.client),
        "target": short(connection.target or ""),
        "state": connection.state,
        "age": connection.age,
        "received": connection.received,
        "sent": connection.sent,
        "received_rate": rates[0],
        "sent_rate": rates[1],
        "engine": connection.engine,
        "warm": connection.warm,
    }


def _ended(connection: ConnectionStatus) -> EndedRow:
    return {
        "id": connection.id,
        "tunnel": short(connection.tunnel),
        "peer": short(connection.client),
        "target": short(connection.target or ""),
        "ended": ended_at(connection),
        "age": connection.age,
        "received": connection.received,
        "sent": connection.sent,
        "reason": short(_reason(connection)),
        "by": connection.by or "",
    }


def _reason(connection: ConnectionStatus) -> str:
    """Return why a connection has ended, with the rule that denied its client."""
    reason = connection.reason or ""
    return f"{reason} ({connection.rule})" if connection.rule else reason


def _carrier(carrier: CarrierStatus) -> dict[str, Any]:
    return {
        "name": short(carrier.name),
        "kind": carrier.kind,
        "state": carrier.state,
        "since": carrier.since,
        "losses": carrier.losses,
        "streams": carrier.streams,
        "rtt": carrier.rtt,
        "error": short(carrier.error, 500),
        "number": carrier.number,
        "router": short(carrier.router),
        "worker": carrier.worker,
    }


def _ban(ban: BanStatus) -> dict[str, Any]:
    return {"key": short(ban.key), "tunnel": short(ban.tunnel), "limit": ban.limit, "until": ban.until}


def problem_shown(tunnel: TunnelStatus, why: str) -> str:
    """Return what is wrong with a tunnel, for the page; empty if nothing is. A target that is disabled is as it should.

    :param why: it is not ready; empty if it is.
    """
    hops = "" if tunnel.hops in ("up", "published") else tunnel.hops
    down = [one.target for one in tunnel.targets if one.state not in ("up", "disabled")]
    return tunnel.problem or why or hops or (f"not reached: {', '.join(down)}" if down else "")


def short(text: str, longest: int = LONGEST) -> str:
    """Return a text that may come from the network, for the page.

    :param longest: characters after which it is cut.
    """
    return printable(text, longest)


def ended_at(connection: ConnectionStatus) -> float:
    """Return when a connection has ended, in seconds since 1970."""
    return connection.started + connection.age


def _words_of_tunnel(tunnel: TunnelStatus) -> tuple[str, ...]:
    targets = (text for one in tunnel.targets for text in (one.target, one.state))
    texts = (tunnel.name, tunnel.state, tunnel.listen, tunnel.target, *tunnel.via, tunnel.problem)
    return (*texts, *targets, *tunnel.labels.values())


def _words_of_connection(connection: ConnectionStatus) -> tuple[str, ...]:
    texts = (connection.target, connection.state, connection.reason, connection.rule)
    return (connection.tunnel, connection.client, *(text or "" for text in texts))


def _matching(rows: Sequence[Row], words: Sequence[str], texts: Callable[[Row], tuple[str, ...]]) -> Sequence[Row]:
    if not words:
        return rows
    return [row for row in rows if _contains("\n".join(texts(row)).casefold(), words)]


def _contains(text: str, words: Iterable[str]) -> bool:
    return all(word in text for word in words)


def _table(
    rows: Sequence[Row], matching: Sequence[Row], first: int, describe: Callable[[Row], object]
) -> dict[str, Any]:
    """Return one page of a table. Beyond its end, that is the last one."""
    first = min(first, max(0, (len(matching) - 1) // ROWS * ROWS))
    shown = matching[first : first + ROWS]
    return {"total": len(rows), "matching": len(matching), "from": first, "rows": [describe(row) for row in shown]}


def _sorted(
    rows: Iterable[Row], order: str, orders: Mapping[str, _Order], rates: Rates, problems: Mapping[str, str]
) -> Sequence[Row]:
    key = orders[order.removeprefix("-")]
    return sorted(rows, key=lambda row: key(row, rates, problems), reverse=order.startswith("-"))


def _field(name: str) -> _Order:
    return lambda row, rates, problems: getattr(row, name) or ""


def _number(name: str) -> _Order:
    return lambda row, rates, problems: getattr(row, name)


def _figure(name: str) -> _Order:
    return lambda tunnel, rates, problems: getattr(tunnel.figures, name) if tunnel.figures is not None else 0


def _rate(key: str, index: int) -> _Order:
    return lambda row, rates, problems: rates.of(getattr(row, key))[index] or 0.0


TUNNEL_ORDERS: Mapping[str, _Order] = {
    "problem": lambda tunnel, rates, problems: not (tunnel.problem or tunnel.name in problems),
    "name": _field("name"),
    "state": _field("state"),
    "active": _figure("active"),
    "accepted": _figure("accepted"),
    "received": _figure("received"),
    "sent": _figure("sent"),
    "received_rate": _rate("name", 0),
    "sent_rate": _rate("name", 1),
    "failed": lambda tunnel, rates, problems: sum(tunnel.figures.failed.values()) if tunnel.figures is not None else 0,
}

CONNECTION_ORDERS: Mapping[str, _Order] = {
    "peer": _field("client"),
    "tunnel": _field("tunnel"),
    "target": _field("target"),
    "state": _field("state"),
    "age": _number("age"),
    "received": _number("received"),
    "sent": _number("sent"),
    "received_rate": _rate("id", 0),
    "sent_rate": _rate("id", 1),
}
