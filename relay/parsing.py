"""Addresses as text: ``tls://db.internal:5432?ca=db.pem`` and the like become the values of :mod:`relay.address`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from .address import (
    LISTEN_PARAMETERS,
    SSH_PARAMETERS,
    TARGET_PARAMETERS,
    Listen,
    SSHListen,
    SSHServer,
    Target,
    TCPAddress,
    TLSListen,
    TLSTarget,
    UnixAddress,
    is_i2p,
)
from .i2paddress import I2PListen, I2PTarget
from .i2preading import read_i2p_listen, read_i2p_target
from .reading import KNOWN, AddressReader

__all__ = ["parse_elsewhere", "parse_hop", "parse_hops", "parse_listen", "parse_ssh_server", "parse_target"]

_CHOICES = {"accept_new": ("yes", "no"), "compress": ("yes", "no"), "backend": ("paramiko", "openssh")}
_I2P = re.compile(r"i2p:?(\?.*)?", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def parse_target(text: str) -> Target | I2PTarget:
    """Read the address of something to connect to.

    :param text: ``host:port``, ``tcp://host:port``, ``unix:///path``,
        ``tls://host:port?servername=…&ca=…&cert=…&key=…`` or ``i2p://NAME[:port]?sam=…&session=…&keys=…&in_depth=…&``
        ``out_depth=…&user=…&password_file=…&password_env=…&inbound.quantity=…`` (any ``i2cp.``, ``inbound.`` and
        ``outbound.`` option); IPv6 in brackets. ``NAME`` ends in ``.i2p``, and then ``i2p://`` may be left out, or is a
        destination in base64. ``sam`` is ``host:port`` or ``tls://host:port?ca=…``, an ``&`` in it written ``%26``.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Target(text, "target").read()


def parse_listen(text: str) -> Listen | I2PListen:
    """Read an address to listen at: on the loopback unless another host is written out.

    :param text: ``:port``, ``port``, ``host:port``, ``tcp://host:port``, ``unix:///path``,
        ``tls://host:port?cert=…&key=…&client_ca=…``, ``ssh://[user@]host[:port]?listen=…`` with ``HOST:PORT``,
        ``PORT`` or ``/PATH`` of the server (``127.0.0.1:0`` unless it is given) and the parameters of
        :func:`parse_hop`, or ``i2p:`` (``i2p`` and ``i2p://`` are the same) with the parameters of an ``i2p://`` target
        and ``accept=accept`` or ``accept=forward``, ``allow=…`` and ``deny=…``, which may be repeated; IPv6 in
        brackets, port 0 for any that is free.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Listen(text, "listen address").read()


def parse_elsewhere(text: str, what: str) -> SSHListen | I2PListen:
    """Read an address to listen at that is not on this machine.

    :param text: ``ssh://[user@]host[:port]?listen=…`` or ``i2p:``, as in :func:`parse_listen`.
    :param what: what it is for, in errors.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Elsewhere(text, what).read()


def parse_hop(text: str) -> SSHServer:
    """Read the address of a hop, something that other streams lead through.

    :param text: ``ssh://[user@]host[:port]?backend=…&keyfile=…&passphrase_file=…&passphrase_env=…&password_file=…&``
        ``password_env=…&known_hosts=…&config=…&hostkey=SHA256:…&accept_new=yes&keepalive=15&compress=yes``; IPv6 in
        brackets. ``keepalive`` may be ``none``. ``ssh://user:password@host``, ``password=`` and ``passphrase=`` hold a
        secret as text, percent-encoded. A ``+`` is a plus sign.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Hop(text, "hop").read()


def parse_hops(via: Sequence[str]) -> tuple[SSHServer, ...]:
    """Read a chain of hops, the nearest first; an error tells which one it is about.

    :raises AddressError: if one cannot be understood.
    :raises TypeError: if ``via`` is not a list of ``str``.
    """
    if isinstance(via, str) or not isinstance(via, Sequence):
        raise TypeError(f"via: a list of addresses is wanted, not {type(via).__name__}")
    count = len(via)
    whats = [f"hop {number} of {count}" if count > 1 else "hop" for number in range(1, count + 1)]
    return tuple(_Hop(text, what).read() for text, what in zip(via, whats, strict=True))


def parse_ssh_server(text: str) -> SSHServer:
    """Read an SSH server as people name it.

    :param text: ``[user@]host[:port]``, an alias of the user's SSH configuration, or what :func:`parse_hop` takes.
    :returns: the server as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Server(text, "server").read()


