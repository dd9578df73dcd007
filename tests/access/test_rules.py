"""``relay.access.rules``: the text of an entry, and what is wrong with it."""

import base64
import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.rules import (
    KINDS,
    Rule,
    file_of,
    is_written_as_rule,
    parse_entry,
    parse_rule,
    server_names,
    shortened,
)
from relay.addresses.destinations import PrivateKey

KEY = PrivateKey.generate()
HASH = hashlib.sha256(b"key").digest()
BASE64 = base64.b64encode(HASH).decode()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("cidr:10.0.0.0/8", "cidr:10.0.0.0/8"),
        ("10.0.0.0/8", "cidr:10.0.0.0/8"),
        (" 10.1.2.3 ", "cidr:10.1.2.3/32"),
        ("CIDR: fd00::/8", "cidr:fd00::/8"),
        ("::1", "cidr:::1/128"),
        ("::ffff:10.0.0.0/104", "cidr:10.0.0.0/8"),
        ("user:www-data", "user:www-data"),
        ("user:0033", "user:33"),
        ("dns:*.SVC", "dns:*.svc"),
        ("uri:spiffe://example/*", "uri:spiffe://example/*"),
        ("uri:*", "uri:*"),
        ("uri:**", "uri:**"),
        ("cn:Ann Smith", "cn:Ann Smith"),
        (f"spki:sha256:{BASE64}", f"spki:sha256:{BASE64}"),
        (f"spki:SHA256:{BASE64.rstrip('=')}", f"spki:sha256:{BASE64}"),
        (f"spki:sha256:{HASH.hex()}", f"spki:sha256:{BASE64}"),
        (f"spki:sha256:{HASH.hex(':').upper()}", f"spki:sha256:{BASE64}"),
        (f"i2p:{KEY.b32}", f"i2p:{KEY.b32}"),
        (KEY.b32.upper(), f"i2p:{KEY.b32}"),
        (KEY.destination, f"i2p:{KEY.b32}"),
        (f"i2p:{KEY.destination}", f"i2p:{KEY.b32}"),
        ("login:alice", "login:alice"),
        ("login:a:b", "login:a:b"),
        ("login:" + "a" * 1024, "login:" + "a" * 1024),
        ("ssh:ssh://me@Server:22", "ssh:me@server:22"),
    ],
)
def test_an_entry_becomes_a_rule(text, rule):
    found = parse_rule(text)
    assert found.text == rule == f"{found.kind}:{rule.partition(':')[2]}"
    assert found.value
    assert parse_rule(rule) == found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cidr:10.0.0.1/8", "cidr:10.0.0.1/8: it has host bits set; write 10.0.0.0/8"),
        ("10.0.0.1/8", "cidr:10.0.0.1/8: it has host bits set"),
        ("cidr:", "cidr:: the value is empty; write one after the colon"),
        ("user:\x1b[2J", "not printable; leave it out"),
        ("login:" + "a" * 10_000, "it has 10000 characters; at most 1024 are allowed"),
        ("dns:a..b", "a label is empty"),
        ("dns:b\u00fccher.example", "certificates have names in ASCII; write the name as it is in the DNS, with xn--"),
        ("dns:web*.svc", "a wildcard stands for a whole segment"),
        ("uri:example/*", "the URI has no scheme; write one such as spiffe://example/\\*"),
        ("spki:BASE64", "expected sha256: and the hash"),
        ("spki:sha256", "expected sha256: and the hash"),
        (f"spki:md5:{BASE64}", "expected sha256: and the hash"),
        (f"spki:sha256:{BASE64[:5]}!{BASE64[5:]}", "that is no SHA-256 hash"),
        ("spki:sha256:abc", "that is no SHA-256 hash"),
        ("spki:sha256:" + "x" * 64, "that is no SHA-256 hash"),
        ("ssh:?", "ssh:\\?: no server is named; write ssh:HOST"),
        ("i2p:example.i2p", "a name may be reassigned"),
        ("example.i2p", "a name may be reassigned"),
        ("alice", "the kind is missing; write user:alice, login:alice or cn:alice$"),
        ("i2p:" + "A" * 2000, "these are 1500 bytes of base64"),
        ("A" * 387, "these are 290 bytes; a destination has at least 387"),
        ("group:a:b", "^group: is no kind of rule"),
        ("/no/such:file", "^that is no rule"),
        ("group:admins", "group: is no kind of rule; the kinds in a file are cidr:, user:.*, login: and ssh:$"),
        ("file:x", "file: is no kind of rule; the kinds in a file are cidr:, user:.*, login: and ssh:$"),
        ("/no/such/file", "that is no rule; write KIND:VALUE"),
        ("", "that is no rule; write KIND:VALUE"),
    ],
)
def test_an_error_says_what_to_write(text, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        parse_rule(text)
    assert len(str(raised.value)) < 500
    assert str(raised.value).isprintable()


@given(st.one_of(st.text(max_size=60), st.tuples(st.sampled_from(KINDS), st.text(max_size=60)).map(":".join)))
def test_any_text_is_a_rule_or_an_error_in_one_line(text):
    try:
        rule = parse_rule(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert parse_rule(rule.text) == rule
        assert rule.text.isprintable()


def test_an_entry_may_be_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("friends").write_text("")
    Path("10.0.0.1").write_text("")
    assert parse_entry("friends") == parse_entry("file:friends") == parse_entry("./friends") == f"{tmp_path}/friends"
    assert parse_entry("file:none") == f"{tmp_path}/none"
    assert parse_entry("file:a:b") == f"{tmp_path}/a:b"
    assert file_of("friends") == f"{tmp_path}/friends" and file_of("10.0.0.1") is file_of("alice") is None
    assert parse_entry("10.0.0.1") == Rule("cidr", (4, 32, 0x0A000001), "cidr:10.0.0.1/32")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_entry("~/friends") == f"{tmp_path}/friends"
    Path("user:").write_text("")
    with pytest.raises(ValueError, match="the value is empty"):
        parse_entry("user:")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("alice", "the kind is missing; write user:alice, login:alice, cn:alice or file:alice$"),
        ("group:a", "group: is no kind of rule; the kinds are cidr:, user:.*, ssh: and file:$"),
        ("", "that is no rule; write KIND:VALUE, the kinds are cidr:"),
        ("none.txt", "there is no file {here}/none.txt; correct the path, or write the kind of a rule before it"),
        ("d/none", "there is no file {here}/d/none; correct the path"),
        ("/no/such:file", "there is no file /no/such:file; correct the path"),
        ("example.i2p", "a name may be reassigned"),
        ("10.0.0.0/33", "cidr:10.0.0.0/33: /33 is out of range"),
        ("n\0ul/\x1b", r"there is no file {here}/n\\x00ul/\\x1b; correct"),
    ],
)
def test_an_entry_that_is_neither_a_rule_nor_a_file(tmp_path, monkeypatch, entry, problem):
    monkeypatch.chdir(tmp_path)
    start = re.escape(f"{entry!r} is neither a rule nor a file: ")
    with pytest.raises(ValueError, match=f"^{start}{problem.format(here=tmp_path)}"):
        parse_entry(entry)


def test_what_can_only_be_a_rule():
    assert [is_written_as_rule(text) for text in ("cn:a", " 10.0.0.0/8", "friends")] == [True, True, False]


def test_what_an_error_repeats_is_short():
    assert shortened("x" * 80) == "x" * 80 and shortened("x" * 81) == "x" * 80 + "…"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("server", {"server"}),
        ("me@Server", {"me@server", "server"}),
        ("ssh://me@server:2222", {"me@server:2222", "me@server", "server:2222", "server"}),
        ("[::1]:22", {"[::1]:22", "[::1]"}),
        ("::1", {"::1"}),
        ("ssh://me@server?keyfile=x", {"me@server", "server"}),
        ("ssh://boX/", {"box"}),
    ],
)
def test_a_server_has_several_names(text, names):
    assert set(server_names(text)) == names
