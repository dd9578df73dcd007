"""Limits of clients as users write them: how often, how many, how fast, and how much; text becomes values here."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from ..addresses.duration import parse_duration
from ..addresses.printable import shown

LOGIN = "login"
"""The name of the limit of wrong passwords."""

MOST_LIMITS = 64
"""The most limits of one tunnel."""

_IPV4, _IPV6 = 32, 64  # bits of an address that make one key by default: a site gets a /64 (RFC 4291, section 2.5.4)
_LONGEST = 366 * 86400.0  # seconds: of a ban, and of the time of a rate
_MOST = 1_000_000  # clients, of a rate or at a time
_LEAST_BANDWIDTH = 1000.0  # bytes a second
_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SIZE = rf"({_NUMBER}) ?(Ki|Mi|Gi|Ti|[kKMGT]?)"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}"


class Action(enum.Enum):
    """The way in which a client is rejected."""

    RESET = "reset"
    CLOSE = "close"
    TARPIT = "tarpit"


class Period(enum.Enum):
    """The period of a quota, which begins by the calendar, in UTC; a week begins on Monday."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Scope(NamedTuple):
    """The clients that count together."""

    kind: str
    """``ip``, ``identity``, ``tunnel`` or ``connection``."""
    ipv4: int = _IPV4
    """For ``ip``: the leading bits of an IPv4 address that make one key."""
    ipv6: int = _IPV6
    """The same for an IPv6 address."""


class Rate(NamedTuple):
    """At most so many in so much time; see :mod:`relay.access.limiter` for the algorithm."""

    most: int
    seconds: float


class Terms(NamedTuple):
    """The values of a limit. Limits with equal terms mean the same."""

    scope: Scope
    rate: Rate | None
    concurrent: int | None
    bandwidth: float | None
    """Bytes a second, for each direction."""
    quota: int | None
    """Bytes, both directions together."""
    period: Period
    ban: float
    """Seconds; 0 for none."""
    action: Action


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of the clients of a tunnel.

    At least one of ``rate``, ``concurrent``, ``bandwidth`` and ``quota`` is needed. The limits of a tunnel apply in
    their order; the first one that rejects a client is the reason.

    :param per: the clients that count together: ``ip`` (an IPv4 address, or an IPv6 /64 network), ``ip/N`` (IPv4
        networks of this size), ``ip/N/M`` (the same, and IPv6 networks of ``M`` bits), ``identity``, or ``tunnel`` (all
        of them). ``connection`` limits the bandwidth of each connection alone. A client without an IP address counts
        by its identity for ``ip``, and one that is only an IPv6 address by its /64 network for ``identity``.
    :param rate: the most connections in a time, such as ``20/10s``: so many at once, and then one whenever the
        time divided by their number has passed. For the limit with the name ``login``: the most wrong passwords,
        by address.
    :param concurrent: the most connections at one time.
    :param bandwidth: bytes a second for each direction, as a number or as a text such as ``2MB/s`` or ``16Mbit/s``.
        The connections that count together share it.
    :param quota: bytes in a period, both directions together, such as ``10GB/month``; the other periods are ``week``,
        ``day`` and ``hour``.
    :param ban: how long to reject the clients that count together once one has exceeded ``rate`` or ``quota``: seconds,
        or a text such as ``10m``.
    :param action: how to reject: ``reset``, ``close`` (an EOF), or ``tarpit`` (keep the client waiting).
    :param name: in records, the log and the metrics. By default it is made of ``per`` and the values.
    :raises TypeError: if a value has the wrong type.
    :raises ValueError: if a value cannot be understood or is out of range.
    """

    per: str = "ip"
    rate: str | None = None
    concurrent: int | None = None
    bandwidth: str | float | None = None
    quota: str | None = None
    ban: str | float | None = None
    action: str = "reset"
    name: str = ""
    terms: Terms = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = _terms_of(self)
        # The class is frozen for its users, whose limits are keys of dicts.
        object.__setattr__(self, "terms", terms)
        if not isinstance(self.name, str):
            raise TypeError(f"limit: name: expected text, got {type(self.name).__name__}")
        if not self.name:
            object.__setattr__(self, "name", self._default_name())
        if not re.fullmatch(_NAME, self.name):
            allowed = "use at most 64 letters, digits and . _ : / -"
            raise ValueError(f"limit: name: expected one word, got '{shown(self.name)}'; {allowed}")
        if self.name == LOGIN:
            _check_login(terms)

    def _default_name(self) -> str:
        values = [self.rate, self.concurrent, self.bandwidth, self.quota]
        text = "-".join(str(value) for value in values if value is not None)
        without = str.maketrans("", "", " +")  # spaces around a value, and the sign in 2e+16: no name has them
        return f"{self.per}:{text}".translate(without)[:64]

    def is_like(self, other: Limit) -> bool:
        """Return whether it limits the same of the same clients, perhaps with other values; neither was named."""

        def kind(limit: Limit) -> tuple[object, ...]:
            terms = limit.terms
            values = terms.rate, terms.concurrent, terms.bandwidth, terms.quota
            return limit.name == limit._default_name(), terms.scope, terms.period, [value is None for value in values]

        return kind(self) == kind(other) and self.name == self._default_name()

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Parse the form of the command line, such as ``per=ip/24,rate=20/10s,ban=10m``.

        :raises ValueError: if it cannot be understood.
        """
        values: dict[str, Any] = {}
        for part in text.split(","):
            key, equals, value = part.strip().partition("=")
            if not equals or key not in _KEYS:
                hint = _near(key) or f"use KEY=VALUE with one of {', '.join(_KEYS)}"
                raise ValueError(f"limit: unknown part '{shown(part.strip())}'; {hint}")
            if key in values:
                raise ValueError(f"limit: {key} is there twice; use --limit once for each limit")
            values[key] = value
        if "concurrent" in values:
            values["concurrent"] = _parse_count(values["concurrent"])
        return cls(**values)

    def as_table(self) -> dict[str, Any]:
        """Return what is not the default, with the keys of ``relay.toml``."""
        table = {key: getattr(self, key) for key in _KEYS}
        if self.name == self._default_name():
            del table["name"]
        return {key: value for key, value in table.items() if value is not None and (key, value) != ("action", "reset")}

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.as_table().items())


