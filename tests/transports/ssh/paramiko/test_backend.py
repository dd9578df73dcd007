"""``relay.transports.ssh.paramiko.backend``: connecting, and every way in which a connection ends."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import paramiko
import pytest
from cryptography.exceptions import InvalidSignature
from helpers import BLOCK, PROMPT, WAIT, Thread, receive_all, receive_exactly, wait_until
from paramiko.common import cMSG_DISCONNECT
from paramiko_rig import Lost, ScriptedServer, asleep, begin, connect, open_stream, settings_for

from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress
from relay.errors import CarrierError, ConnectError, HostKeyError, can_retry
from relay.streams.cancellation import Cancellation
from relay.streams.stream import Stream
from relay.testing.ssh.login import LoginHandler
from relay.transports.ssh.config.settings import resolve_settings
from relay.transports.ssh.connection import GREETING, KEY_EXCHANGE, IncompatibleError
from relay.transports.ssh.paramiko import backend, packets

pytestmark = pytest.mark.usefixtures("spawner_thread")


@pytest.fixture
def scripted():
    servers = []

    def make(**options):
        servers.append(ScriptedServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(params=["sshd", "embedded"])
def rig(request, openssh_server):
    """A server of either kind."""
    return request.getfixturevalue("sshd" if request.param == "sshd" else "ssh_server")


def test_a_connection_is_up_and_encrypted_by_the_fastest_cipher(rig):
    with contextlib.closing(connect(settings_for(rig))) as connection:
        transport = connection._transport
        assert transport.is_authenticated()
        assert transport.local_cipher == transport.remote_cipher == "aes128-gcm@openssh.com"
        assert "by paramiko" in repr(connection)
        assert transport.logger.name.startswith("relay.ssh")


def test_the_host_key_is_verified_before_the_login(ssh_server, monkeypatch):
    order = []
    real = backend.authenticate

    def verify(settings, key):
        order.append(("verify", key.get_base64(), connection_was_up()))

    def authenticate(transport, settings):
        order.append(("authenticate",))
        return real(transport, settings)

    def connection_was_up():
        return ssh_server.logins

    monkeypatch.setattr(backend, "verify", verify)
    monkeypatch.setattr(backend, "authenticate", authenticate)
    connect(settings_for(ssh_server)).close()
    assert order == [("verify", ssh_server.host_key.get_base64(), 0), ("authenticate",)]


def test_a_host_key_that_is_not_trusted_ends_it_before_the_login(ssh_server, monkeypatch):
    def authenticate(transport, settings):
        raise AssertionError("nothing may be sent to a stranger")

    monkeypatch.setattr(backend, "authenticate", authenticate)
    with pytest.raises(HostKeyError):
        connect(settings_for(ssh_server, hostkey="SHA256:" + "A" * 43))


def test_an_idle_connection_sleeps(rig):
    """By itself, paramiko wakes ten times a second."""
    with contextlib.closing(connect(settings_for(rig))) as connection:
        thread = connection._transport
        wait_until(lambda: _settled(thread))
        before = asleep(thread)
        threading.Event().wait(0.5)  # the time is what is looked at
        assert asleep(thread) - before <= 1


def _settled(thread):
    before = asleep(thread)
    threading.Event().wait(0.1)
    return asleep(thread) == before


def test_no_thread_but_one(sshd, echo_server):
    """None for the handshake, none for what is sent, none for a stream."""
    before = set(threading.enumerate())
    with contextlib.closing(connect(settings_for(sshd))) as connection:
        assert set(threading.enumerate()) - before == {connection._transport}
        with open_stream(connection, echo_server.address):
            mine = [one for one in set(threading.enumerate()) - before if one.name != "test handler"]
            assert mine == [connection._transport]


# What is no SSH server.


SHORT = 1.0  # seconds, where the deadline is one of the ends that may come
LONGER = (0.3, 3.0, 30.0)  # seconds to get as far as the test wants it; a busy machine may need more than the first


def fails(serve, handler, *, seconds=WAIT, settings=None):
    server = serve(handler)
    settings = dataclasses.replace(settings or _no_settings(), hostname="127.0.0.1", port=server.address[1])
    begun = time.monotonic()
    with pytest.raises((ConnectError, CarrierError)) as failed:
        connect(settings, seconds=seconds)
    assert time.monotonic() - begun < seconds + PROMPT
    text = str(failed.value)
    assert text.startswith("ssh://bastion: ") and "\n" not in text
    return failed.value


def _no_settings():
    from relay.addresses.ssh import SSHServer
    from relay.transports.ssh.connection import Settings

    return Settings(SSHServer("bastion"), "127.0.0.1", 22, "somebody", host_key_name="bastion")


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        (b"", ""),
        (b"Exceeded MaxStartups\r\n", ""),
        (b"Not allowed at this time\r\n", ""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", GREETING),
        (b"SSH-2.0-x\r\n", KEY_EXCHANGE),
    ],
)
def test_only_a_server_that_says_something_else_will_not_change(serve, said, stage):
    """A port may be open before the server behind it is up, and a server that is overloaded comes back."""
    error = fails(serve, lambda connection: connection.sendall(said))
    assert isinstance(error, CarrierError) and error.stage == stage


def test_a_server_that_speaks_http(serve):
    def answer(connection):
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    error = fails(serve, answer)
    assert isinstance(error, CarrierError)
    assert "no SSH server: it sent 'HTTP/1.1 400 Bad Request'" in str(error)


@pytest.mark.parametrize(
    "said",
    [b"\0\xff" * 40_000, b"x" * 40_000, b"\x1b[31mred\r\n" * 200, b"SSH-1.5-old\r\n", b"SSH-2.0\r\n", b"SSH-\xff\r\n"],
)
def test_a_server_that_sends_garbage(serve, said):
    def answer(connection):
        connection.sendall(said)
        receive_all(connection)

    error = fails(serve, answer, seconds=SHORT)
    assert isinstance(error, (CarrierError, ConnectError)) and "\x1b" not in str(error)


def test_a_greeting_without_end_takes_no_memory(serve):
    def answer(connection):
        while True:
            connection.sendall(b"a" * 4096)

    assert "without end" in str(fails(serve, answer))


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff" * 8,
        b"\0\0\0\0" * 8,
        b"\0\0\0\x0c\x04" + b"\x14" * 200,
        b"\0\0\0\x0c\xff" + b"\x14" * 11,
    ],
)
def test_a_first_packet_that_is_none(serve, packet):
    def answer(connection):
        connection.sendall(b"SSH-2.0-odd\r\n" + packet)
        receive_all(connection)

    fails(serve, answer, seconds=SHORT)


def test_a_server_that_closes_in_the_middle_of_the_key_exchange(serve, ssh_server):
    """The greeting and the first packets of a real server, and then the end."""
    with socket.create_connection(ssh_server.address, WAIT) as client:
        client.sendall(b"SSH-2.0-curious\r\n")
        client.settimeout(WAIT)
        said = client.recv(200)
        while len(said) < 400:
            said += client.recv(400 - len(said))

    def answer(connection):
        connection.sendall(said)
        connection.recv(30)

    error = fails(serve, answer)
    assert isinstance(error, CarrierError) and "key exchange" in str(error)


def test_a_server_that_stops_in_the_middle_of_the_key_exchange(serve):
    def answer(connection):
        connection.sendall(b"SSH-2.0-slow\r\n")
        receive_all(connection)

    for seconds in LONGER:
        error = fails(serve, answer, seconds=seconds)
        assert error.reason == "connect_timeout"
        if "key exchange" in str(error):
            break
    assert "key exchange" in str(error)


def test_a_server_that_stops_during_the_login(make_ssh_server, monkeypatch):
    server = make_ssh_server()
    real = backend.verify

    def verify(settings, key):
        real(settings, key)
        server.freeze()

    monkeypatch.setattr(backend, "verify", verify)
    for seconds in LONGER:
        with pytest.raises(ConnectError) as failed:
            connect(settings_for(server), seconds=seconds)
        assert failed.value.reason == "connect_timeout"
        if "login" in str(failed.value):
            break
        server.thaw()
    assert "login" in str(failed.value)


def test_a_socket_that_is_closed(ssh_server):
    sock = socket.socket()
    sock.close()
    closed = []
    stream = Stream(sock, on_close=lambda: closed.append(True))
    with contextlib.closing(Cancellation()) as cancel, pytest.raises(OSError, match="descriptor"):
        backend.connect(settings_for(ssh_server), stream, time.monotonic() + WAIT, cancel, Lost())
    assert closed == [True]


# Algorithms.


def test_lists_of_algorithms_are_kept_and_unknown_names_dropped(sshd):
    names = {"ciphers": ("chacha20-poly1305@openssh.com", "aes256-ctr"), "macs": ("umac-64", "hmac-sha2-512")}
    with contextlib.closing(connect(settings_for(sshd, kex=("sntrup", "ecdh-sha2-nistp256"), **names))) as connection:
        transport = connection._transport
        assert (transport.local_cipher, transport.local_mac) == ("aes256-ctr", "hmac-sha2-512")


WEAK = {
    "kex": ("diffie-hellman-group14-sha1", "diffie-hellman-group-exchange-sha1", "diffie-hellman-group1-sha1"),
    "keys": ("ssh-rsa", "ssh-dss"),
    "ciphers": ("aes128-cbc", "3des-cbc"),
    "macs": ("hmac-sha1", "hmac-md5", "hmac-sha1-96"),
}


@pytest.fixture
def old_paramiko(monkeypatch):
    """One that can do, and prefers, everything that 3.5 could."""
    tables = {"kex": "_kex_info", "keys": "_key_info", "ciphers": "_cipher_info", "macs": "_mac_info"}
    for kind, names in WEAK.items():
        table = getattr(backend.Transport, tables[kind])
        some = next(iter(table.values()))
        monkeypatch.setattr(backend.Transport, tables[kind], {**dict.fromkeys(names, some), **table})
        own = getattr(backend.Transport, f"_preferred_{kind}")
        monkeypatch.setattr(backend.Transport, f"_preferred_{kind}", (*names, *own))


def offered_to(serve, **wishes):
    """The lists of names in the KEXINIT that a client sends (RFC 4253, section 7.1)."""
    lists = []

    def listen(end):
        end.sendall(b"SSH-2.0-listening\r\n")
        with end.makefile("rb") as file:
            assert file.readline().startswith(b"SSH-2.0-")
            length, padding = struct.unpack(">IB", file.read(5))
            payload = io.BytesIO(file.read(length - 1)[: -padding or None])
        assert payload.read(17)[:1] == bytes([20])
        for _ in range(8):
            (size,) = struct.unpack(">I", payload.read(4))
            lists.append(payload.read(size).decode().split(","))

    server = serve(listen)
    host, port = server.address
    settings = resolve_settings(SSHServer(host, "me", port, config=os.devnull))
    with pytest.raises(CarrierError):
        connect(dataclasses.replace(settings, **wishes))
    kex, keys, ciphers, ciphers_in, macs, macs_in, _, _ = lists
    assert (ciphers, macs) == (ciphers_in, macs_in)
    return {"kex": kex, "keys": keys, "ciphers": ciphers, "macs": macs}


def test_nothing_weak_is_offered_whatever_paramiko_can_do(serve, old_paramiko):
    for kind, names in offered_to(serve).items():
        weak = [name for name in names if re.search(r"sha1$|sha1-|md5|cbc|group1-|arcfour|dss|^ssh-rsa", name)]
        assert names and weak == [], kind


def test_all_that_is_strong_is_offered(serve):
    found = offered_to(serve)
    known = backend.Transport._kex_info, backend.Transport._key_info
    for names, table in zip((found["kex"], found["keys"]), known, strict=True):
        strong = {name for name in table if not re.search(r"sha1$|^ssh-|^gss-|-cert-", name)}
        assert strong <= set(names)
    assert found["keys"][0] == "ssh-ed25519" and "kex-strict-c-v00@openssh.com" in found["kex"]


def test_what_the_configuration_adds_is_offered_last(serve, old_paramiko):
    added = tuple(name for names in WEAK.values() for name in names)
    found = offered_to(serve, added=added)
    for kind, names in WEAK.items():
        plain = [name for name in found[kind] if "-c-v00" not in name and "-cert-" not in name and name != "ext-info-c"]
        assert tuple(plain[-len(names) :]) == names


@pytest.mark.parametrize("option", ["ciphers", "macs", "kex", "host_key_algorithms"])
def test_no_name_that_paramiko_knows(sshd, option):
    with pytest.raises(IncompatibleError, match=r"backend='openssh' \(in an address: \?backend=openssh\)") as failed:
        connect(settings_for(sshd, **{option: ("chacha20-poly1305@openssh.com",)}))
    assert not can_retry(failed.value) and "\n" not in str(failed.value)


def test_no_algorithm_in_common(make_sshd):
    rig = make_sshd("Ciphers chacha20-poly1305@openssh.com")
    with pytest.raises(IncompatibleError) as failed:
        connect(settings_for(rig))
    assert str(failed.value) == (
        f"{rig.server}: it and paramiko have no cipher in common; it offers chacha20-poly1305@openssh.com; "
        "try backend='openssh' (in an address: ?backend=openssh)"
    )
    assert not can_retry(failed.value)


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        ("KexAlgorithms sntrup761x25519-sha512@openssh.com", "key exchange"),
        ("MACs umac-64@openssh.com", "MAC"),
        ("HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com,ssh-ed25519", "host key algorithm"),
    ],
)
def test_nothing_in_common_of_any_kind(make_sshd, wish, kind):
    names = {"ciphers": ("aes128-ctr",), "host_key_algorithms": ("rsa-sha2-512",) if "host" in kind else ()}
    with pytest.raises(IncompatibleError, match=f"no {kind} in common; it offers {wish.split()[1].split(',')[-1]}"):
        connect(settings_for(make_sshd(wish), **names))


def test_a_server_of_the_first_version_is_worth_another_try(serve):
    error = fails(serve, lambda end: end.sendall(b"SSH-1.5-old\r\n"))
    assert isinstance(error, CarrierError) and "1.5" in str(error)


CIPHERS = {
    "AES-GCM": {},
    "compressed": {"compress": True},
    "encrypt, then MAC": {"ciphers": ("aes128-ctr",)},
    "MAC, then encrypt": {"ciphers": ("aes256-ctr",), "macs": ("hmac-sha2-256",)},
    "MAC, then encrypt, compressed": {"ciphers": ("aes128-ctr",), "macs": ("hmac-sha2-512",), "compress": True},
}


def there_and_back(connection, target, blocks):
    """Send blocks and get them back, both at once; returns whether every byte has come."""
    with open_stream(connection, target) as stream:
        sending = Thread(lambda: [stream.socket.sendall(BLOCK) for _ in range(blocks)])
        digest = hashlib.sha256()
        for _ in range(blocks):
            digest.update(receive_exactly(stream.socket, len(BLOCK)))
        sending.result()
        stream.socket.shutdown(socket.SHUT_WR)
        assert stream.socket.recv(1) == b""
    return digest.digest() == hashlib.sha256(BLOCK * blocks).digest()


@pytest.mark.parametrize("names", CIPHERS.values(), ids=CIPHERS)
def test_every_kind_of_cipher_carries_every_byte(sshd, echo_server, names):
    with contextlib.closing(connect(settings_for(sshd, **names))) as connection:
        assert there_and_back(connection, echo_server.address, 8)


@pytest.mark.parametrize("names", CIPHERS.values(), ids=CIPHERS)
def test_new_keys_in_mid_transfer_lose_nothing(sshd, echo_server, names, monkeypatch):
    """Asked for by us."""
    monkeypatch.setattr(packets.Packetizer, "REKEY_BYTES", 1 << 20)
    with contextlib.closing(connect(settings_for(sshd, **names))) as connection:
        exchanges = count_exchanges(connection)
        assert there_and_back(connection, echo_server.address, 8)
        assert len(exchanges) >= 3


def damage(transport):
    """Change the last byte of what is received next."""
    wire = transport.wire
    receive = wire._receive

    def receive_once(view):
        count = receive(view)
        view[count - 1] ^= 0x55
        wire._receive = receive
        return count

    wire._receive = receive_once


@pytest.mark.parametrize("names", CIPHERS.values(), ids=CIPHERS)
def test_a_byte_that_is_damaged_during_the_login(sshd, names, before_login):
    before_login(damage)
    with pytest.raises(CarrierError, match="a packet was damaged on the way") as failed:
        connect(settings_for(sshd, **names))
    assert str(failed.value).startswith(f"{sshd.server}: ") and "login" in str(failed.value)
    assert can_retry(failed.value)


def test_a_byte_that_is_damaged_just_before_the_login(sshd, before_login):
    def damage_an_answer(transport):
        damage(transport)
        transport.wire.loop.call(lambda: transport.send(b"\5\0\0\0\14ssh-userauth"))
        transport.join(WAIT)

    before_login(damage_an_answer)
    with pytest.raises(CarrierError, match="lost during the login: a packet was damaged on the way"):
        connect(settings_for(sshd))


@pytest.mark.parametrize(
    ("word", "said"), [("", "the server has closed the connection"), ("go away", "the server says: go away")]
)
def test_a_server_that_ends_the_login_with_a_word_and_without_one(ssh_server, monkeypatch, word, said):
    def leave(handler, message):
        handler.transport.tell(cMSG_DISCONNECT, 2, word, "en")
        raise paramiko.SSHException("done")

    monkeypatch.setattr(LoginHandler, "_parse_service_request", leave)
    with pytest.raises(CarrierError) as failed:
        connect(settings_for(ssh_server))
    assert str(failed.value).endswith(f": {said} (the login was not finished)")
    assert failed.value.stage == "the login was not finished"


@pytest.mark.parametrize("names", CIPHERS.values(), ids=CIPHERS)
def test_a_byte_that_is_damaged_while_it_is_up(sshd, names):
    lost = Lost()
    with contextlib.closing(connect(settings_for(sshd, **names), lost)) as connection:
        damage(connection._transport)
        connection.check()
        assert str(lost.wait()) == f"{sshd.server}: the connection was lost: a packet was damaged on the way"


@pytest.mark.parametrize(
    "error",
    [
        IndexError("index out of range"),
        KeyError(77),
        ValueError(),
        TypeError("no buffer"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        struct.error("unpack requires 4 bytes"),
        InvalidSignature(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("stage", ["key exchange", "login"])
def test_what_the_server_says_is_never_final_whatever_it_does_to_paramiko(
    sshd, error, stage, before_login, monkeypatch
):
    def fail(*_):
        raise error

    if stage == "login":
        before_login(lambda transport: [transport.handle(kind, fail) for kind in (51, 52, 60)])
    else:
        monkeypatch.setattr(backend.Transport, "_parse_kex_init", fail)
    with pytest.raises(CarrierError, match=f"makes no sense .{type(error).__name__}") as failed:
        connect(settings_for(sshd))
    assert can_retry(failed.value) and "\n" not in str(failed.value) and stage in str(failed.value)


@pytest.fixture
def before_login(monkeypatch):
    """Return a function that changes the transport before the login."""
    real = backend.authenticate

    def before(do):
        def authenticate(transport, settings):
            do(transport)
            return real(transport, settings)

        monkeypatch.setattr(backend, "authenticate", authenticate)

    return before


def test_our_own_mistakes_during_the_login_keep_their_type(sshd, before_login):
    def mistaken(transport):
        raise LookupError("ours")

    before_login(mistaken)
    with pytest.raises(LookupError, match="ours"):
        connect(settings_for(sshd))


def test_new_keys_are_due_for_what_comes_in_alone(sshd, serve, monkeypatch):
    monkeypatch.setattr(packets.Packetizer, "REKEY_BYTES", 1 << 20)
    server = serve(lambda end: end.sendall(BLOCK * 4))
    with contextlib.closing(connect(settings_for(sshd))) as connection:
        exchanges = count_exchanges(connection)
        with open_stream(connection, server.address) as stream:
            assert receive_all(stream.socket) == BLOCK * 4
        assert exchanges


def test_new_keys_that_the_server_asks_for_lose_nothing(make_sshd, echo_server):
    rig = make_sshd("RekeyLimit 1M")
    with contextlib.closing(connect(settings_for(rig))) as connection:
        exchanges = count_exchanges(connection)
        assert there_and_back(connection, echo_server.address, 8)
        assert len(exchanges) >= 3


def count_exchanges(connection):
    transport, seen = connection._transport, []
    real = transport._handler_table[21]

    def newkeys(message):
        seen.append(True)
        real(message)

    transport._handler_table[21] = newkeys
    return seen


def test_streams_are_opened_and_closed_while_keys_are_exchanged(sshd, echo_server, monkeypatch):
    monkeypatch.setattr(packets.Packetizer, "REKEY_BYTES", 1 << 15)
    with contextlib.closing(connect(settings_for(sshd))) as connection:
        exchanges = count_exchanges(connection)
        for _ in range(100):
            with open_stream(connection, echo_server.address) as stream:
                stream.socket.sendall(b"x" * 1000)
                assert receive_exactly(stream.socket, 1000) == b"x" * 1000
        assert exchanges


def test_a_server_that_never_finishes_the_new_keys(scripted, monkeypatch):
    monkeypatch.setattr("relay.transports.ssh.paramiko.transport._KEX_TIMEOUT", 0.2)
    lost, server = Lost(), scripted()
    with contextlib.closing(server.connect(lost)) as connection:
        server.transport._handler_table[20] = lambda message: None
        connection._loop.call(connection._transport._send_kex_init)
        assert "new keys" in str(lost.wait())


def test_a_flood_while_keys_are_exchanged(scripted, monkeypatch):
    monkeypatch.setattr("relay.transports.ssh.paramiko.mux._LATER", 100)
    lost, server = Lost(), scripted()
    with contextlib.closing(server.connect(lost)) as connection:
        server.transport._handler_table[20] = lambda message: None
        connection._loop.call(connection._transport._send_kex_init)
        with contextlib.suppress(EOFError):
            for _ in range(200):
                server.send(80, "what", True)
        assert "asks too much" in str(lost.wait())


# A connection that is lost.


def test_what_is_under_way_when_the_server_dies(make_sshd):
    rig, lost = make_sshd(), Lost()
    with contextlib.closing(connect(settings_for(rig), lost)) as connection, socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        rig.freeze()
        told, _ = begin(connection, TCPAddress(*full.getsockname()))
        listening = Thread(lambda: connection.listen(TCPAddress("127.0.0.1", 0), print, time.monotonic() + WAIT))
        wait_until(lambda: len(connection._requests))
        rig.kill()
        assert isinstance(told.get(timeout=WAIT), CarrierError)
        with pytest.raises(CarrierError):
            listening.result()
        lost.wait()


def test_the_server_says_why_it_ends(scripted):
    lost, server = Lost(), scripted()
    with contextlib.closing(server.connect(lost)):
        server.send(1, 11, "going down for maintenance", "en")
        assert "the server says: going down for maintenance" in str(lost.wait())


def test_a_frozen_server_is_noticed(make_sshd, echo_server):
    rig, lost = make_sshd(), Lost()
    with contextlib.closing(connect(settings_for(rig, keepalive=0.2), lost)) as connection:
        begun = time.monotonic()
        with open_stream(connection, echo_server.address) as stream:
            connection.check()
            rig.freeze()
            connection.check()
            while not lost.told.wait(0.2):
                connection.check()
            error = lost.wait()
            assert time.monotonic() - begun > 0.6
            assert "no answer for" in str(error)
            assert isinstance(error, CarrierError)
            with contextlib.suppress(ConnectionResetError):
                assert stream.socket.recv(1) == b""
            assert isinstance(stream.failure(), CarrierError)
        rig.thaw()


def test_a_frozen_server_is_noticed_by_the_check_alone(sshd):
    """Even if the connection's own thread were stuck."""
    lost, stuck = Lost(), threading.Event()
    with contextlib.closing(connect(settings_for(sshd, keepalive=0.1), lost)) as connection:
        begun = threading.Event()
        connection._loop.call(lambda: begun.set() or stuck.wait())
        assert begun.wait(WAIT)
        connection._wire.heard -= 1
        for _ in range(3):
            connection.check()
        assert lost.empty()
        connection.check()
        assert re.search(r"no answer for \d+ s", str(lost.get(timeout=0)))
        stuck.set()
        connection._transport.join(WAIT)
        assert lost.empty(), "told once"


