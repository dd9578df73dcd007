"""``relay.transports.ssh.paramiko.backend``: connecting, and every way in which a connection ends."""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
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
from paramiko_rig import Lost, asleep, connect, open_stream, settings_for, thread_of_connection

from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress
from relay.errors import CarrierError, ConnectError, can_retry
from relay.streams.promise import Cancellation
from relay.streams.stream import Stream
from relay.transports.ssh.config.settings import resolve_settings
from relay.transports.ssh.connection import IncompatibleError, Settings
from relay.transports.ssh.paramiko import backend, packets

pytestmark = pytest.mark.usefixtures("spawner_thread")


def test_a_connection_is_up_and_encrypted_by_the_fastest_cipher(rig):
    with contextlib.closing(connect(settings_for(rig))) as connection:
        transport = thread_of_connection()
        assert transport.is_authenticated()
        assert transport.local_cipher == transport.remote_cipher == "aes128-gcm@openssh.com"
        assert "by paramiko" in repr(connection)
        assert transport.logger.name.startswith("relay.ssh")


def test_it_has_one_thread_which_sleeps_while_nothing_happens(rig, echo_server):
    """None for the handshake, for what is sent, for a stream; by itself, paramiko wakes ten times a second."""
    before = set(threading.enumerate())
    with contextlib.closing(connect(settings_for(rig))) as connection:
        thread = thread_of_connection()
        with open_stream(connection, echo_server.address):
            made = {one for one in set(threading.enumerate()) - before if one.name.startswith("relay")}
            assert made == {thread}
            wait_until(lambda: turns_in(thread, 0.1) == 0)
            assert turns_in(thread, 0.5) <= 1


def turns_in(thread, seconds):
    """Return how often a thread goes to sleep in this time, which is what is looked at."""
    before = asleep(thread)
    threading.Event().wait(seconds)
    return asleep(thread) - before


# What is no SSH server.


def fails(serve, said, *, seconds=WAIT, is_endless=False):
    """Return the error of a connection to a server that says this, and then waits."""

    def handle(connection):
        connection.sendall(said)
        while is_endless:
            connection.sendall(said)
        receive_all(connection)

    host, port = serve(handle).address
    settings = Settings(SSHServer("bastion"), host, port, "somebody", host_key_name="bastion")
    begun = time.monotonic()
    with pytest.raises((ConnectError, CarrierError)) as failed:
        connect(settings, seconds=seconds)
    assert time.monotonic() - begun < seconds + PROMPT
    assert str(failed.value).startswith("ssh://bastion: ") and str(failed.value).isprintable()
    return failed.value


FIRST_WORDS = {
    "binary, without end": (b"\0\xff" * 40_000, "without end"),
    "control characters": (b"\x1b[31mred\r\n" * 200, "no SSH server"),
    "an old version": (b"SSH-1.5-old\r\n", "1.5"),
    "no name of the program": (b"SSH-2.0\r\n", ""),
    "no version": (b"SSH-\xff\r\n", ""),
    "a packet that is too long": (b"SSH-2.0-odd\r\n" + b"\xff" * 8, "key exchange"),
    "a packet that is too short": (b"SSH-2.0-odd\r\n" + b"\0\0\0\0" * 8, "key exchange"),
    "an unexpected packet": (b"SSH-2.0-odd\r\n\0\0\0\x0c\x04" + b"\x14" * 200, "key exchange"),
    "more padding than packet": (b"SSH-2.0-odd\r\n\0\0\0\x0c\xff" + b"\x14" * 11, "key exchange"),
}


@pytest.mark.parametrize(("said", "words"), FIRST_WORDS.values(), ids=FIRST_WORDS)
def test_what_is_no_server_ends_with_one_line(serve, said, words):
    """At once, or at the deadline."""
    assert words in str(fails(serve, said, seconds=1.0))


LONGER = (0.3, 3.0, 30.0)  # seconds to get as far as the test wants it; a busy machine may need more than the first


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
    kex = ("sntrup", "diffie-hellman-group-exchange-sha256")  # the groups of a real server are large enough
    with contextlib.closing(connect(settings_for(sshd, kex=kex, **names))):
        transport = thread_of_connection()
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


NOTHING_IN_COMMON = {
    "cipher": ("Ciphers chacha20-poly1305@openssh.com", {}),
    "key exchange": ("KexAlgorithms sntrup761x25519-sha512@openssh.com", {}),
    "MAC": ("MACs umac-64@openssh.com", {"ciphers": ("aes128-ctr",)}),
    "host key algorithm": ("HostKeyAlgorithms ssh-ed25519", {"host_key_algorithms": ("rsa-sha2-512",)}),
}


