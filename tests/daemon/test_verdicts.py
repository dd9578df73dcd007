"""The comparison of two files: every key of a tunnel and of a hop has a verdict."""

from __future__ import annotations

import contextlib
import os
import re

import pytest

from relay.config import read
from relay.config.models import Defaults, Hop, Tunnel
from relay.daemon.options import Options
from relay.daemon.plan_from_file import plans_of
from relay.daemon.verdicts import EFFECTS, Verdict, compare, with_files

PLAIN = '[tunnels.one]\nlisten = "127.0.0.1:8080"\ntarget = "db:1"\n'
PROXY = '[tunnels.one]\nlisten = "socks5://127.0.0.1:8080"\n'
LOGIN = f'{PROXY}user = "me"\n'
AT_I2P = '[tunnels.one]\nlisten = "i2p:"\ntarget = "db:1"\n'
AT_SSH = '[tunnels.one]\nlisten = "ssh://server?listen=:8080"\ntarget = "db:1"\n'
PEER = "a" * 52 + ".b32.i2p"

# key → the file without it or with one value, what is added, what is there instead, the verdict, the keys that differ
KEYS = {
    "nconnect": (PLAIN, "", "nconnect = 3", "tuned"),
    "timeout": (PLAIN, "timeout = 2", "timeout = 3", "tuned"),
    "connect_timeout": (PLAIN, "", "connect_timeout = 3", "tuned"),
    "idle_timeout": (PLAIN, "", "idle_timeout = 3", "tuned"),
    "linger": (PLAIN, "", "linger = 3", "tuned"),
    "first_byte_timeout": (PLAIN, "", "first_byte_timeout = 3", "tuned"),
    "drain": (PLAIN, "", "drain = 3", "tuned"),
    "drain_spread": (PLAIN, "", "drain_spread = 3", "tuned"),
    "warm": (PLAIN, "", "warm = 2", "tuned"),
    "warm_for": (PLAIN, "", "warm_for = 3", "tuned"),
    "limit": (PLAIN, "", 'limit = [{ rate = "20/10s" }]', "tuned"),
    "source": (PLAIN, "", 'source = "192.0.2.1"', "tuned"),
    "accept_proxy": (PLAIN, "", 'accept_proxy = ["192.0.2.1"]', "tuned"),
    "send_proxy": (PLAIN, "", 'send_proxy = "v2"', "tuned"),
    "tag": (PLAIN, "", 'tag = "it"', "tuned"),
    "carrier_sharing": (PLAIN, "", 'carrier_sharing = "per-worker"', "moved"),
    "workers": (PLAIN, "", "workers = 2", "moved"),
    "mptcp": (PLAIN, "", "mptcp = true", "moved"),
    "required": (PLAIN, "", "required = true", "tuned"),
    "on_reload": (PLAIN, "", 'on_reload = "cut"', "tuned"),
    "probe": (PLAIN, "", 'probe = "connect"', "tuned"),
    "probe_interval": (PLAIN + 'probe = "connect"\n', "", "probe_interval = 3", "tuned"),
    "sam": (PLAIN.replace("db:1", "i2p://name.i2p"), "", 'sam = "127.0.0.2:7656"', "rerouted"),
    "listen": ('[tunnels.one]\ntarget = "db:1"\n', "listen = 1", "listen = 2", "moved"),
    "listen_via": (AT_SSH, "", 'listen_via = ["ssh://other"]', "moved"),
    "target": ("[tunnels.one]\nlisten = 1\n", 'target = "db:1"', 'target = "db:2"', "rerouted"),
    "via": (PLAIN, "", 'via = ["ssh://bastion"]', "rerouted"),
    "policy": (f'{PLAIN}via = [["ssh://a"], ["ssh://b"]]\n', "", 'policy = "spread"', "rerouted"),
    "rule": (PROXY, "", 'rule = ["*=direct"]', "rerouted"),
    "user": (PROXY + 'password = "x"\n', 'user = "me"', 'user = "you"', "tuned"),
    "password": (LOGIN, 'password = "x"', 'password = "y"', "tuned"),
    "password_file": (LOGIN, 'password_file = "x"', 'password_file = "y"', "tuned"),
    "password_env": (LOGIN, 'password_env = "X"', 'password_env = "Y"', "tuned"),
    "keys": (AT_I2P, 'keys = "x.dat"', 'keys = "y.dat"', "moved"),
    "session": (AT_I2P, "", 'session = "name"', "moved"),
    "transient": (AT_I2P + 'sam = "127.0.0.1:7656"\n', "", "transient = true", "moved"),
    "allow": (AT_I2P, "", f'allow = ["{PEER}"]', "tuned"),
    "deny": (AT_I2P, "", f'deny = ["{PEER}"]', "tuned"),
}