def pause(connection, seconds, asks=False):
    """Play a process that was stopped: nothing ran, no timer was checked, and all its times are older.

    With ``asks``, it has asked just before, and the answer lies in the socket.
    """
    done = threading.Event()

    def stopped():
        if asks:
            connection._keepalive._probe(connection._settings.server.keepalive)
            connection._wire.flush()
            assert select.select([connection._wire._descriptor], [], [], WAIT)[0]
        connection._wire.heard -= seconds
        connection._keepalive._probed -= seconds
        connection._keepalive._checked -= seconds
        if connection._keepalive._silence.due < math.inf:
            connection._keepalive._silence.start(connection._keepalive._silence.due - seconds, time.monotonic())
        done.set()

    connection._loop.call(stopped)
    assert done.wait(WAIT)


@pytest.mark.parametrize("answered", [True, False], ids=["answered before", "the answer lies in the socket"])
@pytest.mark.parametrize("checked", [True, False], ids=["checked at once", "not checked"])
@pytest.mark.parametrize("seconds", [3.1 * WAIT, 7.5 * WAIT])
def test_a_pause_of_our_own_process_is_no_silence_of_the_server(rig, echo_server, answered, checked, seconds):
    lost = Lost()
    with contextlib.closing(connect(settings_for(rig, keepalive=WAIT), lost)) as connection:
        with open_stream(connection, echo_server.address) as stream:
            if answered:
                connection.check()
                wait_until(lambda: connection._keepalive._silence.due < math.inf and not connection._requests)
                pause(connection, seconds)
            else:
                pause(connection, seconds, asks=True)
            if checked:
                connection.check()
            stream.socket.sendall(b"on")
            assert receive_exactly(stream.socket, 2) == b"on"
    assert lost.empty()


