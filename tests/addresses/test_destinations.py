"""``relay.addresses.destinations``: what is a destination, an address or a private key, and what is none."""

import base64
import hashlib
import hmac
import os
import pickle
import struct
import subprocess
import sys
import zlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from i2plib.sam import Destination

from relay.addresses.destinations import Peer, PrivateKey, b32_of, check_destination, is_base64

KEY = PrivateKey.generate()
FUZZED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HEAD = bytes(range(128)) * 3  # 384 bytes: an encryption and a signing key
NULL = HEAD + b"\0\0\0"
B32 = "a" * 52 + ".b32.i2p"


def encoded(data):
    """I2P's base64, without i2plib."""
    return base64.b64encode(data, b"-~").decode()


def certified(signing, encryption=0, payload=b""):
    """A destination with a key certificate."""
    return HEAD + struct.pack(">BHHH", 5, 4 + len(payload), signing, encryption) + payload


def b33(key=bytes(32), *, flags=0, signing=7, blinded=11, checksum=None):
    """The address of an encrypted lease set, by its specification."""
    types = struct.pack(">HH" if flags & 1 else "BB", signing, blinded)
    data = bytes([flags]) + types + key
    mask = struct.pack("<I", zlib.crc32(data[3:]) if checksum is None else checksum)[:3]
    data = bytes(a ^ b for a, b in zip(data, mask, strict=False)) + data[3:]
    return base64.b32encode(data).decode().rstrip("=").lower() + ".b32.i2p"


# Destinations.


@pytest.mark.parametrize(
    "data",
    [
        NULL,
        certified(7),
        certified(3, payload=bytes(4)),
        HEAD + b"\x01\0\x02ab",
        HEAD + b"\x01\0\x03ab\x17",  # its base64 ends in an X, which is no padding
    ],
)
def test_a_destination_is_known_by_the_hash_of_its_bytes(data):
    text = encoded(data)
    assert is_base64(text)
    assert check_destination(f" {text}\n") == text
    for padding in ("", "=", "=="):  # how much of it is there tells nothing
        assert check_destination(text.rstrip("=") + padding) == text
    assert b32_of(text) == base64.b32encode(hashlib.sha256(data).digest()).decode().lower()[:52] + ".b32.i2p"
    assert check_destination(b32_of(text)) == b32_of(text)
    assert b32_of(text) == Destination(text).base32 + ".b32.i2p"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "0 characters and does not end in .i2p; a destination is base64 of 516"),
        ("example.com", "11 characters and does not end in .i2p"),
        ("a" * 52, "52 characters and does not end in .i2p"),
        (encoded(NULL)[:386], "386 characters and does not end in .i2p"),
        (encoded(NULL)[:387], "290 bytes; a destination has at least 387"),  # so long a text is meant as base64
        (encoded(NULL)[:512], "384 bytes; a destination has at least 387"),
        (encoded(NULL)[:513], "513 characters cannot be base64"),
        (encoded(NULL)[:513] + "==", "513 characters cannot be base64"),
        (encoded(NULL).replace("A", "+", 1), "not of I2P's base64"),
        (encoded(NULL) + "!", "not of I2P's base64"),
        (encoded(NULL) + "===", "not of I2P's base64"),
        ("é" * 520, "not of I2P's base64"),
        (encoded(HEAD + b"\x06\0\0"), "certificate is of type 6"),
        (encoded(HEAD + b"\x05\0\x03abc"), "key certificate has 3 bytes"),
        (encoded(certified(7)[:-1]), "certificate has 4 bytes, and 3 are there"),
        (encoded(certified(7) + b"x"), "392 bytes of base64, and the destination ends after 391"),
        (KEY.base64, "may be a private key, which must stay secret"),
    ],
)
def test_what_is_no_destination_is_said(text, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        check_destination(text)
    assert len(str(raised.value)) < 250
    assert text[:40] not in str(raised.value) or len(text) < 40
    assert not is_base64(text)
    with pytest.raises(ValueError):  # noqa: PT011  (the same problem in most, but not in all of them)
        b32_of(text)


# Addresses.


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (B32, B32),
        (f" {B32.upper()} ", B32),
        ("b" * 51 + "q.b32.i2p", "b" * 51 + "q.b32.i2p"),
        ("Example.I2P", "example.i2p"),
        ("a-b.c--d.0.i2p", "a-b.c--d.0.i2p"),
        ("xn--4ca.i2p", "xn--4ca.i2p"),
        ("x" * 63 + ".i2p", "x" * 63 + ".i2p"),
    ],
)
def test_addresses_and_names_become_lower_case(text, normal):
    assert check_destination(text) == normal
    assert not is_base64(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("b" * 51 + ".b32.i2p", "51 characters; they are 52, or 56"),
        ("b" * 53 + ".b32.i2p", "53 characters; they are 52, or 56"),
        ("b" * 52 + ".b32.i2p", "end in a or q"),
        ("b" * 51 + "1.b32.i2p", "not of base32"),
        (".b32.i2p", "not of base32"),
        ("www." + B32, "not of base32"),
        ("a" * 56 + ".b32.i2p", "checksum of the 56 characters"),
        (".i2p", "not a host name"),
        ("a..i2p", "not a host name"),
        ("-a.i2p", "not a host name"),
        ("a-.i2p", "not a host name"),
        ("a b.i2p", "not a host name; a name in .i2p has letters, digits and - between dots"),
        ("ä.i2p", "xn-- form"),
        ("http://a.i2p", "not a host name"),
        ("x" * 64 + ".i2p", "68 characters; a name in .i2p has at most 67"),
    ],
)
def test_what_is_no_address_is_said(text, problem):
    with pytest.raises(ValueError, match=problem):
        check_destination(text)


