"""Checks of a file of tunnels beyond the types of its keys; the addresses become values here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..access.rules import is_written_as_rule
from ..access.rules import parse_rule as parse_rule_of_clients
from ..access.senders import NO_HEADERS, Senders
from ..addresses.hops import (
    AT_PORT,
    UNASKED,
    Command,
    Listen,
    ProxyListen,
    Route,
    check_route,
    listens_at_server,
    owner_of_keys,
)
from ..addresses.hops import Hop as HopValue
from ..addresses.i2p import Bridges, I2PListen, I2PRouter, I2PTarget
from ..addresses.i2p_parser import parse_sam
from ..addresses.mptcp import with_mptcp
from ..addresses.options import inline_secrets
from ..addresses.parse import parse_hop, parse_hops, parse_listen, parse_target
from ..addresses.printable import shown
from ..addresses.redact import is_program, redact
from ..addresses.resume import ResumeListen, place_of
from ..addresses.ssh import SSHListen
from ..addresses.values import ListenAtPort, SystemdListen, Target, TCPAddress, UnixAddress
from ..transports.dynamic import Rule, parse_rule, split_target
from .lines import Path
from .listen_conflicts import ListenTable
from .models import INHERITED, LISTS, Defaults, File, Hop, Tunnel, hop_options
from .problems import Problems, misplaced, near

Value = TypeVar("Value")

ANYWHERE = "anywhere"  # the target of a proxy: each client requests its own
_OF_A_PROXY = ("rule", "user", "password", "password_file", "password_env")
_PROXIES = ("socks5", "http", "https", *UNASKED)  # the schemes of listeners that are proxies only
_OF_A_DESTINATION = ("keys", "session", "transient")
_NOT_HOPS = ("direct", "refuse")  # the words of a rule that are not hops

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tunnel of a file, with its addresses as values.

    :param name: its name.
    :param tunnel: its table, with the defaults.
    :param listen: the address to listen on.
    :param target: the address to connect to; ``None`` for a proxy.
    :param via: the hops to the target.
    :param listen_via: the hops to where it listens.
    :param rules: the rules of a proxy.
    :param bridges: the SAM bridges for its addresses of I2P; ``None`` for those of each address.
    :param is_proxy: whether its clients name their targets.
    :param others: further targets and routes: the hops to each, and the target.
    :param resumes: whether it is a resume server, at ``listen``.

    If the file has problems with the tunnel, the values may be missing.
    """

    name: str
    tunnel: Tunnel
    listen: Listen | None
    target: Target | I2PTarget | Command | None
    via: Route
    listen_via: Route
    rules: tuple[Rule, ...]
    bridges: Bridges | None
    is_proxy: bool
    others: tuple[tuple[Route, Target | I2PTarget | Command], ...] = ()
    resumes: bool = False