def test_a_server_that_died_during_a_pause_gets_one_interval_more(make_sshd):
    rig, lost = make_sshd(), Lost()
    with contextlib.closing(connect(settings_for(rig, keepalive=0.2), lost)) as connection:
        connection.check()
        wait_until(lambda: connection._keepalive._silence.due < math.inf and not connection._requests)
        rig.freeze()
        begun = time.monotonic()
        pause(connection, 1.5)
        connection.check()
        assert re.search(r"no answer for \d+ s", str(lost.wait()))
        assert time.monotonic() - begun > 0.15
        rig.thaw()


def test_a_living_server_answers_for_ever(rig):
    lost = Lost()
    with contextlib.closing(connect(settings_for(rig, keepalive=WAIT), lost)) as connection:
        for _ in range(8):
            heard = connection._wire.heard
            connection.check()
            wait_until(lambda heard=heard: connection._wire.heard > heard and not connection._requests)
            pause(connection, WAIT)
    assert lost.empty()


def test_the_reply_to_a_probe_tells_the_round_trip(ssh_server):
    with contextlib.closing(connect(settings_for(ssh_server, keepalive=WAIT))) as connection:
        assert connection.rtt is None
        connection.check()
        wait_until(lambda: connection.rtt is not None)
        assert 0 < connection.rtt < WAIT