@pytest.mark.parametrize(
    "address",
    [
        b33(),
        b33(os.urandom(32), signing=11),
        b33(os.urandom(32), flags=6),  # a secret and a key of the client are asked for
        b33(os.urandom(32), flags=1),
        b33(os.urandom(132), signing=3),
        b33(os.urandom(64), flags=1, signing=1),  # 111 characters; those above need no padding, or as much as they lack
    ],
)
def test_the_address_of_an_encrypted_lease_set_has_a_checksum(address):
    assert check_destination(address) == address
    assert check_destination(address.upper()) == address


@pytest.mark.parametrize(
    "address",
    [
        b33(bytes(32), checksum=0),
        b33(bytes(31) + b"\x01", checksum=zlib.crc32(bytes(32))),
        b33(bytes(33)),
        b33(bytes(64)),
        b33(flags=8),
        b33(signing=12),
        b33(flags=1, signing=256 + 7),
        "a" * 57 + ".b32.i2p",
        "a" * 59 + ".b32.i2p",
    ],
)
def test_a_wrong_checksum_is_seen(address):
    with pytest.raises(ValueError, match="checksum"):
        check_destination(address)


def test_the_published_address_of_an_encrypted_lease_set():
    """i2pd and Java make the same one of a public key; two characters that were mixed up are seen."""
    right = b33(hashlib.sha256(b"a public key").digest())
    wrong = right[:20] + right[21] + right[20] + right[22:]
    assert wrong != right
    with pytest.raises(ValueError, match="checksum"):
        check_destination(wrong)


# Private keys.

# What DEST GENERATE SIGNATURE_TYPE=7 of i2pd 2.45.1 made.
I2PD_KEY = PrivateKey.from_base64(
    "wVHvPpQx5slUcIyDcZSdnOLQAOXdhlIkRVVyERmtO~vBUe8-lDHmyVRwjINxlJ2c4tAA5d2GUiRFVXIRGa07-"
    "8FR7z6UMebJVHCMg3GUnZzi0ADl3YZSJEVVchEZrTv7wVHvPpQx5slUcIyDcZSdnOLQAOXdhlIkRVVyERmtO~vBUe8-"
    "lDHmyVRwjINxlJ2c4tAA5d2GUiRFVXIRGa07-"
    "8FR7z6UMebJVHCMg3GUnZzi0ADl3YZSJEVVchEZrTv7wVHvPpQx5slUcIyDcZSdnOLQAOXdhlIkRVVyERmtO~vBUe8-"
    "lDHmyVRwjINxlJ2c4tAA5d2GUiRFVXIRGa07-"
    "8FR7z6UMebJVHCMg3GUnZzi0ADl3YZSJEVVchEZrTv7wVHvPpQx5slUcIyDcZSdnOLQAOXdhlIkRVVyERmtO~vBUe8-"
    "lDHmyVRwjINxlJ2c4tAA5d2GUiRFVXIRGa07-9oGZdUcAhN~ODP-"
    "E1o0L5gwWlQhbSCHMSb7go86SACsBQAEAAcAAEW16ngWdack~iTMn3RNiHNCEA7-XDUThuaBayMy-QjHRS0~6sf6ARC~E914ZbcAo7mIAdJ81tW-"
    "AqQ8tR9GOyo1EeZXPW8py5UxwGXOQ77pPs-69aWTR5Fi0oVyDAxangZpmM-"
    "D5wEdGp1BdL0Fvx1QXsysTUPBxahaBEqtFFBjQgmTh376xkmGp1oyktnmmfA2oGX2EpLh-"
    "58fVivfZHOSuXgJhbmH0FubSxkKZFsT6tcO8k8yxXKyk3~wirYBgRkX76icdR9mhNvKDVQw3jH20-"
    "fsdqfOckThqhNUY0xN~mCKp3YFq~afc61P~yipenLdY~tf6VSsKCbATFeKdIBZq5Nqfsj6PYFrCKOwUrAZDPQotSXIw~SWZxqViCojQw=="
)