class Checker:
    """The check of a file whose keys have the right types.

    :param file: the tables; those without it are left out.
    :param problems: takes what is wrong.
    :param no_secrets: why there may be no secrets in it; empty if there may.
    :param listen: the address to listen on of the only tunnel, if it is parsed already.
    :param same: the tunnels that have been checked before.
    """

    def __init__(
        self,
        file: File,
        problems: Problems,
        no_secrets: str,
        listen: Listen | None = None,
        same: Mapping[str, Entry] | None = None,
    ) -> None:
        self.file = file
        self.problems = problems
        self.hops: dict[str, HopValue] = {}
        self.listen = listen
        self.bridges: Bridges | None = None
        self._listens = ListenTable()
        self._no_secrets = no_secrets
        self._same = same or {}

    def entries(self) -> list[Entry]:
        """Check the file.

        :returns: the tunnels, in the order of the file.
        """
        for name, hop in self.file.hops.items():
            self._check_hop(name, hop)
        if self.file.defaults.sam is not None:
            self.bridges = self.read(("defaults", "sam"), parse_sam, self.file.defaults.sam)
        # Here once, because the tunnels without lists of their own get these only later, when they are settled.
        self.check_rules(("defaults",), self.file.defaults)
        return [self._entry(name, tunnel) for name, tunnel in self.file.tunnels.items()]

    def _entry(self, name: str, tunnel: Tunnel) -> Entry:
        same = self._same.get(name)
        if same is None:
            return _One(self, name, tunnel).entry()
        # What was checked before needs no check, but its address must be claimed: a new tunnel may want the same one.
        self.claim(same.listen, name, tunnel)
        return same

    def claim(self, listen: Listen | None, name: str, tunnel: Tunnel) -> None:
        """Reject an address to listen on that another tunnel has."""
        other = self._listens.claim(listen, name, tunnel)
        if other is not None:
            line = self.problems.line(("tunnels", other, "listen"))
            where = f", line {line}" if line else ""
            self.problems.add(("tunnels", name, "listen"), f"{other} listens there already{where}")

    def check_rules(self, path: Path, table: Defaults) -> None:
        """Check the access rules of a table."""
        for name in LISTS:
            for number, entry in enumerate(getattr(table, name) or ()):
                if is_written_as_rule(entry):  # else the start of the tunnel looks for a file
                    self.read((*path, name, number), parse_rule_of_clients, entry)

    def _check_hop(self, name: str, hop: str | Hop) -> None:
        path = ("hops", name)
        self.check_name(path)
        if name in _NOT_HOPS:
            self.problems.add(path, f"a hop cannot be called {name}, which means something else in a rule")
        if isinstance(hop, Hop) and is_program(hop.address) and hop.model_dump(exclude_none=True).keys() > {"address"}:
            scheme = hop.address.lower().removeprefix("resume:")[:4]
            self.problems.add(path, f"{scheme}: takes no parameters; the command has all that it needs")
            return
        address, given = (hop.address, hop_options(hop)) if isinstance(hop, Hop) else (hop, {})
        value = self.read(path, parse_hop, address, given)
        if value is not None:
            self.hops[name] = value
            self.check_secrets(path, [value])
        elif text := misplaced(path, File.model_fields):
            self.problems.add(path, text)

    def check_name(self, path: Path) -> None:
        """Reject a name that does not fit into a log line."""
        if not _NAME.fullmatch(str(path[-1])):
            self.problems.add(path, "that is no name; one has up to 64 letters, digits, dots, - and _")

    def check_secrets(self, path: Path, values: Iterable[object]) -> None:
        """Reject secrets in addresses if others can read them."""
        for name in dict.fromkeys(name for value in values for name in inline_secrets(value)):
            self.check_secret(path, name)

    def check_secret(self, path: Path, name: str) -> None:
        """Reject a secret if others can read it."""
        if self._no_secrets:
            allowed = f"{name}_file and {name}_env tell where it is"
            self.problems.add(path, f"a {name} is written there, and {self._no_secrets}; {allowed}")

    def read(self, path: Path, parse: Callable[..., Value], *arguments: Any) -> Value | None:
        """Return the value of a text; ``None`` if it cannot be parsed, which adds a problem."""
        try:
            return parse(*arguments)
        except ValueError as error:
            self.problems.add(path, str(error))
        except OSError:
            pass  # a file that it names: the start of the tunnel reports it
        return None

    def is_known(self, path: Path, word: str) -> bool:
        """Return whether a word is a hop, by its name or as an address; otherwise add a problem."""
        if word in self.hops:
            return not self.problems.about("hops", word)
        if self.problems.about("hops", word):
            return False
        # An address has a scheme, and no name of a hop has a colon.
        if ":" in word or word.lower() in ("i2p", "tor"):
            return True
        names = self.file.hops
        known = f"[hops] has {', '.join(names)}, and an address has a scheme" if names else "there are none in [hops]"
        self.problems.add(path, f"there is no hop '{shown(word)}'{near(word, names)}; {known}")
        return False