def test_no_keepalive(ssh_server):
    with contextlib.closing(connect(settings_for(ssh_server, keepalive=None))) as connection:
        connection._wire.heard -= 1000
        connection.check()
        assert not len(connection._requests)
        assert connection._transport.is_alive()


# Closing.


def test_close_is_prompt_and_silent(rig, echo_server):
    lost = Lost()
    connection = connect(settings_for(rig), lost)
    stream = open_stream(connection, echo_server.address)
    told, _ = begin(connection, TCPAddress("192.0.2.1", 9))
    begun = time.monotonic()
    connection.close()
    connection.close()
    assert time.monotonic() - begun < PROMPT
    connection._transport.join(WAIT)
    assert not connection._transport.is_alive()
    assert isinstance(told.get(timeout=WAIT), CarrierError)
    with stream:
        with contextlib.suppress(ConnectionResetError):
            assert stream.socket.recv(1) == b""
        assert "was closed" in str(stream.failure())
    assert lost.empty()


def test_close_is_prompt_when_nothing_goes_out_any_more(make_sshd, serve):
    """A peer that is frozen, with every buffer on the way to it full."""
    rig = make_sshd()
    sink = serve(lambda connection: threading.Event().wait(0.1) or receive_all(connection))
    connection = connect(settings_for(rig))
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open_stream(connection, sink.address)) for _ in range(8)]
        rig.freeze()
        for stream in streams:
            stream.socket.setblocking(False)
        wait_until(lambda: sum(map(_fill, streams)) == len(streams) and connection._wire.clogged)
        begun = time.monotonic()
        connection.close()
        assert time.monotonic() - begun < PROMPT
    connection._transport.join(WAIT)
    assert not connection._transport.is_alive()
    rig.thaw()