class _SSHReader(AddressReader):
    """An address with an SSH server in it."""

    i2p_names = "i2p: as a hop, on the way to such a server, is not available in this version"

    def server(self, user: str | None, place: str, options: dict[str, Any]) -> SSHServer:
        """An SSH server of its parts; the value itself checks them."""
        if "/" in place or "#" in place:
            self.fail("something follows the host", "parameters begin with a question mark: ssh://host?keyfile=FILE")
        host, colon, port = self.ssh_place(place)
        if not host:
            self.fail("the host is empty", "write it out: ssh://user@host")
        self.refuse_i2p(host)
        number = self.port(port, 1) if colon else None
        try:
            return SSHServer(host, user, number, **options)
        except ValueError as error:
            problem, _, allowed = str(error).partition("; ")
            self.fail(f"{problem.partition(':')[0]}: that cannot be one" if self.hidden else problem, allowed)

    def ssh_place(self, place: str) -> tuple[str, str, str]:
        if not place.startswith("["):
            host, colon, port = place.partition(":")
            if ":" in port:
                self.fail("too many colons", "an IPv6 address is written in brackets: [::1]:22")
            return self.ascii(host), colon, port
        host, bracket, port = place[1:].partition("]")
        if not bracket or not host or (port and not port.startswith(":")):
            self.fail("a broken IPv6 address", "an IPv6 address is written [::1] or [::1]:22")
        return self.ipv6(host, encoded=False), port[:1], port[1:]

    def ssh_url(self, rest: str, more: tuple[str, ...] = ()) -> tuple[SSHServer, dict[str, str]]:
        """Read what follows ``ssh://``.

        :param more: the names of further parameters, whose values are returned as they are.
        """
        place, _, query = rest.partition("?")
        given = self.parameters("ssh://", query, (*SSH_PARAMETERS, *more))
        others = {name: given.pop(name) for name in more if name in given}
        user, sign, place = place.rpartition("@")
        user, colon, password = user.partition(":")
        if sign and not user:
            self.fail("the user is empty", "write it before the @, or leave both out")
        if colon:
            if "password" in given or not password:
                self.fail("a password that is empty or given twice", "give one, or leave the colon out")
            given["password"] = self.decoded(password)
        return self.server(self.decoded(user) or None, place, self.ssh_options(given)), others

    def ssh_options(self, given: dict[str, str]) -> dict[str, Any]:
        """Give parameters the types of the fields that they stand for."""
        options: dict[str, Any] = dict(given)
        for name, choices in _CHOICES.items():
            if name in given:
                if given[name] not in choices:
                    self.fail(f"{name}={self.part(given[name])}", f"{' and '.join(choices)} are allowed")
                if "yes" in choices:
                    options[name] = given[name] == "yes"
        if "keepalive" in given:
            options["keepalive"] = self.seconds("keepalive", given["keepalive"])
        return options

    def seconds(self, name: str, text: str) -> float | None:
        if text == "none":
            return None
        if not _SECONDS.fullmatch(text) or float(text) <= 0:
            self.fail(f"{name}={self.part(text)}", "a number of seconds above 0 is allowed, or none")
        return float(text)


class _Target(AddressReader):
    schemes = ("tcp", "tls", "unix", "i2p")
    forms = "allowed are host:port, tcp://host:port, unix:///path, tls://host:port and i2p://name.i2p"

    def unknown(self, scheme: str) -> NoReturn:
        if scheme == "ssh":
            use = "it leads to one: give it as --via ssh://host (via=[…] in Python), and as the target what is behind"
            self.fail("ssh:// is a hop, not a target", use)
        super().unknown(scheme)

    def read(self) -> Target | I2PTarget:
        scheme, rest = self.split()
        if scheme == "unix":
            return UnixAddress(self.path(rest))
        if scheme == "i2p" or (not scheme and is_i2p(rest.partition("?")[0].partition(":")[0])):
            return read_i2p_target(self, rest)
        host, port, query = self.place(scheme, rest)
        if scheme != "tls":
            self.parameters("tcp://", query, ())
            return TCPAddress(host, port)
        given = self.parameters("tls://", query, TARGET_PARAMETERS)
        if "servername" in given:
            given["servername"] = self.host(given["servername"])
        if "key" in given and "cert" not in given:
            self.fail("key= without cert=", "a client certificate is cert=FILE, and key=FILE if its key is elsewhere")
        return TLSTarget(host, port, **given)