@pytest.fixture
def load(tmp_path):
    """Reads a text as a file."""

    def make(text):
        path = tmp_path / "relay.toml"
        path.write_text(text)
        path.chmod(0o600)
        config = read(str(path))
        plans = plans_of(config, Options())
        assert config.problems.in_order() == []
        return [with_files(plan) for plan in plans]

    return make


def test_every_key_of_a_tunnel_has_a_verdict_and_a_row():
    assert EFFECTS.keys() == Tunnel.model_fields.keys()
    assert KEYS.keys() == Tunnel.model_fields.keys()
    assert Defaults.model_fields.keys() <= EFFECTS.keys()


@pytest.mark.parametrize("key", KEYS)
def test_each_key_of_a_tunnel(load, key):
    text, before, after, verdict = KEYS[key]
    old, new = load(text + before + "\n"), load(text + after + "\n")
    [change] = compare(old, new)
    assert change.verdict.word == verdict
    assert key in change.keys
    assert set(change.keys) - {key} <= {"session", "listen"}, "a session, and the content of a file"
    assert [one.verdict for one in compare(new, load(text + after + "\n"))] == [Verdict.SAME]


@pytest.mark.parametrize("key", [name for name in Defaults.model_fields if name != "sam"])
def test_each_key_of_the_defaults(load, key):
    _, before, after, verdict = KEYS[key]
    [change] = compare(load(f"[defaults]\n{before}\n{PLAIN}"), load(f"[defaults]\n{after}\n{PLAIN}"))
    assert (change.verdict.word, change.keys) == (verdict, (key,))


def test_the_bridge_of_the_defaults(load):
    """It concerns those that are at I2P; those that listen there have another destination's home."""
    text = (
        AT_I2P
        + PLAIN.replace("one", "two").replace("db:1", "i2p://name.i2p")
        + PLAIN.replace("one", "three").replace("8080", "1")
    )
    found = compare(load(text), load(f'[defaults]\nsam = "127.0.0.2:7656"\n{text}'))
    assert [(change.verdict.word, change.keys) for change in found] == [
        ("moved", ("sam",)),
        ("rerouted", ("sam",)),
        ("same", ()),
    ]


# Of these texts of TOML each key of a hop allows one.
VALUES = ["true", "false", "3", "3.5", '"x"', "{ quantity = 2 }", '"127.0.0.1:7657"', '"openssh"', '"accept-new"']
VALUES += ['"yes"', '"2MiB"', f'"SHA256:{"A" * 43}"']


# A hop of each kind, in the words of the descriptions of its keys.
BASES = {
    "ssh": "ssh://bastion",
    "i2p": "i2p:",
    "socks5": "socks5://me@proxy:1080",
    "https": "https://proxy",
    "wss": "wss://h",
    "tor": "tor:",
}


@pytest.mark.parametrize("key", Hop.model_fields)
def test_each_key_of_a_hop_reroutes(load, key):
    """A hop is compared as a value, so that a new option needs no row."""
    description = Hop.model_fields[key].description or ""
    kind = next((word for word in BASES if re.search(rf"\b{word}\b", description)), "ssh")
    base = BASES[kind]
    text = PLAIN.replace("db:1", "name.i2p:1" if base == "i2p:" else "db:1") + 'via = ["hop"]\n[hops.hop]\n'
    old, found = load(f'{text}address = "{base}"\n'), []
    others = (
        ['address = "ssh://other"'] if key == "address" else [f'address = "{base}"\n{key} = {one}' for one in VALUES]
    )
    for other in others:
        with contextlib.suppress(AssertionError):
            found += compare(old, load(f"{text}{other}\n"))
    changed = [change for change in found if change.verdict is not Verdict.SAME]
    assert changed, "no value was allowed"
    assert all((change.verdict.word, change.keys) == ("rerouted", ("via",)) for change in changed)