class _One:
    """The check of one tunnel."""

    def __init__(self, checker: Checker, name: str, tunnel: Tunnel) -> None:
        self._checker = checker
        self._problems = checker.problems
        self._name = name
        self._path = ("tunnels", name)
        self._tunnel = tunnel
        self._listen = checker.listen or checker.read((*self._path, "listen"), parse_listen, tunnel.listen)
        self._resumes = isinstance(self._listen, ResumeListen)
        if isinstance(self._listen, ResumeListen):
            self._listen = self._listen.place
        # A proxy whose address has a mistake is still one: else the missing target would be reported as a second
        # mistake.
        is_wrong_proxy = self._listen is None and str(tunnel.listen).partition("://")[0] in _PROXIES
        is_proxy = isinstance(self._listen, ProxyListen) or self._resumes or is_wrong_proxy
        self._is_proxy = is_proxy or tunnel.target == ANYWHERE

    def entry(self) -> Entry:
        """Check the tunnel."""
        tunnel, read = self._tunnel, self._checker.read
        self._checker.check_name(self._path)
        before = self._route((*self._path, "listen_via"), tunnel.listen_via or (), tunnel.listen)
        if before and (server := self._server()) is not None:
            read((*self._path, "listen_via"), check_route, before, server)
        routed = self._routed()
        if tunnel.mptcp and self._listen is not None and not self._is_proxy:
            found = read((*self._path, "mptcp"), with_mptcp, self._listen, routed)
            self._listen, routed = found or (self._listen, routed)
        (route, place), *others = routed
        self._check_listen()
        self._check_words()
        read_rules = (self._rule(number, rule) for number, rule in enumerate(tunnel.rule or ()))
        rules = tuple(rule for rule in read_rules if rule is not None)
        is_i2p = any(
            isinstance(one, I2PListen | I2PTarget | I2PRouter)
            for one in map(
                place_of, (self._listen, *before, place, *route, *(one for hops, end in others for one in (*hops, end)))
            )
        )
        uses_i2p = is_i2p or self._is_proxy
        bridges = self._bridges(uses_i2p=uses_i2p)
        settled = self._with_defaults(uses_i2p=uses_i2p)
        further = tuple((hops, end) for hops, end in others if end is not None)
        return Entry(
            self._name,
            settled,
            self._listen,
            place,
            route,
            before,
            rules,
            bridges,
            self._is_proxy,
            further,
            self._resumes,
        )

    def _refuse(self, name: str, text: str) -> None:
        self._problems.add((*self._path, name), text)

    def _routed(self) -> list[tuple[Route, Target | I2PTarget | Command | None]]:
        """Return the hops to each target, and the target: at least one, each target by each route."""
        tunnel, path = self._tunnel, self._path
        texts: list[tuple[Path, str | None]] = [((*path, "target"), tunnel.target)]  # type: ignore[list-item]
        if isinstance(tunnel.target, list):
            texts = [((*path, "target", number), text) for number, text in enumerate(tunnel.target)]
        routes: list[tuple[Path, Sequence[Any]]] = [((*path, "via"), tunnel.via or ())]
        if tunnel.via and isinstance(tunnel.via[0], list):
            routes = [((*path, "via", number), words) for number, words in enumerate(tunnel.via)]
        if self._is_proxy and len(routes) > 1:
            self._refuse("via", "a proxy has one route to each target; use rule for several")
        if tunnel.policy is not None and len(texts) * len(routes) < 2:
            self._refuse("policy", "there is one target and one route; a list of target or of via has several")
        found = []
        for where, text in texts:
            for via, words in routes:
                route = () if self._problems.about(*via) else self._route(via, words, text)
                place = self._target(where, text, words, route)
                end = self._somewhere(place, route)
                if route and end is not None:
                    self._checker.read(via, check_route, route, end)
                found.append((route, place))
        return found

    def _route(self, path: Path, words: Sequence[str], end: str | None) -> Route:
        """Return the hops of ``via`` or ``listen_via``; none if they have a problem."""
        known = [self._checker.is_known((*path, number), word) for number, word in enumerate(words)]
        if not all(known):
            return ()
        route = self._checker.read(path, parse_hops, words, end, self._checker.hops) or ()
        for number, (word, hop) in enumerate(zip(words, route, strict=False)):
            # A hop with a name was checked where it is written.
            if word not in self._checker.hops:
                self._checker.check_secrets((*path, number), [hop])
        return route

    def _target(
        self, path: Path, target: str | None, words: Sequence[str], route: Route
    ) -> Target | I2PTarget | Command | None:
        if self._is_proxy:
            if target not in (None, ANYWHERE):
                self._refuse(
                    "target", f"the clients of a proxy name their targets themselves; leave it out, or {ANYWHERE}"
                )
            return None
        if target is None:
            schemes = "socks5://, http://, https://, sni:// or redirect://"
            proxies = f"a proxy has none: it listens at {schemes}, or target is '{ANYWHERE}'"
            self._problems.add(self._path, f"there is no target, which it needs; {proxies}")
            return None
        if words and not route:
            return None  # the hops are wrong, and they decide what is allowed
        place = self._checker.read(path, parse_target, target, route[-1] if route else None)
        self._checker.check_secrets(path, [place])
        return place

    def _server(self) -> object:
        """Return the server or router on which it listens; ``None`` for this machine."""
        if isinstance(self._listen, SSHListen):
            return self._listen.server
        return self._listen.router if isinstance(self._listen, I2PListen) else None

    def _somewhere(self, place: object, route: Route) -> object:
        """Return the address after the last hop; for a proxy, one that its hops can lead to."""
        if not self._is_proxy or not route:
            return place
        return TCPAddress("somewhere.i2p" if isinstance(route[-1], I2PRouter) else "localhost", 1)

    def _check_listen(self) -> None:
        """Check the address to listen on."""
        listen, server = self._listen, self._server()
        if listen is None:
            return
        self._checker.check_secrets((*self._path, "listen"), [listen])
        if self._tunnel.listen_via and server is None:
            self._refuse("listen_via", "it listens on this machine; hops lead to ssh:// and i2p: ones only")
        if (
            self._is_proxy
            and not self._resumes
            and not isinstance(listen, ProxyListen | TCPAddress | UnixAddress | SystemdListen | ListenAtPort)
        ):
            allowed = (
                "allowed are :port, host:port, unix:///path, socks5://host:port, http://host:port, https://host:port "
                "and wss://host:port/path"
            )
            self._refuse("listen", f"{redact(self._tunnel.listen)}: a proxy does not listen there; {allowed}")
        self._checker.claim(listen, self._name, self._tunnel)

    def _check_words(self) -> None:
        """Check the keys that only proxies and destinations have, and those that exclude each other."""
        given = {name for name in Tunnel.model_fields if getattr(self._tunnel, name) is not None}
        is_destination = self._listen is None or owner_of_keys(self._listen) is not None
        for name in _OF_A_PROXY:
            if name in given and not self._is_proxy:
                self._refuse(
                    name, "it goes with a proxy alone, at socks5://HOST:PORT, http://HOST:PORT or https://HOST:PORT"
                )
        for name in _OF_A_DESTINATION:
            if name in given and not is_destination:
                self._refuse(name, "it goes with an i2p: or tor: address of listen alone")
        self._checker.check_rules(self._path, self._tunnel)
        if self._is_proxy and self._tunnel.warm:
            self._refuse(
                "warm", "the clients of a proxy name their targets, so none can be opened before; leave it out"
            )
        for name in ("source", "send_proxy", "mptcp") if self._is_proxy else ():
            if name in given:
                what = "a proxy has none" if name == "mptcp" else "the clients of a proxy name their targets"
                self._refuse(name, f"{what}; leave it out")
        if self._tunnel.accept_proxy and listens_at_server(self._listen):
            self._refuse("accept_proxy", NO_HEADERS)
        elif self._tunnel.accept_proxy and self._listen is not None and not isinstance(self._listen, SystemdListen):
            is_unix = isinstance(self._listen, UnixAddress)
            host = self._listen.host if isinstance(self._listen, AT_PORT) else ""
            try:
                Senders(self._tunnel.accept_proxy).check(is_unix=is_unix, host=host)
            except ValueError as error:
                self._refuse("accept_proxy", str(error).removeprefix("accept_proxy: "))
        if self._tunnel.transient and given & {"keys", "session"}:
            self._refuse("transient", "a destination that is not saved has no keys and no session; leave one out")
        if self._is_proxy:
            self._check_login(given)
        if "password" in given:
            self._checker.check_secret((*self._path, "password"), "password")

    def _check_login(self, given: set[str]) -> None:
        if self._resumes and (wrong := given & {*_OF_A_PROXY[1:]}):
            self._refuse(
                min(wrong), "a resume server knows its clients without a password; leave it out, and use allow"
            )
            return
        if isinstance(self._listen, ProxyListen) and self._listen.protocol in UNASKED and given & {*_OF_A_PROXY[1:]}:
            self._refuse(
                "listen", f"the clients of {self._listen.protocol}:// cannot log in; leave user and password out"
            )
            return
        passwords = given & {"password", "password_file", "password_env"}
        if len(passwords) > 1:
            self._refuse(max(passwords), "the password is given twice; once is enough")
        if passwords and "user" not in given:
            self._refuse(min(passwords), "no user is given; a proxy needs both, or neither")
        if "user" in given and not passwords:
            self._refuse("user", "password missing; set password_file or password_env")
        if "user" in given and getattr(self._listen, "user", None):
            self._refuse("user", "listen has a user already; once is enough")

    def _rule(self, number: int, rule: str) -> Rule | None:
        path = (*self._path, "rule", number)
        route, _ = split_target(rule.partition("=")[2])
        # Names of hops have no colon, so a route with one is made of addresses, and commas in it are read by its own
        # parser.
        if ":" in route or route.lower() in _NOT_HOPS or not route:
            read = self._checker.read(path, parse_rule, rule)
            if read is not None:
                self._checker.check_secrets(path, read.route or ())
            return read
        known = [self._checker.is_known(path, word) for word in route.split(",")]
        return self._checker.read(path, parse_rule, rule, self._checker.hops) if all(known) else None

    def _bridges(self, *, uses_i2p: bool) -> Bridges | None:
        if self._tunnel.sam is None:
            return self._checker.bridges if uses_i2p else None
        if not uses_i2p:
            self._refuse("sam", "nothing of this tunnel is at I2P; i2p: and i2p://NAME.i2p are")
        return self._checker.read((*self._path, "sam"), parse_sam, self._tunnel.sam)

    def _with_defaults(self, *, uses_i2p: bool) -> Tunnel:
        own, defaults = self._tunnel, self._checker.file.defaults
        # The defaults hold for every kind of tunnel in the file; those that this one cannot have are left out, not
        # rejected.
        left_out = {*(["warm"] if self._is_proxy else []), *([] if uses_i2p else ["sam"])}
        names = [name for name in INHERITED if name not in left_out]
        return own.model_copy(update={name: getattr(defaults, name) for name in names if getattr(own, name) is None})
