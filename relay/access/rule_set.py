"""Rules in the form in which the one that matches a client is found fast, also among 100,000."""

from __future__ import annotations

import pwd
from collections.abc import Iterable

from ..streams.identity import Identity
from .networks import NetworkSet
from .patterns import PatternSet, dns_segments, uri_segments
from .rules import Rule, server_names


class RuleSet:
    """Rules of one list, indexed by their kind. It does not change.

    :param rules: in any order; a user by number gets the name that the user has now, and one by name the number.
    """

    __slots__ = ("_count", "_has_networks", "networks", "dns", "uri", "_texts", "_kinds")

    def __init__(self, rules: Iterable[Rule]) -> None:
        by_kind: dict[str, list[Rule]] = {}
        for rule in rules:
            by_kind.setdefault(rule.kind, []).append(rule)
        self._count = sum(map(len, by_kind.values()))
        self.networks = NetworkSet(rule.value for rule in by_kind.pop("cidr", ()))
        self._has_networks = bool(self.networks)
        self.dns = PatternSet(0, ((rule.text, rule.value) for rule in by_kind.pop("dns", ())))
        self.uri = PatternSet(2, ((rule.text, rule.value) for rule in by_kind.pop("uri", ())))
        self._texts = {(kind, rule.value): rule.text for kind, found in by_kind.items() for rule in found}
        for rule in by_kind.get("user", ()):
            # Looked up now, where it may block, and not for each client in the relay thread.
            for name in _names_of(rule.value):
                self._texts.setdefault(("user", name), rule.text)
        self._kinds = frozenset(by_kind)

    def __len__(self) -> int:
        """Return the number of the rules that were given."""
        return self._count

    @property
    def has_only_networks(self) -> bool:
        """True if it depends on nothing but the address of a client whether a rule matches."""
        return not (self._kinds or self.dns or self.uri)

    def find(self, identity: Identity, *, also_unverified: bool) -> str | None:
        """Return the text of a rule that matches a client; ``None`` if there is none.

        :param identity: who the client is.
        :param also_unverified: whether an address counts that another party has only reported.
        """
        host = identity.host
        if host is not None and self._has_networks and (identity.is_verified or also_unverified):
            text = self.networks.find(host)
            if text is not None:
                return text
        _, _, _, _, *names, _ = identity
        if self._kinds and any(names):  # most clients have an address alone
            for key in _keys(identity, self._kinds):
                text = self._texts.get(key)
                if text is not None:
                    return text
        certificate = identity.certificate
        if certificate is not None:
            for name in certificate.dns if self.dns else ():
                if text := self.dns.find(dns_segments(name)):
                    return text
            for uri in certificate.uri if self.uri else ():
                if text := self.uri.find(uri_segments(uri)):
                    return text
        return None

    def find_wider(self, rule: Rule) -> str | None:
        """Return the text of another rule of the set that matches every client of a rule, which is of the set too."""
        if rule.kind == "cidr":
            return self.networks.find_wider(rule.value)
        patterns = self._patterns_of(rule)
        return None if patterns is None else patterns.find_wider(rule.value)

    def find_covering(self, rule: Rule) -> str | None:
        """Return the text of a rule of the set that matches every client of a rule; it may be the same one."""
        if rule.kind == "cidr":
            return self.networks.find_covering(rule.value)
        patterns = self._patterns_of(rule)
        return self._texts.get((rule.kind, rule.value)) if patterns is None else patterns.find_covering(rule.value)

    def _patterns_of(self, rule: Rule) -> PatternSet | None:
        return {"dns": self.dns, "uri": self.uri}.get(rule.kind)


def _keys(identity: Identity, kinds: frozenset[str]) -> Iterable[tuple[str, str | None]]:
    """Return what the rules of these kinds compare."""
    if "user" in kinds:
        yield "user", identity.user
    if "login" in kinds:
        yield "login", identity.login
    if "i2p" in kinds:
        yield "i2p", identity.destination
    if "ssh" in kinds and identity.server is not None:
        for name in server_names(identity.server):
            yield "ssh", name
    if identity.certificate is not None:
        yield "cn", identity.certificate.common_name
        yield "spki", identity.certificate.spki


def _names_of(user: str) -> Iterable[str]:
    """Return the name of a user who is given by number, or the number, which a client has if its name is not found."""
    try:
        yield pwd.getpwuid(int(user)).pw_name if user.isdigit() else str(pwd.getpwnam(user).pw_uid)
    except (KeyError, OverflowError, ValueError):
        pass