def _fill(stream):
    try:
        stream.socket.send(BLOCK)
    except BlockingIOError:
        return True
    return False


def test_close_waits_only_a_moment_for_a_server_that_does_not_answer(scripted):
    server = scripted()
    connection = server.connect()
    stream, number = server.open(connection, window=10)
    stream.socket.sendall(b"x" * 100)
    stream.close()
    server.expect(94)
    begun = time.monotonic()
    connection.close()
    assert 0.2 < time.monotonic() - begun < PROMPT
    connection._transport.join(WAIT)
    assert not connection._transport.is_alive()
    assert number == 0


def test_what_was_sent_goes_out_before_the_close(rig, serve):
    came = []
    server = serve(lambda connection: came.append(len(receive_all(connection))))
    connection = connect(settings_for(rig))
    stream = open_stream(connection, server.address)
    stream.socket.sendall(BLOCK[: 200 << 10])
    stream.close()
    connection.close()
    wait_until(lambda: came)
    assert came == [200 << 10]


def test_close_from_a_callback(ssh_server, echo_server):
    connection = connect(settings_for(ssh_server))
    done = threading.Event()

    def opened(stream):
        stream.close()
        connection.close()
        done.set()

    connection.open(TCPAddress(*echo_server.address), time.monotonic() + WAIT, opened)
    assert done.wait(WAIT)
    connection._transport.join(WAIT)
    assert not connection._transport.is_alive()


