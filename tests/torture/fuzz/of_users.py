"""Targets: texts and files of users."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import paramiko.config

from relay.access.limit import Limit
from relay.access.rule_file import read_rules
from relay.access.rule_set import RuleSet
from relay.access.rules import parse_entry, parse_rule
from relay.addresses import parse
from relay.addresses.destinations import PrivateKey, b32_of, check_destination, is_base64
from relay.addresses.redact import redact
from relay.addresses.ssh import SSHServer
from relay.addresses.values import SystemdListen, TCPAddress, TLSListen, TLSTarget, UnixAddress
from relay.errors import AddressError
from relay.transports.port.processes import listens_at, parent_in
from relay.transports.ssh.config import known_hosts, options
from relay.transports.ssh.config.identities import certified_key, clear_part, key_type, public_key

from .checks import FindingError, equal, file_of, one_line, one_of, pieces, rejecting, text_of

_WRITTEN = (TCPAddress, UnixAddress, TLSTarget, TLSListen, SystemdListen)  # whose text is what was parsed


def addresses(data: bytes) -> None:
    """Targets, listen addresses, hops, servers; the text of a plain one is parsed to the same value."""

    def elsewhere(text: str) -> object:
        return parse.parse_elsewhere(text, "listener")

    def chain(text: str) -> object:
        return parse.parse_hops(text.split("\n"), "example:80")

    choices = [parse.parse_target, parse.parse_listen, parse.parse_hop, parse.parse_ssh_server, elsewhere, chain]
    if not data:
        return
    text, read = text_of(data[1:]), choices[data[0] % len(choices)]
    redact(text)
    with rejecting(AddressError):
        value = read(text)
        if isinstance(value, _WRITTEN):
            equal(read(str(value)), value, f"the text of {text!r}")
        hash(value)
        repr(value)


_SECRET = "s3cr3tw0rd"
_WITH_SECRETS = (
    "ssh://user:{secret}@{rest}",
    "socks5://user:{secret}@{rest}",
    "http://{rest}:{secret}@proxy:80",
    "i2p:?password={secret}&{rest}",
    "ssh://host?{rest}&passphrase={secret}",
    "ssh://host:22?password={secret}{rest}",
    "i2p://name.i2p:80?user=a&{rest}&password={secret}",
)


def secrets(data: bytes) -> None:
    """Addresses with a password, around which anything may stand: neither an error nor the value shows it."""
    if len(data) < 2:
        return
    rest = text_of(data[2:])
    text = _WITH_SECRETS[data[0] % len(_WITH_SECRETS)].format(secret=_SECRET, rest=rest)
    reads = [parse.parse_target, parse.parse_listen, parse.parse_hop, parse.parse_ssh_server]
    said = [redact(text)]
    try:
        value = reads[data[1] % len(reads)](text)
        said += [str(value), repr(value)]
    except AddressError as error:
        said += [str(error), repr(error)]
    if _SECRET not in rest and any(_SECRET in one for one in said):
        raise FindingError(f"the password of {text!r} is in {said}")


def rules(data: bytes) -> None:
    """Entries of access lists, their files, and limits; the text of each is parsed to the same value."""

    def rule(data: bytes) -> None:
        with rejecting(ValueError):
            found = parse_rule(text_of(data))
            equal(parse_rule(found.text), found, "the text of a rule")
            one_line(found.text)
            RuleSet([found])

    def entry(data: bytes) -> None:
        text = text_of(data)
        if "\0" not in text:
            with rejecting(ValueError):
                parse_entry(text)

    def limit(data: bytes) -> None:
        with rejecting(ValueError):
            found = Limit.parse(text_of(data))
            equal(Limit.parse(str(found)), found, "the text of a limit")
            one_line(str(found))

    def file(data: bytes) -> None:
        with rejecting(ValueError):
            RuleSet(found for _, found in read_rules("rules", data.splitlines(keepends=True)))

    one_of(data, [rule, entry, limit, file])


def i2p_keys(data: bytes) -> None:
    """Destinations and private keys, binary and in base64."""

    def binary(data: bytes) -> None:
        with rejecting(ValueError):
            key = PrivateKey.from_bytes(data)
            equal(PrivateKey.from_base64(key.base64), key, "the base64 of a key")
            equal(b32_of(key.destination), key.b32, "the address of a key")
            key.consistent  # noqa: B018
            if not is_base64(key.destination):
                raise FindingError("its destination is none")

    def destination(data: bytes) -> None:
        text = text_of(data)
        with rejecting(ValueError):
            found = check_destination(text)
            equal(check_destination(found), found, "a destination that was checked")
        is_base64(text)

    def base64(data: bytes) -> None:
        with rejecting(ValueError):
            PrivateKey.from_base64(text_of(data))

    one_of(data, [binary, destination, base64])


def host_keys(data: bytes) -> None:
    """``known_hosts``, key files and certificates; what is appended for a host is found."""
    file = file_of(data)
    for name in ("example.net", "[192.0.2.7]:2222"):
        for entry in known_hosts.find([file], name):
            if not entry.blob or entry.line < 1:
                raise FindingError(f"an entry without a key: {entry}")
            one_line(entry.type)
            known_hosts.fingerprint(entry.blob)
    key = public_key(file)
    clear_part(data)
    certified_key(data)
    if key is not None and key_type(key):
        known_hosts.append_entry(file, "example.org", key, hashed=bool(data[0] & 1))
        found = [entry for entry in known_hosts.find([file], "example.org") if not entry.marker]
        if key not in [entry.blob for entry in found] and len(data) < known_hosts.LONGEST_LINE // 2:
            raise FindingError(f"the key that was appended is not found: {key!r}")


class _NoNames:
    """The look-ups of paramiko's parser, which finds no name."""

    gaierror = socket.gaierror

    @staticmethod
    def gethostname() -> str:
        return "here"

    getfqdn = gethostname

    def __getattr__(self, name: str) -> object:
        return getattr(socket, name) if name.isupper() else self._fail

    @staticmethod
    def _fail(*_: object, **__: object) -> None:
        raise socket.gaierror("no names here")


def ssh_config(data: bytes) -> None:
    """``ssh_config``, read by paramiko's parser and as ``ssh -G`` prints it. No program is run."""
    whole, _ = pieces(data)
    options.Options(options._parsed(whole), {}).text("hostname")
    one_line(options._first_line(whole))
    before = paramiko.config.invoke, paramiko.config.socket
    paramiko.config.invoke = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(ok=bool(whole)))
    paramiko.config.socket = _NoNames()
    try:
        with rejecting(AddressError):
            found = options.Options(options._by_paramiko(SSHServer("example", config=file_of(whole))), {})
            for name in ("ciphers", "macs", "hostkeyalgorithms", "kexalgorithms"):
                found.algorithms(name)
                found.added(name)
    finally:
        paramiko.config.invoke, paramiko.config.socket = before
        options._warned.clear()


def processes(data: bytes) -> None:
    """``/proc/PID/stat`` and ``/proc/net/unix``, in which other users choose names and paths."""
    parent = parent_in(data)
    if parent is not None and not 0 <= parent < 10**19:
        raise FindingError(f"{parent} is no number of a process")
    table = data.decode("utf-8", "surrogateescape")
    found = listens_at("/run/socket", table)
    if found is not None and not any(line.endswith(" /run/socket") for line in table.split("\n")):
        raise FindingError(f"{found} listens at no path of {table!r}")
