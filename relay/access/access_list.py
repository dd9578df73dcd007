"""Access lists: which clients are allowed or denied, by rules and by files of rules."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence

from ..streams.identity import Identity
from .policy import Decision, Entries
from .rule_file import RuleFile
from .rule_set import RuleSet
from .rules import Rule, parse_entry

logger = logging.getLogger("relay")

_MOST_KNOWN = 4096  # addresses about which the decision is remembered
_ONLY_ADDRESS = Identity("tcp", "")[4:]  # beside its address, a client of which only that is known
_EXPECTED = "expected a rule such as cidr:10.0.0.0/8, or a file of rules"


class EntryError(ValueError):
    """An entry of a list that is neither a rule nor a valid file.

    :param option: ``allow`` or ``deny``.
    :param entry: as it was given.
    :param problem: what is wrong with it.
    """

    def __init__(self, option: str, entry: str | os.PathLike[str], problem: str) -> None:
        super().__init__(option, entry, problem)
        self.option = option
        self.entry = entry
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.option}: {self.problem}"


class AccessList:
    """The rules that a client of a tunnel must meet; ``deny`` takes precedence. True if there is any list.

    :mod:`relay.access.rules` has the grammar of entries. A file is read again when it has changed. If it cannot be
    read, if others can write to it, or if it has an invalid line, the previous content stays in force, with a warning.
    So replace a file by a rename, never by writing to it. Any thread may use the list.

    :param allow: rules of clients that are allowed; ``None`` for all, an empty list for none.
    :param deny: rules of clients that are denied.
    :raises TypeError: if an entry has the wrong type.
    :raises EntryError: if an entry is neither a rule nor a file, or a file is invalid; the error names file and line.
    """

    def __init__(self, allow: Entries = None, deny: Entries = None) -> None:
        self._has_allow = allow is not None
        self._allow, files = _sources(allow, "allow")
        self._deny, more = _sources(deny, "deny")
        self._files = (*files, *more)
        self._known: dict[str | None, Decision] = {}  # about clients that are only an address, if no file can change it
        self.files = tuple(file.path for file in self._files)
        """The absolute paths of its files."""

    def __bool__(self) -> bool:
        return self._has_allow or bool(self._deny)

    def refresh(self, name: str) -> None:
        """Read the files that have changed; may block.

        :param name: of the tunnel or the listener, for the log.
        """
        could_deny = self._has_denials()
        for file in self._files:
            file.refresh(name)
        if could_deny and not self._has_denials():  # perhaps the program that writes the file has failed
            logger.warning("%s: deny: no rule is left in its files; it denies no client now", name)

    def _has_denials(self) -> bool:
        return any(source.rules for source in self._deny)

    def decide(self, identity: Identity | None) -> Decision:
        """Decide about a client by the rules as they were read last. Does not block.

        :param identity: who the client is; ``None`` if nothing is known, which any list denies.
        """
        if identity is None:
            return Decision(not self, "unknown" if self else "")
        # Only a decision that nothing but the address decides may be remembered by the address: a client of the same
        # address may have a certificate, a login, or an address that is only claimed.
        if self._files or identity.kind != "tcp" or identity[4:] != _ONLY_ADDRESS:
            return self._find(identity)
        decision = self._known.get(identity.host)
        if decision is None:
            # All at once: an order of use would cost each client more than a new decision now and then.
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            decision = self._known[identity.host] = self._find(identity)
        return decision

    def _find(self, identity: Identity) -> Decision:
        # An address that another party only reports counts for `deny` and not for `allow`: who lies about it may lock
        # itself out, and must not let itself in.
        for source in self._deny:
            text = source.rules.find(identity, also_unverified=True)
            if text is not None:
                return Decision(False, f"deny {text}")
        if not self._has_allow:
            return Decision(True)
        for source in self._allow:
            text = source.rules.find(identity, also_unverified=False)
            if text is not None:
                return Decision(True, f"allow {text}")
        return Decision(False, "allow")

    def decide_by_address(self, identity: Identity) -> Decision:
        """Decide about a client of which only the address is known yet. Does not block.

        :param identity: who the client is before its handshake.
        :returns: that it is denied, only if :meth:`decide` denies it whatever its certificate has.
        """
        if (decision := self.decide(identity)).rule != "allow":
            return decision
        # A rule about certificates may still let it in after its handshake.
        return Decision(not all(source.rules.has_only_networks for source in self._allow), "allow")


class _Fixed:
    """The rules that are no files."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = RuleSet(rules)


def _sources(given: Entries, name: str) -> tuple[list[_Fixed | RuleFile], list[RuleFile]]:
    """Return the sources of the rules of a list, and those of them that are files."""
    rules, files = list[Rule](), list[RuleFile]()
    entries = _listed(given)
    for entry, found in zip(entries, parse_entries(entries, name), strict=True):
        if isinstance(found, Rule):
            rules.append(found)
            continue
        try:
            files.append(RuleFile(found))
        except ValueError as error:
            raise EntryError(name, entry, str(error)) from None
    return [*([_Fixed(rules)] if rules else []), *files], files


def _listed(given: Entries) -> Sequence[str | os.PathLike[str]]:
    if given is None:
        return ()
    return (given,) if isinstance(given, (str, os.PathLike)) else tuple(given)


def parse_entries(given: Entries, name: str) -> Iterator[Rule | str]:
    """Parse the entries of an option.

    :param given: the entries, or a single one.
    :param name: of the option, for errors.
    :returns: a rule or the absolute path of a file for each.
    :raises TypeError: if one has the wrong type.
    :raises EntryError: if one is neither.
    """
    for entry in _listed(given):
        if isinstance(entry, os.PathLike):
            yield os.path.abspath(os.path.expanduser(os.fspath(entry)))
        elif isinstance(entry, str):
            try:
                yield parse_entry(entry)
            except ValueError as error:
                raise EntryError(name, entry, str(error)) from None
        else:
            raise TypeError(f"{name}: {_EXPECTED}, got {type(entry).__name__}")