def test_a_callback_that_fails_ends_nothing_but_itself(ssh_server, echo_server, caplog):
    lost = Lost()
    with contextlib.closing(connect(settings_for(ssh_server), lost)) as connection:

        def opened(stream):
            stream.close()
            raise RuntimeError("not ours")

        connection.open(TCPAddress(*echo_server.address), None, opened)
        wait_until(lambda: "not ours" in caplog.text)
        with open_stream(connection, echo_server.address) as stream:
            stream.socket.sendall(b"on")
            assert receive_exactly(stream.socket, 2) == b"on"
    assert lost.empty()


def test_idle_is_when_the_rest_has_gone_out(sshd, serve):
    """The target reads late; as long as bytes are under way, the connection is needed."""
    go, came = threading.Event(), []

    def handle(connection):
        go.wait(WAIT)
        came.append(len(receive_all(connection)))

    server = serve(handle)
    with contextlib.closing(connect(settings_for(sshd))) as connection:
        stream = open_stream(connection, server.address)
        stream.socket.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += stream.socket.send(BLOCK)
        stream.close()
        idle = threading.Event()
        connection.when_idle(idle.set)
        assert not idle.wait(0.1)
        go.set()
        assert idle.wait(WAIT)
    wait_until(lambda: came)
    assert came == [sent]