def private(signing, size, encryption=0, tail=b""):
    return certified(signing, encryption) + bytes(256 if encryption != 4 else 32) + b"\x01" * size + tail


def offline(signature, public, size, *, transient=7, signing=7):
    """A key whose signing key is elsewhere; a transient one stands in for it."""
    section = struct.pack(">IH", 2**31, transient) + bytes(public) + bytes(signature) + b"\x02" * size
    return certified(signing) + bytes(256) + bytes(32) + section


@pytest.mark.parametrize(
    "data",
    [
        KEY.data,
        NULL + bytes(256) + b"\x01" * 20,
        *(private(*kind) for kind in [(1, 32), (2, 48), (3, 66), (7, 32), (8, 32), (9, 32), (10, 64), (11, 32)]),
        *(private(*kind) for kind in [(4, 512), (5, 768), (6, 1024), (7, 32, 4), (1, 32, 1)]),
        offline(64, 32, 32),
        offline(64, 64, 32, transient=1),
        offline(64, 32, 32, signing=11),
    ],
)
def test_a_private_key_comes_back(data):
    key = PrivateKey.from_bytes(data)
    assert PrivateKey.from_base64(f"\n{encoded(data)} ") == key
    assert key.base64 == encoded(data)
    assert PrivateKey.from_bytes(bytearray(data)).data == data
    assert is_base64(key.destination)
    assert encoded(data).startswith(key.destination[:500])
    assert key.b32 == b32_of(key.destination)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"x", "1 bytes; a destination has at least 387"),
        (KEY.data[:391], "391 bytes; a private key of this destination has 679; this is the destination alone"),
        (KEY.data[:-1], "678 bytes; a private key of this destination has 679"),
        (KEY.data[:-32], "647 bytes; a private key of this destination has 679"),
        (KEY.data + b"x", "680 bytes"),
        (KEY.data[:-32] + bytes(32), "signing private key is empty"),
        (KEY.data[:-32] + bytes(36), "signing private key is empty"),
        (KEY.data[:-32] + bytes(32) + b"xyz", "empty, and of an offline signature not even the beginning"),
        (offline(64, 32, 32)[: 679 + 6], "685 bytes; a private key of this destination has 813"),
        (offline(64, 32, 31), "bytes; a private key of this destination has 813"),
        (offline(64, 32, 32, transient=65280), "transient key of its offline signature is of type 65280"),
        (private(65280, 32), "types 65280 and 0, which are not known"),  # for experiments, as all from there on
        (private(7, 32, 65280), "types 7 and 65280"),
        (HEAD + b"\xff" + KEY.data[385:], "certificate is of type 255"),
        (bytes(679), "signing private key is empty"),
        (bytes(857), "signing private key is empty"),
    ],
)
def test_what_is_no_private_key_is_said(data, problem):
    for make in (PrivateKey, PrivateKey.from_bytes, lambda data: PrivateKey.from_base64(encoded(data))):
        with pytest.raises(ValueError, match=problem) as raised:
            make(data)
        assert len(str(raised.value)) < 160


def test_nothing_is_no_private_key():
    with pytest.raises(ValueError, match="0 bytes"):
        PrivateKey.from_bytes(b"")
    with pytest.raises(ValueError, match="base64"):
        PrivateKey.from_base64(" ")


def test_a_damaged_character_is_seen_and_no_part_of_the_key_is_shown():
    text = KEY.base64
    for wrong in (text[:600] + "+" + text[601:], text + "x", text[:-4], f"{text[:600]} {text[600:]}"):
        with pytest.raises(ValueError, match="base64|bytes") as raised:
            PrivateKey.from_base64(wrong)
        assert text[590:598] not in repr(raised.value)
        assert raised.value.__context__ is None


def test_a_key_shows_its_address_alone():
    assert repr(KEY) == str(KEY) == f"<PrivateKey of {KEY.b32}>"
    assert pickle.loads(pickle.dumps(KEY)) == KEY != PrivateKey.generate()


