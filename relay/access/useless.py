"""Rules of an access list that can never match a client: ``relay check`` reports them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..addresses.printable import shown
from ..streams.user_names import is_user
from .access_list import parse_entries
from .networks import Network, NetworkSet
from .policy import Entries
from .regular_file import open_regular
from .rule_file import read_rules
from .rule_set import RuleSet
from .rules import Rule, parse_rule
from .senders import LOCAL_PROGRAMS

_OF_CERTIFICATES = frozenset({"dns", "uri", "cn", "spki"})
_OF_HEADERS = frozenset({"cidr", "user", "cn", "login", "i2p", "ssh"})  # see relay.access.introduction.identified
_KINDS = {
    "tcp": frozenset({"cidr"}),
    "tls": frozenset({"cidr"}),
    "unix": frozenset({"user"}),
    "systemd": frozenset({"cidr", "user"}),
    "ssh": frozenset({"ssh", "cidr"}),
    "i2p": frozenset({"i2p"}),
    "tor": frozenset(),
}
_NEEDS = {
    "cidr": "a listener at TCP, or accept_proxy",
    "user": "a listener at a Unix socket",
    **dict.fromkeys(_OF_CERTIFICATES, "a tls:// listener with client_ca="),
    "i2p": "a listener at i2p:",
    "login": "a proxy with a login",
    "ssh": "a listener at ssh://",
}


class Place(NamedTuple):
    """The place of a rule.

    :param option: ``allow`` or ``deny``.
    :param number: of the entry, from 0.
    :param line: the file that the entry names, and the line in it; empty for a rule of the option itself.
    """

    option: str
    number: int
    line: str = ""

    def __str__(self) -> str:
        return self.line or f"{self.option}[{self.number}]"


class Known(NamedTuple):
    """The knowledge about all clients of a listener.

    :param user: the only one who can log in; ``None`` if that is not known.
    :param version: of IP, 4 or 6; ``None`` for both.
    :param are_local: whether those at a Unix socket are users of this machine, whose names are looked up then.
    :param has_loopback: whether they have addresses of the loopback, because the listener does.
    """

    user: str | None = None
    version: int | None = None
    are_local: bool = False
    has_loopback: bool = False


_NOTHING_KNOWN = Known()


class Useless(NamedTuple):
    """A rule that can never match.

    :param place: where it is.
    :param text: the rule.
    :param problem: why it cannot match.
    :param remedy: what to do.
    :param is_misplaced: whether the cause is the kind of the listener: at another one, the rule could match.
    """

    place: Place
    text: str
    problem: str
    remedy: str
    is_misplaced: bool = False

    def __str__(self) -> str:
        where = f"{self.place.line}: " if self.place.line else ""
        return f"{where}{self.text} can never match: {self.problem}; {self.remedy}"


def possible_kinds(
    listener: str, *, has_certificates: bool = False, has_login: bool = False, has_header: bool = False
) -> frozenset[str]:
    """Return the kinds of rules that can match a client of a listener.

    :param listener: ``tcp``, ``tls``, ``unix``, ``systemd`` (a socket of either kind), ``ssh`` or ``i2p``.
    :param has_certificates: whether it demands client certificates.
    :param has_login: whether its clients log in at a proxy.
    :param has_header: whether clients come with a PROXY header, which can have an address and each identity but the
        names of subjectAltName and the key of a certificate.
    """
    kinds = set(_KINDS[listener])
    if has_certificates:
        kinds |= _OF_CERTIFICATES
    if has_login:
        kinds.add("login")
    if has_header:
        kinds |= _OF_HEADERS
    return frozenset(kinds)


def find_useless(
    allow: Entries,
    deny: Entries,
    listener: str,
    kinds: frozenset[str],
    known: Known = _NOTHING_KNOWN,
    *,
    files: bool = True,
) -> Iterator[Useless]:
    """Find the rules that can never match: by their kind, or because another rule decides before.

    :param allow: as for :class:`relay.access.access_list.AccessList`.
    :param deny: the same.
    :param listener: as for :func:`possible_kinds`.
    :param kinds: the kinds of rules that can match.
    :param known: what is known of the clients.
    :param files: whether to read the files of rules, too.
    :raises ValueError: if an entry is wrong.
    :raises OSError: if a file cannot be read.
    """
    denied, allowed = list(rules_in(deny, "deny", files=files)), list(rules_in(allow, "allow", files=files))
    yield from _useless(denied, kinds, known, None)
    # The addresses that an SSH server reports are only claims: they can deny a client, and never allow it.
    possible = kinds - {"cidr"} if listener == "ssh" else kinds
    yield from _useless(allowed, possible, known, _Denials(denied))


def find_useless_senders(senders: Iterable[str], listener: str, known: Known) -> Iterator[Useless]:
    """Find the entries of ``accept_proxy`` that no balancer can have.

    :param senders: the entries.
    :param listener: as for :func:`possible_kinds`.
    :param known: what is known of the balancers.
    """
    for number, entry in enumerate(senders):
        place = Place("accept_proxy", number)
        if entry == LOCAL_PROGRAMS:
            if listener not in ("unix", "systemd"):
                yield Useless(place, entry, "no balancer is at a Unix socket", "leave it out")
        elif listener == "unix":
            yield Useless(place, entry, "all balancers are at a Unix socket", "leave it out")
        elif (mismatch := _mismatch(parse_rule(entry), known)) is not None:
            yield Useless(place, entry, *mismatch)


class _Denials:
    """The rules of ``deny``, to find what wins against a rule of ``allow``."""

    def __init__(self, placed: Sequence[tuple[Place, Rule]]) -> None:
        self._rules = RuleSet(rule for _, rule in placed)
        self._places = {rule.text: place for place, rule in reversed(placed)}
        self._union = _union(rule.value for _, rule in placed if rule.kind == "cidr")

    def winner(self, rule: Rule) -> str | None:
        """Return what denies each client that a rule matches."""
        if (cover := self._rules.find_covering(rule)) is not None:
            return f"deny {cover}, {self._places.get(cover, cover)}, wins"
        if rule.kind == "cidr" and self._union.find_covering(rule.value) is not None:
            return "several networks of deny, which have all its addresses, win"
        return None


def _union(networks: Iterable[Network]) -> NetworkSet:
    """Return the same addresses in as few networks as possible: two halves are one."""
    every = list(networks)
    four = ipaddress.collapse_addresses(
        ipaddress.IPv4Network((number, prefix)) for version, prefix, number in every if version == 4
    )
    six = ipaddress.collapse_addresses(
        ipaddress.IPv6Network((number, prefix)) for version, prefix, number in every if version == 6
    )
    return NetworkSet([*map(_network, four), *map(_network, six)])


def _network(found: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Network:
    return Network(found.version, found.prefixlen, int(found.network_address))


def _useless(
    placed: Sequence[tuple[Place, Rule]],
    kinds: frozenset[str],
    known: Known,
    denials: _Denials | None,
) -> Iterator[Useless]:
    rules = RuleSet(rule for _, rule in placed)
    first: dict[str, Place] = {}
    for place, rule in placed:
        first.setdefault(rule.text, place)
    seen = set()
    for place, rule in placed:
        if (misplaced := _misplaced(place, rule, kinds, known)) is not None:
            yield misplaced
        elif known.are_local and rule.kind == "user" and not is_user(rule.value):
            yield Useless(place, rule.text, "this machine has no such user", "correct it, or leave it out")
        elif rule.text in seen:
            yield Useless(place, rule.text, f"it is there already, {first[rule.text]}", "leave it out")
        elif denials is not None and (winner := denials.winner(rule)) is not None:
            yield Useless(place, rule.text, winner, "remove one of them")
        elif (cover := rules.find_wider(rule)) is not None:
            yield Useless(place, rule.text, f"{cover}, {first.get(cover, cover)}, is wider", "leave it out")
        seen.add(rule.text)


def _misplaced(place: Place, rule: Rule, kinds: frozenset[str], known: Known) -> Useless | None:
    """Return a rule that cannot match because of the kind of the listener; ``None`` for any other."""
    if rule.kind not in kinds:
        reason = f"{rule.kind}: rules match no client of this listener"
        if rule.kind == "cidr" and place.option == "allow" and "ssh" in kinds:
            reason = "the addresses that an SSH server reports are not verified"
        return Useless(place, rule.text, reason, f"it needs {_NEEDS[rule.kind]}", is_misplaced=True)
    mismatch = _mismatch(rule, known)
    return None if mismatch is None else Useless(place, rule.text, *mismatch, is_misplaced=True)


def _mismatch(rule: Rule, known: Known) -> tuple[str, str] | None:
    """Return why a rule cannot match these clients, and what to do; ``None`` if it can."""
    if rule.kind == "login" and known.user not in (None, rule.value):
        return f"the only user who can log in is {shown(str(known.user))}", "correct one of them"
    if rule.kind == "cidr" and known.version not in (None, rule.value.version):
        return f"all clients of this listener have addresses of IPv{known.version}", "leave it out, or listen on [::]"
    if rule.kind == "cidr" and known.has_loopback and not rule.value.has_loopback:
        return "all clients of this listener have addresses of the loopback", "leave it out, or listen elsewhere"
    return None


def rules_in(entries: Entries, option: str, *, files: bool = True) -> Iterator[tuple[Place, Rule]]:
    """Return each rule of a list with its place.

    :param entries: the list.
    :param option: ``allow`` or ``deny``.
    :param files: whether to read those of files, too.
    :raises ValueError: if an entry is wrong.
    :raises OSError: if a file cannot be read.
    """
    for number, found in enumerate(parse_entries(entries, option)):
        if isinstance(found, Rule):
            yield Place(option, number), found
        elif files:
            with open_regular(found) as file:
                lines = file.readlines()
            for line, rule in read_rules(found, lines):
                yield Place(option, number, f"{found}, line {line}"), rule