def test_idle_is_also_when_the_connection_ends(make_ssh_server, echo_server):
    server, lost = make_ssh_server(), Lost()
    with contextlib.closing(connect(settings_for(server), lost)) as connection:
        idle = threading.Event()
        with open_stream(connection, echo_server.address):
            connection.when_idle(idle.set)
            server.drop()
            lost.wait()
            assert idle.wait(WAIT)
        again = threading.Event()
        connection.when_idle(again.set)
        assert again.wait(WAIT)


def test_idle_is_also_when_the_connection_is_closed(ssh_server, echo_server):
    connection = connect(settings_for(ssh_server))
    idle = threading.Event()
    with open_stream(connection, echo_server.address):
        connection.when_idle(idle.set)
        connection.close()
        assert idle.is_set()


def test_the_interpreters_end_is_not_held_up(ssh_server):
    """Paramiko joins its threads at exit."""
    lost = Lost()
    connection = connect(settings_for(ssh_server), lost)
    connection._transport.stop_thread()
    connection._transport.join(WAIT)
    assert not connection._transport.is_alive()
    lost.wait()
    connection.close()


def test_a_connection_under_it_that_is_lost_is_named(ssh_server):
    near, far = socket.socketpair()
    forwarding = Thread(lambda: _forward(far, ssh_server.address))
    failure = CarrierError("ssh://hop: the connection was lost: it was unplugged")
    stream = Stream(near, failure=lambda: failure)
    lost = Lost()
    with contextlib.closing(Cancellation()) as cancel:
        connection = backend.connect(settings_for(ssh_server), stream, time.monotonic() + WAIT, cancel, lost)
    ssh_server.drop()
    assert "it was unplugged" in str(lost.wait())
    connection.close()
    forwarding.result()