def test_a_new_key_is_what_a_router_would_make():
    """Compare with the one that i2pd made."""
    key = PrivateKey.generate()
    assert len(key.data) == len(I2PD_KEY.data) == 679
    assert key.data[384:391] == I2PD_KEY.data[384:391] == struct.pack(">BHHH", 5, 4, 7, 0)
    for one in (key, I2PD_KEY):
        assert one.data[:352] == one.data[:32] * 11
        assert len(set(one.data[391:647])) > 100
    signature = Ed25519PrivateKey.from_private_bytes(key.data[-32:]).sign(b"text")
    Ed25519PublicKey.from_public_bytes(key.data[352:384]).verify(signature, b"text")


def test_new_keys_have_nothing_in_common():
    keys = [PrivateKey.generate().data for _ in range(20)]
    assert (
        len({key[:32] for key in keys}) == len({key[391:423] for key in keys}) == len({key[-32:] for key in keys}) == 20
    )


def test_a_derived_key_is_the_same_for_all_who_have_the_key():
    """Compare with RFC 5869, HKDF by SHA-256: another machine must find the same destination in years."""
    derived = KEY.derived("of a test")
    assert derived == PrivateKey.from_base64(KEY.base64).derived("of a test")
    secret = hmac.digest(bytes(32), KEY.data, "sha256")
    made = block = b""
    for number in range(1, 11):
        block = hmac.digest(secret, block + b"relay of a test" + bytes([number]), "sha256")
        made += block
    assert (derived.data[-32:], derived.data[:352], derived.data[391:647]) == (made[:32], made[32:64] * 11, made[64:])
    assert derived.consistent
    assert derived not in (KEY, KEY.derived("of another"), PrivateKey.generate().derived("of a test"))


@pytest.mark.parametrize("at", [352, 383, 647, 678])
def test_a_key_that_does_not_fit_its_destination_is_seen(at):
    damaged = bytearray(KEY.data)
    damaged[at] ^= 1
    assert KEY.consistent and I2PD_KEY.consistent
    assert not PrivateKey.from_bytes(damaged).consistent


@pytest.mark.parametrize(
    "data", [private(1, 32), private(11, 32), offline(64, 32, 32), NULL + bytes(256) + b"\x01" * 20]
)
def test_of_others_nothing_can_be_told(data):
    assert PrivateKey.from_bytes(data).consistent


def test_x25519_in_the_certificate_moves_the_signing_key():
    signing = Ed25519PrivateKey.generate()
    public = bytes(352) + signing.public_key().public_bytes_raw() + struct.pack(">BHHH", 5, 4, 7, 4)
    assert PrivateKey.from_bytes(public + bytes(32) + signing.private_bytes_raw()).consistent


# Peers.


def test_a_peer_is_the_text_of_its_destination():
    peer = Peer(KEY.destination)
    assert peer == KEY.destination and hash(peer) == hash(KEY.destination)
    assert (peer.port, peer.to_port, peer.b32, peer.place) == (0, 0, KEY.b32, KEY.b32)
    assert Peer(KEY.destination, 7, 8).place == f"{KEY.b32}:7"


# Whatever there is.


@FUZZED
@given(st.text() | st.text("abq27.-i2p=~A") | st.binary(max_size=800).map(encoded))
def test_whatever_the_text_it_is_checked_or_refused(text):
    try:
        normal = check_destination(text)
    except ValueError:
        assert not is_base64(text)
    else:
        assert check_destination(normal) == normal


@FUZZED
@given(st.binary(max_size=40).map(lambda tail: certified(7) + bytes(240) + tail), st.integers(0, 400))
def test_whatever_the_bytes_they_are_a_key_or_refused(data, end):
    try:
        key = PrivateKey.from_bytes(data[: len(data) - end])
    except ValueError as error:
        assert not isinstance(error, UnicodeError)
    else:
        assert PrivateKey.from_base64(key.base64) == key


def test_names_need_no_i2plib():
    """Importing it loads asyncio, which no other part of the module needs."""
    modules = "from relay.addresses import destinations as d\nfrom relay.transports.i2p import messages"
    code = f"{modules}\nd.check_destination('a.i2p')\nd.check_destination('{B32}')"
    done = [
        sys.executable,
        "-c",
        f"{code}\nimport sys\nassert not {{'i2plib', 'asyncio', 'cryptography'}} & set(sys.modules)",
    ]
    assert subprocess.run(done, timeout=30, check=False).returncode == 0