def test_multipath_tcp_to_the_target_alone_reroutes(load):
    text = PLAIN.replace("127.0.0.1:8080", "unix:///run/x")
    [change] = compare(load(text), load(text.replace("db:1", "tcp://db:1?mptcp=yes")))
    assert (change.verdict.word, change.keys) == ("rerouted", ("mptcp",))


def test_the_order_of_the_file_and_names(load):
    old = load(PLAIN + PLAIN.replace("one", "two").replace("8080", "8081"))
    new = load(PLAIN.replace("one", "three").replace("8080", "8082") + PLAIN)
    assert [str(change) for change in compare(old, new)] == ["three: new", "one: same", "two: gone"]


def test_the_strongest_verdict_wins(load):
    other = '[tunnels.one]\nlisten = "127.0.0.1:8081"\ntarget = "db:2"\nnconnect = 3\n'
    [change] = compare(load(PLAIN), load(other))
    assert str(change) == "one: moved (nconnect, listen, target)"


def test_equal_meanings_are_the_same(load):
    """Compared are values after defaults and hops, not texts."""
    one = load(PLAIN + 'via = ["ssh://me@bastion"]\ntimeout = "none"\n')
    two = load(
        '[hops]\nb = "ssh://me@bastion"\n[defaults]\nlinger = 60\n[tunnels.one]\nlisten = 8080\n'
        'target = "tcp://db:1"\nvia = ["b"]\n'
    )
    assert compare(one, two)[0].verdict is Verdict.SAME


def test_the_target_names_the_session_of_a_destination(load):
    [change] = compare(load(AT_I2P), load(AT_I2P.replace("db:1", "db:2")))
    assert (change.verdict.word, change.keys) == ("moved", ("target", "session"))
    named = AT_I2P + 'session = "name"\n'
    [change] = compare(load(named), load(named.replace("db:1", "db:2")))
    assert (change.verdict.word, change.keys) == ("rerouted", ("target",))


def test_tls_keys_are_an_identity_and_their_authorities_an_access_list(load):
    text = PLAIN.replace('"127.0.0.1:8080"', '"tls://:8080?cert=a.pem{}"')
    [change] = compare(load(text.format("")), load(text.format("&key=b.pem")))
    assert (change.verdict.word, change.keys) == ("moved", ("listen",))
    for more in ("&client_ca=ca.pem", "&alpn=h2,http/1.1", "&groups=X25519"):
        [change] = compare(load(text.format("")), load(text.format(more)))
        assert (change.verdict.word, change.keys) == ("tuned", ("listen",))


@pytest.mark.parametrize(
    ("text", "key", "verdict"),
    [
        (PLAIN.replace('"127.0.0.1:8080"', '"tls://:8080?cert={}"'), "listen", "tuned"),
        (LOGIN + 'password_file = "{}"\n', "listen", "tuned"),
        (PROXY.replace('"socks5://', '"socks5://me@').replace(':8080"', ':8080?password_file={}"'), "listen", "tuned"),
        (PLAIN.replace("db:1", "tls://db:1?ca={}"), "target", "rerouted"),
    ],
)
def test_a_file_that_has_changed_on_disk(load, tmp_path, text, key, verdict):
    path = tmp_path / "file"
    path.write_text("1")
    old = load(text.format(path))
    assert compare(old, load(text.format(path)))[0].verdict is Verdict.SAME
    other = tmp_path / "other"
    other.write_text("22")
    os.replace(other, path)
    [change] = compare(old, load(text.format(path)))
    assert (change.verdict.word, change.keys) == (verdict, (key,))
