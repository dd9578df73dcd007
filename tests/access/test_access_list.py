"""``relay.access.access_list``: the decision about a client."""

import os
import random

import pytest

from relay.access.access_list import AccessList
from relay.streams.identity import Identity


def tcp(host):
    return Identity("tcp", host, host, 4000)


@pytest.mark.parametrize(
    ("allow", "deny", "decision"),
    [
        (None, None, (True, "")),
        (None, (), (True, "")),
        ((), None, (False, "allow")),
        ("10.0.0.0/8", None, (True, "allow cidr:10.0.0.0/8")),
        (["10.0.0.0/8"], ["10.0.0.0/8"], (False, "deny cidr:10.0.0.0/8")),
        (None, ["10.1.2.3"], (False, "deny cidr:10.1.2.3/32")),
        (["192.0.2.0/24", "user:root"], None, (False, "allow")),
        (None, ["user:root"], (True, "")),
    ],
)
def test_deny_has_precedence_and_what_no_rule_allows_is_denied(allow, deny, decision):
    access = AccessList(allow, deny)
    assert access.decide(tcp("10.1.2.3")) == decision
    assert bool(access) == (allow is not None or bool(deny))


@pytest.mark.parametrize(
    ("allow", "deny", "is_allowed"),
    [
        (None, None, True),
        (None, ["10.1.2.3", "dns:*.svc"], False),
        (None, ["192.0.2.1", "dns:*.svc"], True),
        ((), None, False),
        (["192.0.2.1"], None, False),
        (["10.0.0.0/8"], None, True),
        *((["192.0.2.1", rule], None, True) for rule in ("dns:a.svc", "dns:*.svc", "uri:spiffe://a/*", "cn:alice")),
        (["192.0.2.1", "cn:alice"], ["10.1.2.3"], False),
    ],
)
def test_an_address_decides_alone_what_no_certificate_could_change(allow, deny, is_allowed):
    assert AccessList(allow, deny).decide_by_address(tcp("10.1.2.3")).is_allowed is is_allowed


def test_what_is_remembered_about_an_address_holds_for_nobody_else():
    access = AccessList(["10.0.0.0/8", "login:alice"], ["login:eve"])
    for _ in range(2):
        assert access.decide(tcp("10.1.2.3")) == (True, "allow cidr:10.0.0.0/8")
        assert access.decide(tcp("10.1.2.3").with_login("socks", "eve")) == (False, "deny login:eve")
        assert access.decide(tcp("192.0.2.1").with_login("socks", "alice")) == (True, "allow login:alice")
        assert access.decide(tcp("192.0.2.1")) == (False, "allow")
        # A listener of the program's own may know more of a client than its kind says.
        assert access.decide(tcp("10.1.2.3")._replace(is_verified=False)) == (False, "allow")
        assert access.decide(tcp("10.1.2.3")._replace(login="eve")) == (False, "deny login:eve")
    for number in range(5000):
        access.decide(tcp(f"10.0.{number >> 8}.{number & 255}"))
    assert len(access._known) <= 4096


def test_a_file_without_a_rule_allows_nobody(tmp_path):
    (tmp_path / "list").write_text("# nobody\n")
    assert AccessList(tmp_path / "list").decide(tcp("10.1.2.3")) == (False, "allow")


@pytest.mark.parametrize("entry", [b"bytes", 7, None])
def test_an_entry_of_another_type_is_an_error(entry):
    with pytest.raises(TypeError, match="deny: expected a rule such as"):
        AccessList(None, [entry])


@pytest.mark.parametrize(
    ("name", "problem"),
    [(".", "not a regular file"), ("none", "No such file or directory; expected a file"), ("bad", "bad, line")],
)
def test_a_file_that_is_wrong_from_the_beginning_is_an_error(tmp_path, monkeypatch, name, problem):
    (tmp_path / "bad").write_text("nonsense\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^allow: {tmp_path}.*{problem}"):
        AccessList([f"file:{name}"])


def test_a_client_of_which_nothing_is_known_is_denied_by_any_list():
    assert AccessList(["0.0.0.0/0"]).decide(None) == (False, "unknown")
    assert AccessList(None, ["0.0.0.0/0"]).decide(None) == (False, "unknown")
    assert AccessList(None, ()).decide(None) == (True, "")


def test_an_address_that_a_server_has_only_reported_is_denied_but_not_allowed():
    client = Identity("ssh", "server", "10.1.2.3", 4000, server="server", is_verified=False)
    assert AccessList(["10.0.0.0/8"]).decide(client) == (False, "allow")
    assert AccessList(["ssh:server"]).decide(client) == (True, "allow ssh:server")
    assert AccessList(["ssh:server"], ["10.0.0.0/8"]).decide(client) == (False, "deny cidr:10.0.0.0/8")


def test_files_and_rules_make_one_list(tmp_path):
    allowed, denied = tmp_path / "allowed", tmp_path / "denied"
    allowed.write_text("10.0.0.0/8\n")
    denied.write_text("10.66.0.0/16\n")
    access = AccessList(["192.0.2.1", allowed], [f"file:{denied}"])
    assert access.files == (str(allowed), str(denied))
    hosts = ["192.0.2.1", "10.1.1.1", "10.66.1.1", "192.0.2.2"]
    assert [access.decide(tcp(host)).is_allowed for host in hosts] == [True, True, False, False]
    new = tmp_path / "new"
    new.write_text("192.0.2.2\n")
    os.replace(new, allowed)
    assert access.decide(tcp("10.1.1.1")).is_allowed  # what was read last
    access.refresh("web")
    assert [access.decide(tcp(host)).is_allowed for host in hosts] == [True, False, False, True]


@pytest.mark.parametrize(("others", "is_logged"), [([], True), (["10.66.0.0/16"], False)])
def test_a_deny_that_has_no_rule_any_more_is_a_warning(tmp_path, caplog, others, is_logged):
    allowed, denied = tmp_path / "allowed", tmp_path / "denied"
    for path in (allowed, denied):
        path.write_text("10.0.0.0/8\n")
    access = AccessList([allowed], [denied, *others])
    for path in (allowed, denied):
        path.write_text("# nothing\n")
    access.refresh("web")
    access.refresh("web")
    assert caplog.messages == ["web: deny: no rule is left in its files; it denies no client now"] * is_logged


def test_a_file_of_100_000_networks_is_one_list(tmp_path):
    chosen = random.Random(15)
    hosts = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in chosen.sample(range(1 << 24), 100_000)]
    path = tmp_path / "list"
    path.write_text("\n".join(f"{host}/32" for host in hosts[:99_000]))
    access = AccessList(path)
    assert all(access.decide(tcp(host)).is_allowed for host in hosts[98_000:99_000])
    assert not any(access.decide(tcp(host)).is_allowed for host in hosts[99_000:])