class _Listen(_SSHReader):
    schemes: tuple[str, ...] = ("tcp", "tls", "unix", "ssh", "i2p")
    forms = "allowed are :port, host:port, unix:///path, tls://host:port, ssh://user@host?listen=host:port and i2p:"
    i2p_names = "nobody listens there but the owner of its keys; i2p: listens at I2P"
    least_port = 0

    def plain(self) -> tuple[str, str]:
        found = _I2P.fullmatch(self.text) if "i2p" in self.schemes else None
        return super().plain() if found is None else ("i2p", found[1] or "")

    def without_host(self, port: str) -> str:
        return "127.0.0.1"

    def read(self) -> Listen | I2PListen:
        if self.text.isascii() and self.text.isdigit():
            return TCPAddress("127.0.0.1", self.port(self.text))
        scheme, rest = self.split()
        if scheme == "unix":
            return UnixAddress(self.path(rest))
        if scheme == "ssh":
            return self.reverse(rest)
        if scheme == "i2p":
            return read_i2p_listen(self, rest)
        host, port, query = self.place(scheme, rest)
        if scheme != "tls":
            self.parameters("tcp://", query, ())
            return TCPAddress(host, port)
        given = self.parameters("tls://", query, LISTEN_PARAMETERS)
        if "cert" not in given:
            self.fail(
                "no certificate", "a TLS listener needs tls://host:port?cert=FILE, and key=FILE if it is elsewhere"
            )
        return TLSListen(host, port, **given)

    def reverse(self, rest: str) -> SSHListen:
        server, given = self.ssh_url(rest, ("listen",))
        if not given:
            return SSHListen(server)
        return SSHListen(server, _Place(given["listen"], "listen=", hidden=self.hidden).read())


class _Elsewhere(_Listen):
    """An address to listen at where only one that is not on this machine will do."""

    example = "ssh://server"
    schemes = ("ssh", "i2p")
    forms = (
        "allowed are i2p: and ssh://[user@]host[:port], with ?listen=HOST:PORT or ?listen=/PATH for where it listens"
    )

    def unknown(self, scheme: str) -> NoReturn:
        if scheme in KNOWN:
            self.fail(f"{scheme}:// is on this machine, where relay forward listens", self.forms)
        super().unknown(scheme)

    def read(self) -> SSHListen | I2PListen:
        scheme, rest = self.split()
        if not scheme:
            self.fail("it has no scheme", self.forms)
        return self.reverse(rest) if scheme == "ssh" else read_i2p_listen(self, rest)


class _Place(_Listen):
    """Where an SSH server listens for us."""

    schemes = ("tcp", "unix")
    forms = "allowed are host:port, port, /path and unix:///path"

    def read(self) -> TCPAddress | UnixAddress:
        if self.text.startswith("/"):
            return UnixAddress(self.socket_path(self.text))
        place = super().read()
        assert isinstance(place, (TCPAddress, UnixAddress))
        return place


class _Hop(_SSHReader):
    example = "ssh://bastion"
    schemes = ("ssh",)
    forms = "a hop is ssh://[user@]host[:port]"

    def plain(self) -> tuple[str, str]:
        scheme, colon, port = self.text.lower().partition(":")
        if scheme == "i2p" and colon and not port.isdigit():
            self.unknown("i2p")
        return super().plain()

    def unknown(self, scheme: str) -> NoReturn:
        if scheme == "i2p":
            use = "a target i2p://NAME.i2p needs none, and over ssh:// hops the router behind them is asked"
            self.fail("i2p: as a hop is not available in this version", use)
        if scheme in KNOWN:
            self.fail(f"{scheme}:// is a target, not a hop", f"only the last address of a way is one; {self.forms}")
        super().unknown(scheme)

    def read(self) -> SSHServer:
        scheme, rest = self.split()
        return self.ssh_url(rest)[0] if scheme else self.bare(rest)

    def bare(self, text: str) -> SSHServer:
        self.fail("it has no scheme", self.forms)


class _Server(_Hop):
    example = "user@host"
    forms = "allowed are [user@]host[:port], an alias of the SSH configuration and ssh://[user@]host[:port]"

    def bare(self, text: str) -> SSHServer:
        user, sign, place = text.rpartition("@")
        if "?" in text or ":" in user:
            self.fail("a parameter or a password", "only the form with ssh:// has them")
        if sign and not user:
            self.fail("the user is empty", "write it before the @, or leave both out")
        return self.server(user or None, place, {})
