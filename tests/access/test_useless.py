"""``relay.access.useless``: rules that can never match, each with its place and a remedy."""

import pytest

from relay.access.useless import Known, find_useless, possible_kinds


def found(allow=None, deny=None, listener="tcp", **has):
    return [str(one) for one in find_useless(allow, deny, listener, possible_kinds(listener, **has))]


@pytest.mark.parametrize(
    ("listener", "has", "matching"),
    [
        ("tcp", {}, {"cidr"}),
        ("tls", {}, {"cidr"}),
        ("tls", {"has_certificates": True}, {"cidr", "dns", "uri", "cn", "spki"}),
        ("unix", {}, {"user"}),
        ("unix", {"has_header": True, "has_login": True}, {"user", "cidr", "login", "cn", "i2p", "ssh"}),
        ("systemd", {}, {"user", "cidr"}),
        ("ssh", {}, {"ssh"}),
        ("i2p", {}, {"i2p"}),
    ],
)
def test_each_listener_has_its_kinds(listener, has, matching):
    rules = {
        "cidr": "10.0.0.0/8",
        "user": "user:root",
        "dns": "dns:a",
        "uri": "uri:a:b",
        "cn": "cn:a",
        "spki": f"spki:sha256:{'a' * 64}",
        "i2p": f"i2p:{'a' * 52}.b32.i2p",
        "login": "login:a",
        "ssh": "ssh:a",
    }
    texts = found(list(rules.values()), None, listener, **has)
    assert len(texts) == len(rules) - len(matching)
    assert not [text for text in texts for kind in matching if text.startswith(f"{kind}:")]
    denied = found(None, list(rules.values()), listener, **has)
    assert len(denied) == len(texts) - (listener == "ssh")  # it may deny an address that the server reports


@pytest.mark.parametrize(
    ("allow", "deny", "texts"),
    [
        (["10.0.0.0/8", "192.0.2.1"], ["192.0.2.2"], []),
        (
            ["user:root"],
            None,
            ["user:root: user: rules match no client of this listener; it needs a listener at a Unix socket"],
        ),
        (
            ["10.1.0.0/16", "10.0.0.0/8"],
            None,
            ["cidr:10.1.0.0/16: cidr:10.0.0.0/8, allow[1], is wider; leave it out"],
        ),
        (None, ["10.0.0.0/8"] * 2, ["cidr:10.0.0.0/8: it is there already, deny[0]; leave it out"]),
        (
            ["10.1.0.0/16", "192.0.2.1"],
            ["10.0.0.0/8", "192.0.2.1/32"],
            [
                "cidr:10.1.0.0/16: deny cidr:10.0.0.0/8, deny[0], wins; remove one of them",
                "cidr:192.0.2.1/32: deny cidr:192.0.2.1/32, deny[1], wins; remove one of them",
            ],
        ),
    ],
)
def test_the_reason_and_the_remedy(allow, deny, texts):
    assert found(allow, deny) == [text.replace(": ", " can never match: ", 1) for text in texts]


@pytest.mark.parametrize(
    ("rule", "known", "problem"),
    [
        ("login:bob", Known(user="bob"), ""),
        ("login:alice", Known(), ""),
        ("login:alice", Known(user="bob"), "the only user who can log in is bob; correct one of them"),
        ("10.0.0.0/8", Known(version=4), ""),
        ("::ffff:10.0.0.0/104", Known(version=4), ""),
        ("fd00::/8", Known(), ""),
        (
            "fd00::/8",
            Known(version=4),
            "all clients of this listener have addresses of IPv4; leave it out, or listen on [::]",
        ),
    ],
)
@pytest.mark.parametrize("option", ["allow", "deny"])
def test_what_is_known_of_the_clients(option, rule, known, problem):
    lists = {"allow": None, "deny": None, option: [rule]}
    texts = [str(one) for one in find_useless(**lists, listener="tcp", kinds={"cidr", "login"}, known=known)]
    assert [text.partition("never match: ")[2] for text in texts] == [problem] * bool(problem)


@pytest.mark.parametrize(
    ("allow", "deny", "is_covered"),
    [
        ("10.0.0.0/8", ["10.0.0.0/9", "10.128.0.0/9"], True),
        ("10.0.0.0/8", ["10.128.0.0/9", "10.0.0.0/10", "10.64.0.0/10"], True),
        ("10.0.0.0/8", ["10.0.0.0/9", "10.128.0.0/10"], False),
        ("10.0.0.0/8", ["10.0.0.0/9", "11.0.0.0/9"], False),
        ("10.0.0.0/9", ["9.128.0.0/9", "10.128.0.0/9"], False),
        ("fd00::/64", ["fd00::/65", "fd00:0:0:0:8000::/65"], True),
        ("192.0.2.0/31", ["192.0.2.0", "fd00::", "::ffff:192.0.2.1"], True),
    ],
)
def test_networks_of_deny_that_have_all_addresses_together(allow, deny, is_covered):
    problem = "several networks of deny, which have all its addresses, win; remove one of them"
    assert found([allow], deny) == ([f"cidr:{allow} can never match: {problem}"] if is_covered else [])


def test_patterns_cover_each_other():
    texts = found(["dns:web.svc", "dns:*.svc", "dns:**.svc", "cn:a"], ["cn:a"], "tls", has_certificates=True)
    assert [text.partition(" ")[0] for text in texts] == ["dns:web.svc", "dns:*.svc", "cn:a"]


def test_a_line_of_a_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("# ours\n10.0.0.0/8\n10.0.0.0/8\n")
    (text,) = found(["list"])
    path = tmp_path / "list"
    assert text.startswith(f"{path}, line 3: cidr:10.0.0.0/8 can never match: it is there already, {path}, line 2")