def test_what_is_under_the_stream_tells_more_than_a_reset(ssh_server):
    """As when a proxy command fails: its end of the socket goes with our greeting unread in it."""
    near, far = socket.socketpair()
    stream = Stream(near, failure=lambda: OSError("the proxy command ended with status 1"))
    near.sendall(b"unread")
    far.close()
    with contextlib.closing(Cancellation()) as cancel, pytest.raises(CarrierError) as failed:
        backend.connect(settings_for(ssh_server), stream, time.monotonic() + WAIT, cancel, Lost())
    assert str(failed.value).endswith(": the proxy command ended with status 1 (it has not sent an SSH version)")


def test_an_end_that_tells_nothing_names_the_stage(ssh_server):
    near, far = socket.socketpair()
    near.sendall(b"unread")
    far.close()
    with contextlib.closing(Cancellation()) as cancel, pytest.raises(CarrierError, match="not sent an SSH version"):
        backend.connect(settings_for(ssh_server), Stream(near), time.monotonic() + WAIT, cancel, Lost())


def test_the_end_of_the_connection_during_the_login_is_told_as_it_is(make_ssh_server, before_login):
    server = make_ssh_server()
    before_login(lambda transport: server.drop())
    with pytest.raises(CarrierError, match="(closed the connection|reset).*login was not finished"):
        connect(settings_for(server))


def test_a_narrow_way_to_the_server_loses_nothing(sshd, echo_server):
    """A socketpair with small buffers, which is full most of the time."""
    near, far = socket.socketpair()
    for end in near, far:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    forwarding = Thread(lambda: _forward(far, ("127.0.0.1", sshd.port)))
    with contextlib.closing(Cancellation()) as cancel:
        connection = backend.connect(settings_for(sshd), Stream(near), time.monotonic() + WAIT, cancel, Lost())
    with contextlib.closing(connection):
        assert there_and_back(connection, echo_server.address, 4)
    forwarding.result()


def _forward(far, address):
    with far, socket.create_connection(address, WAIT) as server:
        back = Thread(lambda: _io_thread(server, far))
        _io_thread(far, server)
        back.result()


def _io_thread(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in source, sink:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_a_program_that_ends_with_a_connection_loses_none(make_ssh_server, echo_server):
    """As the interpreter exits paramiko ends each transport; that of a hop below another one was logged as lost."""
    outer, inner = make_ssh_server(), make_ssh_server()
    program = """
import atexit, sys, time
atexit.register(time.sleep, 0.3)  # after paramiko's, which is registered later; what is wrong is logged meanwhile
import relay
made = relay.connect(sys.argv[1], via=sys.argv[2:])
made.sendall(b"word")
print(made.recv(4))
"""
    target = "{}:{}".format(*echo_server.address)
    run = [sys.executable, "-W", "ignore::ResourceWarning", "-c", program, target, outer.url, inner.url]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("b'word'\n", "")


def prime_of(bits):
    """A prime of this size; a safe one takes longer to find, and nothing here depends on it."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, 2 * bits).private_numbers().p


@pytest.mark.parametrize("bits", [1024, 2048])
def test_a_group_of_the_server_has_2048_bits(ssh_server, monkeypatch, bits):
    """A server that minds what it is asked for chooses among what it has; this one does not mind."""

    def choose(least, preferred, most):
        assert 2048 <= least <= preferred <= most
        return 2, prime_of(bits)

    monkeypatch.setattr(paramiko.Transport, "_modulus_pack", SimpleNamespace(pack={bits: []}, get_modulus=choose))
    settings = settings_for(ssh_server, kex=("diffie-hellman-group-exchange-sha256",))
    if bits == 2048:
        return connect(settings).close()
    problem = "its group for the key exchange has 1024 bits; the minimum is 2048"
    with pytest.raises(CarrierError, match=problem):
        connect(settings)
    return None


def test_a_real_sshd_has_groups_that_are_large_enough(sshd):
    connect(settings_for(sshd, kex=("diffie-hellman-group-exchange-sha256",))).close()