_KEYS = tuple(field.name for field in dataclasses.fields(Limit) if field.init)


LimitsLike = Iterable[Limit | Mapping[str, Any] | str]
"""The limits of a tunnel, as a caller gives them."""


def check_limits(limits: Any) -> tuple[Limit, ...]:
    """Check the limits of a tunnel.

    :param limits: each a :class:`Limit`, a mapping with its keywords, or a text of the command line; ``None`` for none.
    :raises TypeError: if it is no such sequence.
    :raises ValueError: if a limit cannot be understood, or two have one name.
    """
    if limits is None:
        return ()
    if isinstance(limits, (str, Limit, Mapping)) or not isinstance(limits, Iterable):
        raise TypeError(f"limit: expected a list of limits, got {type(limits).__name__}")
    checked = tuple(_check_limit(limit) for limit in limits)
    if len(checked) > MOST_LIMITS:
        raise ValueError(f"limit: at most {MOST_LIMITS} are allowed, got {len(checked)}; remove some")
    names = [limit.name for limit in checked]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"limit: the name '{name}' is there twice; give each limit a name of its own")
    return checked


def check_answer(answer: Any) -> bool | tuple[Limit, ...]:
    """Check what the ``admit`` of a program returns about a client.

    :param answer: whether it may connect, or the limits within which it may.
    :returns: it is ``False``, ``True``, or at least one limit.
    :raises TypeError: if it is neither.
    :raises ValueError: if these limits cannot be those of one client.
    """
    if isinstance(answer, bool):
        return answer
    limits = tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
    got = next((type(limit).__name__ for limit in limits if not isinstance(limit, Limit)), None if limits else "none")
    if got is not None:
        raise TypeError(f"admit must return True, False, or one or more relay.Limit, got {got}")
    if any(limit.name == LOGIN for limit in limits):
        raise ValueError("limit: login: counts wrong passwords of a tunnel; give it to the tunnel as limit")
    return check_limits(limits)


def must_stay_whole(limits: Iterable[Limit]) -> bool:
    """Return whether all clients of a tunnel must be counted in one process."""
    return any(limit.terms.scope.kind != "connection" for limit in limits)


def _check_limit(limit: Any) -> Limit:
    if isinstance(limit, Limit):
        return limit
    if isinstance(limit, str):
        return Limit.parse(limit)
    if not isinstance(limit, Mapping):
        raise TypeError(f"limit: expected a table or a relay.Limit, got {type(limit).__name__}")
    for key in limit:
        if key not in _KEYS:
            hint = _near(str(key)) or f"use one of {', '.join(_KEYS)}"
            raise ValueError(f"limit: unknown key '{shown(str(key))}'; {hint}")
    return Limit(**limit)


def _near(key: str) -> str:
    close = get_close_matches(key, _KEYS, 1)
    return f"did you mean {close[0]}?" if close and key not in _KEYS else ""


# -- the values of one limit ------------------------------------------------------------------------------------------


def _terms_of(limit: Limit) -> Terms:
    scope = _parse_scope(limit.per)
    rate = None if limit.rate is None else _parse_rate(limit.rate)
    bandwidth = None if limit.bandwidth is None else _parse_bandwidth(limit.bandwidth)
    quota, period = (None, Period.DAY) if limit.quota is None else _parse_quota(limit.quota)
    ban = 0.0 if limit.ban is None else _parse_ban(limit.ban)
    if limit.concurrent is not None:
        _check_concurrent(limit.concurrent)
    if rate is None and limit.concurrent is None and bandwidth is None and quota is None:
        raise ValueError("limit: there is nothing to limit; give it rate, concurrent, bandwidth or quota")
    if scope.kind == "connection" and (bandwidth is None or rate or limit.concurrent or quota):
        raise ValueError("limit: per=connection limits only bandwidth; use another per for the rest")
    if ban and rate is None and quota is None:
        raise ValueError("limit: ban: follows a rate or a quota; give one of them")
    try:
        action = Action(limit.action)
    except ValueError:
        text = shown(str(limit.action))
        raise ValueError(f"limit: action: expected reset, close or tarpit, got '{text}'; use one of them") from None
    return Terms(scope, rate, limit.concurrent, bandwidth, quota, period, ban, action)