@pytest.mark.parametrize("kind", NOTHING_IN_COMMON)
def test_no_algorithm_in_common(make_sshd, kind):
    line, names = NOTHING_IN_COMMON[kind]
    rig = make_sshd(line)
    with pytest.raises(IncompatibleError) as failed:
        connect(settings_for(rig, **names))
    start, _, rest = str(failed.value).partition("; it offers ")
    assert start == f"{rig.server}: it and paramiko have no {kind} in common"
    assert rest.startswith(line.split()[1]) and rest.endswith(
        "; try backend='openssh' (in an address: ?backend=openssh)"
    )
    assert not can_retry(failed.value)


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
def test_new_keys_in_mid_transfer_lose_nothing(sshd, echo_server, names, monkeypatch):
    """Asked for by us."""
    monkeypatch.setattr(packets.Packetizer, "REKEY_BYTES", 1 << 20)
    with contextlib.closing(connect(settings_for(sshd, **names))) as connection:
        exchanges = count_exchanges()
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


@pytest.mark.parametrize("names", CIPHERS.values(), ids=CIPHERS)
def test_a_byte_that_is_damaged_while_it_is_up(sshd, names):
    lost = Lost()
    with contextlib.closing(connect(settings_for(sshd, **names), lost)) as connection:
        damage(thread_of_connection())
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
        exchanges = count_exchanges()
        with open_stream(connection, server.address) as stream:
            assert receive_all(stream.socket) == BLOCK * 4
        assert exchanges


def count_exchanges():
    transport, seen = thread_of_connection(), []
    real = transport._handler_table[21]

    def newkeys(message):
        seen.append(True)
        real(message)

    transport._handler_table[21] = newkeys
    return seen


def test_streams_are_opened_and_closed_while_keys_are_exchanged(sshd, echo_server, monkeypatch):
    monkeypatch.setattr(packets.Packetizer, "REKEY_BYTES", 1 << 15)
    with contextlib.closing(connect(settings_for(sshd))) as connection:
        exchanges = count_exchanges()
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


def test_the_server_says_why_it_ends(scripted):
    lost, server = Lost(), scripted()
    with contextlib.closing(server.connect(lost)):
        server.send(1, 11, "going down for maintenance", "en")
        assert "the server says: going down for maintenance" in str(lost.wait())


def test_the_reply_to_a_probe_tells_the_round_trip(ssh_server):
    with contextlib.closing(connect(settings_for(ssh_server, keepalive=WAIT))) as connection:
        assert connection.rtt is None
        connection.check()
        wait_until(lambda: connection.rtt is not None)
        assert 0 < connection.rtt < WAIT


# Closing.


def test_close_waits_only_a_moment_for_a_server_that_does_not_answer(scripted):
    server = scripted()
    connection = server.connect()
    thread = thread_of_connection()
    stream, number = server.open(connection, window=10)
    stream.socket.sendall(b"x" * 100)
    stream.close()
    server.expect(94)
    begun = time.monotonic()
    connection.close()
    assert 0.2 < time.monotonic() - begun < PROMPT
    thread.join(WAIT)
    assert not thread.is_alive()
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
    thread, done = thread_of_connection(), threading.Event()

    def opened(stream):
        stream.close()
        connection.close()
        done.set()

    connection.open(TCPAddress(*echo_server.address), time.monotonic() + WAIT, opened)
    assert done.wait(WAIT)
    thread.join(WAIT)
    assert not thread.is_alive()


def test_the_interpreters_end_is_not_held_up(ssh_server):
    """Paramiko joins its threads at exit."""
    lost = Lost()
    connection = connect(settings_for(ssh_server), lost)
    thread = thread_of_connection()
    thread.stop_thread()
    thread.join(WAIT)
    assert not thread.is_alive()
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


@pytest.mark.parametrize("why", ["the proxy command ended with status 1", ""])
def test_what_is_under_the_stream_tells_more_than_a_reset(ssh_server, why):
    """As when a proxy command fails: its end of the socket goes with our greeting unread in it."""
    near, far = socket.socketpair()
    stream = Stream(near, failure=lambda: OSError(why)) if why else Stream(near)
    near.sendall(b"unread")
    far.close()
    with contextlib.closing(Cancellation()) as cancel, pytest.raises(CarrierError) as failed:
        backend.connect(settings_for(ssh_server), stream, time.monotonic() + WAIT, cancel, Lost())
    assert f"{why} (it has not sent an SSH version)" in str(failed.value)


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