def _check_login(terms: Terms) -> None:
    """Check the limit of wrong passwords. A client has no name yet when relay decides whether it may try one."""
    if terms.rate is None or not terms.ban or terms.concurrent or terms.bandwidth or terms.quota:
        raise ValueError("limit: login: counts wrong passwords; give it rate and ban, and no other limit")
    if terms.scope.kind != "ip":
        kind = terms.scope.kind
        raise ValueError(
            f"limit: login: counts wrong passwords by address, not per={kind}; use per=ip or, for networks, ip/24"
        )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"limit: {name}: expected text, got {type(value).__name__}")
    return value.strip(" ")  # else it takes some control characters for spaces


def _plain_number(name: str, value: Any) -> float | None:
    """Return a number without a unit, which is text on the command line; ``None`` for any other text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    text = _text(name, value)
    return float(text) if re.fullmatch(_NUMBER, text) else None


def _parse_scope(value: Any) -> Scope:
    text = _text("per", value)
    if text in ("ip", "identity", "tunnel", "connection"):
        return Scope(text)
    found = re.fullmatch(r"ip/([0-9]{1,3})(?:/([0-9]{1,3}))?", text)
    if not found:
        allowed = "use ip, ip/24, identity, tunnel or connection"
        raise ValueError(f"limit: per: expected the clients that count together, got '{shown(text)}'; {allowed}")
    ipv4, ipv6 = int(found[1]), int(found[2] or _IPV6)
    if not (1 <= ipv4 <= 32 and 1 <= ipv6 <= 128):
        raise ValueError(
            f"limit: per: a network has 1 to 32 bits (IPv6: 1 to 128), got '{text}'; use for example ip/24"
        )
    return Scope("ip", ipv4, ipv6)


def _parse_seconds(text: str) -> float | None:
    """Parse a time such as ``10s``; ``s`` alone is one second, and a number alone is none."""
    try:
        seconds = parse_duration(f"1{text}" if text[:1].isalpha() else text) if text[-1:].isalpha() else 0.0
    except ValueError:
        return None
    return seconds if 0 < seconds <= _LONGEST else None


def _parse_rate(value: Any) -> Rate:
    text = _text("rate", value)
    count, _, time = text.partition("/")
    seconds = _parse_seconds(time)
    if seconds is None or not re.fullmatch(r"[0-9]{1,7}", count) or not 1 <= int(count) <= _MOST:
        example = "use for example 20/10s or 5/m"
        raise ValueError(f"limit: rate: expected a number and a time, got '{shown(text)}'; {example}")
    return Rate(int(count), seconds)


def _parse_size(text: str, unit: str) -> float | None:
    found = re.fullmatch(_SIZE + unit, text)
    if not found:
        return None
    size = float(found[1]) * _PREFIXES["k" if found[2] == "K" else found[2]]
    return size if 0 < size < 1e18 else None


def _parse_bandwidth(value: Any) -> float:
    size = _plain_number("bandwidth", value)
    if size is None:
        text = _text("bandwidth", value)
        size = _parse_size(text, "B/s")
        if size is None and (bits := _parse_size(text, "bit/s")) is not None:
            size = bits / 8
    if size is None or not _LEAST_BANDWIDTH <= size < 1e18:
        example = "use for example 2MB/s or 16Mbit/s"
        raise ValueError(f"limit: bandwidth: expected 1kB/s or more, got '{shown(str(value))}'; {example}")
    return float(size)


def _parse_quota(value: Any) -> tuple[int, Period]:
    text = _text("quota", value)
    size, _, period = text.partition("/")
    number = _parse_size(size, "B")
    if number is None or number < 1 or period not in {one.value for one in Period}:
        example = "use for example 10GB/month; the periods are hour, day, week and month"
        raise ValueError(f"limit: quota: expected a size and a period, got '{shown(text)}'; {example}")
    return int(number), Period(period)


def _parse_ban(value: Any) -> float:
    seconds = _plain_number("ban", value)
    if seconds is None:
        seconds = _parse_seconds(_text("ban", value))
    if seconds is None or not 0 < seconds <= _LONGEST:
        raise ValueError(f"limit: ban: expected a time up to 366d, got '{shown(str(value))}'; use for example 10m")
    return float(seconds)


def _parse_count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text):
        raise ValueError(f"limit: concurrent: expected a whole number, got '{shown(text)}'; use for example 8")
    return int(text)


def _check_concurrent(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"limit: concurrent: expected a whole number, got {type(value).__name__}")
    if not 1 <= value <= _MOST:
        raise ValueError(f"limit: concurrent: must be from 1 to {_MOST}, got {value}; leave it out for no limit")
