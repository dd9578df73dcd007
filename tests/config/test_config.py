"""``relay.toml``: what may be in it, and everything that is wrong with it, at once and with its line."""

import functools
import itertools
import json
import os
import re
import tomllib

import jsonschema
import pytest
import tomli_w
from config_rig import SECRETS, WHOLE, T, only, problems_of, read_text
from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.addresses.hops import Command, Proxy
from relay.addresses.https import HTTPSProxy
from relay.addresses.i2p import I2PRouter
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.options import options_of
from relay.addresses.parse import parse_hop
from relay.addresses.ssh import SSHServer
from relay.addresses.tor import TorProxy
from relay.addresses.values import TCPAddress
from relay.addresses.websocket import WSSProxy
from relay.config.models import File, Hop, Tunnel, hop_options


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_text, tmp_path)


@pytest.fixture
def problems(tmp_path):
    return functools.partial(problems_of, tmp_path)


def test_a_byte_order_mark_begins_a_file_and_counts_as_no_character(read, problems):
    assert problems(b"\xef\xbb\xbf" + WHOLE.encode()) == []
    assert only(problems(b"\xef\xbb\xbfa = 1\na = 2\n")).startswith("2: this is not TOML")


def test_a_file_with_everything(read):
    found = read(WHOLE)
    assert found.problems.in_order() == []
    entries = {entry.name: entry for entry in found.entries}
    assert list(entries) == ["db", "site", "page", "browser", "socket"]
    bastion = SSHServer("bastion", "me")
    inner = SSHServer("inner", "me", keyfile="a key", accept_new=True, keepalive=None, compress=False)
    options = (("inbound.allowZeroHop", "true"), ("inbound.quantity", "2"))
    assert entries["db"].via == (bastion, inner)
    assert entries["db"].listen == TCPAddress("127.0.0.1", 5432)
    assert entries["site"].listen_via == (bastion,)
    assert entries["page"].via == (I2PRouter(in_depth=1, options=options),)
    assert [(rule.text, rule.route) for rule in entries["browser"].rules] == [
        ("*.corp.example", (bastion, inner)),
        ("*.i2p", (I2PRouter(),)),
        ("10.0.0.0/8", None),
        ("*", (SSHServer("other"),)),
    ]
    assert entries["site"].bridges == (TCPAddress("127.0.0.1", 7657),)
    assert entries["db"].bridges is None
    assert [entry.is_proxy for entry in entries.values()] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "path",
    [
        ("tunnels", "t", "timeout"),
        ("tunnels", "t", "connect_timeout"),
        ("tunnels", "t", "idle_timeout"),
        ("defaults", "linger"),
        ("defaults", "drain"),
        ("defaults", "drain_spread"),
        ("defaults", "warm_for"),
        ("defaults", "probe_interval"),
        ("shutdown_delay",),
        ("log_interval",),
        ("hops", "h", "keepalive"),
        ("hops", "h", "renew_after"),
    ],
)
def test_each_duration_may_have_a_unit(read, path):
    table, document = path[:-1], {"tunnels": {"t": {"listen": ":0", "target": "h:1"}}}
    document["hops"] = {"h": {"address": "ssh://h"}}
    inner = document
    for name in table:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = "10m"
    found = read(tomli_w.dumps(document))
    assert found.problems.in_order() == []
    value = found.file
    for name in path:
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    assert value == 600


def test_the_defaults_hold_where_a_tunnel_says_nothing(read):
    tunnels = {entry.name: entry.tunnel for entry in read(WHOLE).entries}
    assert (tunnels["db"].nconnect, tunnels["site"].nconnect) == (-1, 10)
    assert tunnels["db"].connect_timeout == 5.5
    assert tunnels["db"].idle_timeout == float("inf")
    assert tunnels["db"].linger == 0
    assert (tunnels["db"].required, tunnels["socket"].required) == (True, False)
    # that of the bridge, where there is one on the way
    assert {name: tunnel.sam for name, tunnel in tunnels.items() if tunnel.sam} == dict.fromkeys(
        ["site", "page", "browser", "socket"], "127.0.0.1:7657"
    )


OF_ALL = "[defaults]\nlimit = [{ rate = '5/m' }]\nallow = ['10.0.0.0/8', 'user:ann']\ndeny = ['10.6.0.0/16']\n"


def test_a_list_of_a_tunnel_replaces_that_of_the_defaults(read):
    found = read(OF_ALL + T + "[tunnels.own]\nlisten = ':0'\ntarget = 'a:1'\nlimit = []\nallow = ['::1']\ndeny = []\n")
    assert found.problems.in_order() == []
    first, own = (entry.tunnel for entry in found.entries)
    assert ([str(limit) for limit in first.limit], first.allow) == (["per=ip,rate=5/m"], ["10.0.0.0/8", "user:ann"])
    assert first.deny == ["10.6.0.0/16"]
    assert (own.limit, own.allow, own.deny) == ((), ["::1"], [])


TWO = "[tunnels.t]\nlisten = ':0'\ntarget = ['a:1', 'b:2']\n"


def test_several_targets_and_ways(read):
    found = read(TWO + "via = [['one'], ['ssh://two', 'one']]\npolicy = 'spread'\n[hops]\none = 'ssh://me@one'\n")
    assert found.problems.in_order() == []
    (entry,) = found.entries
    one, two = SSHServer("one", "me"), SSHServer("two")
    first, second = TCPAddress("a", 1), TCPAddress("b", 2)
    assert (entry.via, entry.target) == ((one,), first)
    assert entry.others == (((two, one), first), ((one,), second), ((two, one), second))
    assert entry.tunnel.policy == "spread"


def test_one_target_in_a_list_is_one_target(read):
    (entry,) = read("[tunnels.t]\nlisten = ':0'\ntarget = ['a:1']\n").entries
    assert (entry.target, entry.others) == (TCPAddress("a", 1), ())


def test_the_default_of_warm_is_not_for_proxies(read):
    found = read("[defaults]\nwarm = 2\n" + T + "[tunnels.proxy]\nlisten = 'socks5://127.0.0.1:0'\n")
    assert found.problems.in_order() == []
    assert [(entry.name, entry.tunnel.warm) for entry in found.entries] == [("t", 2), ("proxy", None)]


SOCKS = "[tunnels.t]\nlisten = 'socks5://:0'\n"

# A file, with | between its lines => how the one line about it begins.
MISTAKES = r"""
# several targets and ways
[tunnels.t] | listen = ':0' | target = ['a:1', 'b'] => 3: tunnels.t.target[1]:
[tunnels.t] | listen = ':0' | target = ['a:1', 5] => 3: tunnels.t.target[1]: expected text in quotes, got a number
[tunnels.t] | listen = ':0' | target = [] => 3: tunnels.t.target:
TWO | via = [['ssh://a'], ['nothing']] => 4: tunnels.t.via[1][0]: there is no hop 'nothing'
TWO | via = [['ssh://a'], 'ssh://b'] => 4: tunnels.t.via[1]: expected a list such as ["…", "…"], got text
TWO | policy = 'best' => 4: tunnels.t.policy: expected 'first', 'spread' or 'fastest'
T | policy = 'first' => 4: tunnels.t.policy: there is one target and one route; a list of target or of via has several
SOCKS | via = [['ssh://a'], ['ssh://b']] => 3: tunnels.t.via: a proxy has one route to each target; use rule for several
[tunnels.t] | listen = ':0' | target = ['anywhere', 'b:2'] => 3: tunnels.t.target[0]:
# unknown keys, with the nearest spelling
tunel = 1 | T => 1: tunel: there is no such key (did you mean tunnels?)
T | conect_timeout = 3 => 4: tunnels.t.conect_timeout: there is no such key (did you mean connect_timeout?)
T | zzz = 3 => 4: tunnels.t.zzz: there is no such key; allowed are nconnect
T | "two\nlines" = 3 => 4: tunnels.t."two\nlines": there is no such key
T | [defaults] | drian = 3 => 5: defaults.drian: there is no such key (did you mean drain?)
T | [hops.x] | address = "i2p:" | keyfle = "k" => 6: hops.x.keyfle: there is no such key (did you mean keyfile?)
# wrong values
T | timeout = 'soon' => 4: tunnels.t.timeout: expected a time such as 90, 1.5s, 10m or 2h, got 'soon'
T | timeout = true => 4: tunnels.t.timeout: expected a number of seconds, or a time such as '10m' or 'none'
T | timeout = '0m' => 4: tunnels.t.timeout: must be greater than 0, got 0.0; use 'none' for no limit
T | linger = '-1m' => 4: tunnels.t.linger: must be at least 0, got -60.0; use 'none' for no limit
T | probe_interval = '10ms' => 4: tunnels.t.probe_interval: must be at least 1 second, got 10ms
T | warm_for = '5 minutes' => 4: tunnels.t.warm_for: expected a time such as 90, 1.5s, 10m or 2h, got '5 min
T | [hops.x] | address = 'ssh://h' | keepalive = 'x'
  => 6: hops.x.keepalive: expected a time such as 90, 1.5s, 10m or 2h, got 'x'
T | timeout = 0 => 4: tunnels.t.timeout: must be greater than 0, got 0; use 'none' for no limit
T | linger = -1 => 4: tunnels.t.linger: must be at least 0, got -1; use 'none' for no limit
T | drain = nan => 4: tunnels.t.drain: must be at least 0, got nan
T | drain_spread = -1 => 4: tunnels.t.drain_spread: must be at least 0 and have a limit, got -1; use 0
T | drain_spread = inf => 4: tunnels.t.drain_spread: must be at least 0 and have a limit, got inf; use 0
T | drain_spread = 'none' => 4: tunnels.t.drain_spread: must be at least 0 and have a limit, got none; use 0
shutdown_delay = inf | T => 1: shutdown_delay: must be at least 0 and have a limit, got inf; use 0
resume_memory = 4 | T => 1: resume_memory: expected a size such as '64MiB'
resume_memory = '4M' | T => 1: resume_memory: expected a size such as 4MiB or 512kB, got '4M'
resume_memory = '4kB' | T => 1: resume_memory: must be 1024KiB or more, got 4kB
[hops.x] | address = 'ssh://h' | resume_buffer = '1kB' | T => 1: hops.x: hop 'ssh://h': resume_buffer: '1kB': must be
T | nconnect = 0 => 4: tunnels.t.nconnect: must be at least 1, got 0; use -1 for no limit
T | nconnect = 1.0 => 4: tunnels.t.nconnect: expected a whole number
T | warm = -1 => 4: tunnels.t.warm: must be from 0 to 1024, got -1; use 0 for none
T | limit = 5 => 4: tunnels.t.limit: expected a list of tables
T | limit = [{ speed = 1 }] => 4: tunnels.t.limit: unknown key 'speed'; use one of per, rate
T | limit = [{ rate = '3/s' }, { rate = 20 }] => 4: tunnels.t.limit: table 2: rate: expected text, got int
T | limit = [{ rate = '20' }] => 4: tunnels.t.limit: rate: expected a number and a time, got '20'
T | [tunnels.u] | listen = ":1" | target = "localhost:1" | [defaults] | allow = ['10.0.0.1/8'] => 8: defaults.allow[0]:
T | [defaults] | limit = [{ rate = '20' }] => 5: defaults.limit: rate: expected a number and a time, got '20'
T | limit = [{ rate = 20 }] => 4: tunnels.t.limit: rate: expected text, got int
T | warm = 1.5 => 4: tunnels.t.warm: expected a whole number
T | warm_for = 'none' => 4: tunnels.t.warm_for: must have a limit, got inf; use 30 seconds
T | warm_for = inf => 4: tunnels.t.warm_for: must have a limit, got inf; use 30 seconds
T | warm_for = 0 => 4: tunnels.t.warm_for: must be greater than 0, got 0; use 30 seconds
T | probe_interval = 0 => 4: tunnels.t.probe_interval: must be at least 1 second, got 0
T | probe_interval = nan => 4: tunnels.t.probe_interval: must be at least 1 second, got nan
T | drain_spread = nan => 4: tunnels.t.drain_spread: must be at least 0 and have a limit, got nan; use 0
SOCKS | warm = 1
  => 3: tunnels.t.warm: the clients of a proxy name their targets, so none can be opened before; leave it out
T | mptcp = 1 => 4: tunnels.t.mptcp: expected true or false, got a number
[tunnels.t] | listen = 'unix:///x' | target = 'a:1' | via = ['ssh://b'] | mptcp = true
  => 5: tunnels.t.mptcp: relay neither listens nor connects over TCP here; leave it out
SOCKS | mptcp = true => 3: tunnels.t.mptcp: a proxy has none; leave it out
[tunnels.t] | listen = ':0' | target = 'tcp://a:1?mptcp=yes' | via = ['ssh://b']
  => 4: tunnels.t.via: tcp://a:1?mptcp=yes: ssh://b connects to it over plain TCP; leave mptcp out
T | required = 1 => 4: tunnels.t.required: expected true or false, got a number
T | via = 'i2p:' => 4: tunnels.t.via: expected a list such as ["…", "…"], got text
T | via = [ | 'i2p:', | 5] => 6: tunnels.t.via[1]: expected text in quotes, got a number
T | sam = 1979-05-27 => 4: tunnels.t.sam: expected text in quotes, got a date or a time
[tunnels.t] | listen = true | target = 'a:1' => 2: tunnels.t.listen: expected text in quotes, got true or false
[tunnels] | t = 5 => 2: tunnels.t: expected a table, got a number
tunnels = 5 => 1: tunnels: expected a table, got a number
[[tunnels]] => 1: tunnels: each of them has a name: write [tunnels.NAME] instead of [[tunnels]]
[tunnels.t] | target = 'a:1' => 1: tunnels.t: there is no listen, which it needs
[hops.x] | keyfile = 'x' | T => 1: hops.x: there is no address, which it needs
[hops] | x = 5 | T => 2: hops.x: expected text in quotes, got a number
hops.x = {address = 'ssh://x', backend = 'putty'} | T => 1: hops.x.backend: expected 'paramiko' or 'openssh'
hops.x = {address = 'i2p:', inbound.q = 1.5} | T => 1: hops.x.inbound.q: expected text, a whole number, true or false
# addresses
T | via = ['tls://a:1'] => 4: tunnels.t.via: hop 'tls://a:1': tls:// is a target, not a hop
[tunnels.t] | listen = 'x' | target = 'a:1' => 2: tunnels.t.listen: listen address 'x': no port
[tunnels.t] | listen = 70000 | target = 'a:1' => 2: tunnels.t.listen: listen address '70000': port 70000
[tunnels.t] | listen = ':0' | target = 'a' => 3: tunnels.t.target: target 'a': no port
hops.x = 'shh://x' | T => 1: hops.x: hop 'shh://x': unknown scheme shh:// (did you mean ssh://?)
hops.x = {address = 'socks5://x:1', keyfile = 'k'} | T => 1: hops.x: hop 'socks5://x:1': unknown parameter 'keyfile'
hops.x = {address = 'ssh://x', keyfile = ''} | T => 1: hops.x: hop 'ssh://x': keyfile: '' is empty
hops.x = {address = 'exec:nc %h %p', user = 'u'} | T => 1: hops.x: exec: takes no parameters
T | via = ['i2p:'] => 4: tunnels.t.via: localhost:1: what follows i2p: has a name in .i2p
T | via = ['ssh://a', 'i2p:', 'ssh://b.c'] => 4: tunnels.t.via: hop 3 of 3 (ssh://b.c): what follows i2p:
T | listen_via = ['ssh://a'] => 4: tunnels.t.listen_via: it listens on this machine; hops lead to ssh:// and i2p:
[tunnels.t] | listen = 'unix:///x' | target = 'a:1' | accept_proxy = ['10.0.0.0/8']
  => 4: tunnels.t.accept_proxy: no client could connect: its entries are for TCP, and the listener is a Unix
[tunnels.t] | listen = '127.0.0.1:0' | target = 'a:1' | accept_proxy = ['fd00::/8', 'unix']
  => 4: tunnels.t.accept_proxy: no client could connect: its entries are for IPv6, and all clients of this
T | accept_proxy = ['unix', 'unix'] => 4: tunnels.t.accept_proxy: no client could connect: unix is for
# names
[hops] | bastion = 'ssh://b' | T | via = ['bastoin'] => 6: tunnels.t.via[0]: there is no hop 'bastoin' (did you
T | via = ['b'] => 4: tunnels.t.via[0]: there is no hop 'b'; there are none in [hops]
hops.direct = 'ssh://b' | T => 1: hops.direct: a hop cannot be called direct
[tunnels."a b"] | listen = ":0" | target = "a:1" => 1: tunnels."a b": that is no name; one has up to 64 letters
hops."" = "ssh://b" | T => 1: hops."": that is no name
# what goes together
[tunnels.t] | listen = ':0' => 1: tunnels.t: there is no target, which it needs; a proxy has none
T | rule = ['*=direct'] => 4: tunnels.t.rule: it goes with a proxy alone
T | password_file = 'x' => 4: tunnels.t.password_file: it goes with a proxy alone
T | keys = 'x' => 4: tunnels.t.keys: it goes with an i2p: or tor: address of listen alone
T | transient = true => 4: tunnels.t.transient: it goes with an i2p: or tor: address of listen alone
T | sam = 'a:1' => 4: tunnels.t.sam: nothing of this tunnel is at I2P
[tunnels.t] | listen = 'i2p:' | target = 'h:1' | sam = [] => 4: tunnels.t.sam:
[tunnels.t] | listen = 'i2p:' | target = 'h:1' | sam = ['a:1', 'a'] => 4: tunnels.t.sam: sam 'a': no port
[tunnels.t] | listen = 'i2p:' | target = 'h:1' | sam = ['a:1', 'a:1']
  => 4: tunnels.t.sam: sam: a:1 is written twice; once is enough
SOCKS | target = 'a:1' => 3: tunnels.t.target: the clients of a proxy name their targets themselves
[tunnels.t] | listen = 'i2p:' | target = 'anywhere' => 2: tunnels.t.listen: i2p:: a proxy does not listen there
[tunnels.t] | listen = 'i2p:' | target = 'a:1' | transient = true | session = 's'
  => 4: tunnels.t.transient: a destination that is not saved has no keys and no session
SOCKS | user = 'u' => 3: tunnels.t.user: password missing
[tunnels.t] | listen = 'http://:0' | password_env = 'u' => 3: tunnels.t.password_env: no user is given
[tunnels.t] | listen = 'http://:0' | user = 'u' | password_env = 'u' | password_file = 'f'
  => 5: tunnels.t.password_file: the password is given twice
[tunnels.t] | listen = 'socks5://u@:0?password_env=P' | user = 'u' | password_env = 'P'
  => 3: tunnels.t.user: listen has a user already
SOCKS | rule = ['*=direct', | '10.0.0.1/8=direct']
  => 4: tunnels.t.rule[1]: rule '10.0.0.1/8=…': 10.0.0.1/8 has host bits set
SOCKS | rule = ['*=bastion'] => 3: tunnels.t.rule[0]: there is no hop 'bastion'
SOCKS | rule = ['*='] => 3: tunnels.t.rule[0]: rule '*': no route is given
SOCKS | rule = ['*=bastion,tcp://a:1'] => 3: tunnels.t.rule[0]: there is no hop 'bastion'
SOCKS | rule = ['*=tcp://a'] => 3: tunnels.t.rule[0]: rule '*=…': target 'tcp://a': no port
[tunnels.t] | listen = 'sni://:0' | rule = ['*=direct'] | user = 'u' => 2: tunnels.t.listen: the clients of sni://
[tunnels.t] | listen = 'redirect://:0' | password = 'p' => 2: tunnels.t.listen: the clients of redirect://
# the file as a whole
(nothing) => there are no tunnels in it; [tunnels.NAME] begins one
a = [ | 1, | b => 3: this is not TOML: Invalid value
[tunnels.a] | listen = ":0" | [tunnels.a] | (nothing) => 3: [tunnels.a] is there twice; give each table a name
a = 1 | a = 2 | (nothing) => 2: this is not TOML: Cannot overwrite a value
[tunnels.a] | listen = :80 => 2: this is not TOML: Invalid value; text needs quotes: listen = "…"
[tunnels.a] | idle_timeout = 10m => 2: this is not TOML: Expected newline or end of document after a statement
[defaults] | fail_fast = yes => 2: this is not TOML: Invalid value; write true or false
[tunnels.a] | required = True => 2: this is not TOML: Invalid value; write true or false
[tunnels.a] | via = ["ssh://a", ssh://b] => 2: this is not TOML: Invalid value; text needs quotes: via = ["…"]
[tunnels.a] | via = [ | ssh://b | ] => 3: this is not TOML: Invalid value; text needs quotes: "…"
[tunnels.a] | via = bastion => 2: this is not TOML: Invalid value; text needs quotes: via = ["…"]
[tunnels.a] | allow = [10.0.0.0/8] => 2: this is not TOML: Unclosed array; text needs quotes: allow = ["…"]
[[tunnels.a]] | listen = ":0" => 1: tunnels.a: each of them has a name: write [tunnels.a] instead of [[tunnels.a]]
[tunnels] | listen = ":0" => 2: tunnels.listen: the table of a tunnel has a name: write [tunnels.NAME] above
via = ["ssh://h"] => 1: via: it belongs into the table of a tunnel, below a line such as [tunnels.web]
idle_timeout = 5 => 1: idle_timeout: it belongs into [defaults], or into the table of a tunnel, below a line
T | carriers = 2 => 4: tunnels.t.carriers: their number is a key of the hop, such as carriers = 2 in
listen = ":0" => 1: listen: it belongs into the table of a tunnel, below a line such as [tunnels.web]
"""


def mistakes():
    named = {"T": T, "TWO": TWO, "SOCKS": SOCKS, "(nothing)": "\n"}
    for text, told in re.findall(r"^(.*?)\s*=> (.*)$", MISTAKES, re.MULTILINE):
        yield pytest.param(
            "".join(named.get(line, f"{line}\n") for line in text.split(" | ")), told, id=f"{text} => {told}"
        )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        *mistakes(),
        (
            T + f"drain_spread = -1{400 * '0'}",
            "4: tunnels.t.drain_spread: must be at least 0 and have a limit, got -1000",
        ),
        (b"[tunnels.t]\n# \xff\n", "2: a byte that is not UTF-8"),
    ],
)
def test_each_mistake_is_one_line_with_its_number(problems, text, told):
    assert only(problems(text)).strip().startswith(told)


def test_an_old_key_works_and_warns(read, caplog):
    text = '[defaults]\ncarriers = "per-worker"\n[tunnels.a]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n'
    (entry,) = read(text).entries
    assert entry.tunnel.carrier_sharing == "per-worker"
    assert "relay.toml:2: defaults.carriers: it is carrier_sharing now; relay 0.3 will not know it" in caplog.text


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(problems):
    text = WHOLE.replace("nconnect = 10", "nconect = 10").replace('"ssh://me@bastion"', '"shh://me@bastion"')
    text = text.replace("listen = 5432", "listen = 5432\nlitsen = 1").replace("keys =", "key =")
    text = text.replace('["proxy"]', '["proxi"]').replace('"anywhere"', '"nowhere"')
    found = problems(text)
    assert [line.partition(":")[0] for line in found] == sorted([line.partition(":")[0] for line in found], key=int)
    words = ["nconect", "shh://", "litsen", "tunnels.site.key:", "proxi", "no port"]
    assert len(found) == len(words)
    for line, word in zip(found, words, strict=True):
        assert word in line


@pytest.mark.parametrize("scheme", ["socks5", "http", "https", "sni", "redirect"])
def test_a_wrong_address_of_a_proxy_is_its_only_problem(problems, scheme):
    text = f"[tunnels.t]\nlisten = '{scheme}://127.0.0.1:1080x'\nrule = ['*=direct']"
    assert only(problems(text)).strip().startswith(f"2: tunnels.t.listen: listen address '{scheme}://127.0.0.1:1080x'")


def test_what_a_wrong_hop_would_make_wrong_is_not_told(problems):
    """A tunnel over a hop that is not understood cannot be judged."""
    assert len(problems("[hops]\nx = 'shh://x'\n" + T + "via = ['x']")) == 1
    assert len(problems("[hops.x]\naddres = 'ssh://x'\n" + T + "via = ['x']")) == 2  # of the hop alone


# -- secrets, and whose the file is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "told"), SECRETS)
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o444])
def test_a_secret_in_a_file_that_others_can_read(problems, text, told, mode):
    found = problems(text, mode)
    reason = f" is written there, and others can read the file (mode {mode:04o}); chmod 600 it; "
    assert told + reason in "\n".join(found)
    assert "secret" not in "".join(found)


@pytest.mark.parametrize(("text", "told"), SECRETS)
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_secret_in_a_file_that_its_owner_alone_can_read(problems, text, told, mode):
    assert problems(text, mode) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
def test_a_file_that_others_can_write(problems, mode):
    """A user who can write it can have programs started."""
    text = only(problems("nonsense = 1\n" + T, mode)).strip()
    assert text == f"others can write to it (mode {mode:04o}), and it can name programs to start; chmod go-w it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else(tmp_path):
    path = tmp_path / "relay.toml"
    path.write_text(T)
    os.chown(path, 12345, -1)
    found = config.read(str(path))
    assert found.entries == []
    assert "neither yours nor the administrator's" in found.problems.in_order()[0].text


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="No such file|not a regular file"):
            config.read(str(path))
    with pytest.raises(OSError, match="not a regular file") as caught:
        config.read(str(tmp_path))
    assert caught.value.filename == str(tmp_path)


def test_a_file_without_an_end(read):
    found = read("#" * (5 << 20))
    assert "it has more than" in found.problems.in_order()[0].text


def test_arrays_in_arrays_without_an_end(problems):
    assert "nested too deep" in only(problems("a = " + "[" * 100_000)) or "not TOML" in only(
        problems("a = " + "[" * 9999)
    )


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9_9" * 2500, "[1, " + "8" * 4301 + "]"])
def test_a_number_without_end(problems, number):
    text = f'{T}hops = "{"7" * 4000}"\ntimeout = {number}\n'
    assert only(problems(text)) == "5: a number of more than 4300 digits, which are allowed"


@pytest.mark.parametrize("key", list(config.schema()["$defs"]["Tunnel"]["properties"]))
def test_a_number_without_end_in_hexadecimal(problems, key):
    found = problems(f"[tunnels.t]\n{key} = 0x{'f' * 9000}\n")
    assert found
    assert all(len(line) < 500 for line in found)


@pytest.mark.parametrize(
    "line", ["[" + "a." * 20_000 + "a]", "a." * 20_000 + "a = 1", 'x = { "a" = "a.b", ' + "'a' . " * 20_000 + "a = 1 }"]
)
def test_a_key_without_end(problems, line):
    """Each more than a minute of tomllib's time, which grows with the square of the parts."""
    assert only(problems(f"{T}{line}\n")) == "4: a key with more than 32 parts; none here has as many"


def test_many_dots_are_no_deep_key(problems):
    dots = ".".join("a" * 200)
    text = f"{T}# {dots}\ntimeout = 1.5 # {dots}\nvia = [\"socks5://{dots[:60]}\\u0061:1\", 'http://{dots[:89]}:1']\n"
    assert problems(text) == []


# -- where it is looked for -------------------------------------------------------------------------------------------


def test_the_file_here_comes_before_the_users(tmp_path, monkeypatch):
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with pytest.raises(ValueError, match=rf"relay.toml: no such file here, nor {home}/.config/relay/relay.toml"):
        config.find()
    users = home / ".config" / "relay" / "relay.toml"
    users.parent.mkdir(parents=True)
    users.write_text("")
    assert config.find() == str(users)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="elsewhere/relay/relay.toml; name a file"):
        config.find()
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # which the specification says is to be ignored
    assert config.find() == str(users)
    (here / "relay.toml").write_text("")
    assert config.find() == "relay.toml"


@pytest.mark.parametrize("key", sorted(File.model_fields.keys() - {"defaults", "hops", "tunnels"}))
@pytest.mark.parametrize("table", ["[defaults]", "[hops]", "[hops.x]\naddress = 'ssh://x'", "[tunnels]", T])
def test_a_key_of_the_top_that_stands_below_a_table_belongs_at_the_top(problems, table, key):
    if (table, key) == (T, "workers"):  # which a tunnel has as well
        return
    found = problems(f"{table.rstrip()}\n{key} = 'x'\n")
    path = table.partition("]")[0].removeprefix("[")
    line = len(table.splitlines()) + 1
    assert f"{line}: {path}.{key}: {key} belongs at the top of the file, above the first table" in found


def test_a_hop_may_have_the_name_of_such_a_key(problems):
    assert problems(T + "via = ['status']\n[hops]\nstatus = 'ssh://h'\n") == []


# -- the models, the addresses and the schema say the same ------------------------------------------------------------


def test_a_hop_has_every_parameter_of_an_address_and_no_other():
    known = {
        *options_of(SSHServer),
        *options_of(I2PRouter),
        *options_of(HTTPSProxy),
        *options_of(TorProxy),
        *options_of(WSSProxy),
        "address",
        "inbound",
        "outbound",
        "i2cp",
    }
    assert set(Hop.model_fields) == known


@pytest.mark.parametrize(
    ("table", "value"),
    [
        (
            {"address": "ssh://me@x:22", "keyfile": "ü &=?", "keepalive": 2.5, "identities_only": False},
            SSHServer("x", "me", 22, keyfile="ü &=?", keepalive=2.5, identities_only=False),
        ),
        ({"address": "ssh://x", "password": "a&b=c%?ü"}, SSHServer("x", password="a&b=c%?ü")),
        ({"address": "ssh://x?compress=yes", "accept_new": True}, SSHServer("x", compress=True, accept_new=True)),
        (
            {"address": "i2p:", "sam": ["a:1", "b:1"], "outbound": {"length": 0}, "i2cp": {"fastReceive": True}},
            I2PRouter(parse_sam(["a:1", "b:1"]), options=(("i2cp.fastReceive", "true"), ("outbound.length", "0"))),
        ),
        ({"address": "http://u@x:1", "password_env": "P"}, Proxy("http", "x", 1, "u", password_env="P")),
        ({"address": "tor:", "socks": "h:1"}, TorProxy(socks="h:1")),
        ({"address": "exec:nc %h %p"}, Command("nc %h %p")),
    ],
)
def test_a_table_is_the_same_as_an_address(table, value):
    hop = Hop.model_validate(table)
    assert parse_hop(hop.address, hop_options(hop)) == value


def test_the_schema_is_one_and_names_everything():
    schema = config.schema()
    text = json.dumps(schema)
    assert '"null"' not in text  # which TOML does not have
    tables = schema["$defs"]
    assert set(tables["Tunnel"]["properties"]) == set(Tunnel.model_fields)
    assert tables["Tunnel"]["required"] == ["listen"]
    assert not tables["Tunnel"]["additionalProperties"]
    assert all("description" in entry for entry in tables["Tunnel"]["properties"].values())
    assert all("description" in entry for entry in tables["Hop"]["properties"].values())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(tomllib.loads(WHOLE))
    for timeout in (90, 1.5, "90", "10m", "1.5h", "none"):
        validator.validate({"tunnels": {"a": {"listen": "1", "timeout": timeout}}})
    for timeout in ("soon", "-1m", "10  m"):
        assert not validator.is_valid({"tunnels": {"a": {"listen": "1", "timeout": timeout}}})
    for wrong in ({"tunels": {}}, {"tunnels": {"a": {"listen": "1", "timeout": -1}}}, {"hops": {"x": 1}}):
        assert not validator.is_valid(wrong)


# -- whatever is written ----------------------------------------------------------------------------------------------

words = st.sampled_from(
    [
        *Tunnel.model_fields,
        *Hop.model_fields,
        "defaults",
        "hops",
        "tunnels",
        "x",
        "a b",
        "",
        "i2p:",
        "ssh://x",
        "exec:a %h",
    ]
)
texts = words | st.sampled_from(
    [":0", "127.0.0.1:1", "socks5://:0", "*=x", "*=ssh://x,i2p:", "a.i2p:1", "tls://:1?cert=c"]
)
values = st.recursive(
    texts | st.integers(-2, 70000) | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
tunnels = st.dictionaries(
    words, st.dictionaries(st.sampled_from([*Tunnel.model_fields]), values, max_size=6), max_size=3
)
hops = st.dictionaries(
    words, texts | st.dictionaries(st.sampled_from([*Hop.model_fields]), values, max_size=6), max_size=3
)


@given(st.fixed_dictionaries({}, optional={"tunnels": tunnels | values, "hops": hops | values, "defaults": values}))
def test_whatever_is_written_is_told_and_never_raises(tmp_path_factory, document):
    folder = tmp_path_factory.getbasetemp()
    text = tomli_w.dumps(document)
    for line in problems_of(folder, text):
        assert line.isprintable()
    found = read_text(folder, text)
    if not found.problems.in_order():
        assert found.entries
        config.as_toml(found.file, found.hops, [(entry, {}) for entry in found.entries])


OTHER = '[tunnels.u]\nlisten = ":8081"\ntarget = "localhost:2"\n'
FILES = {
    "whole": WHOLE,
    "another default": WHOLE.replace("linger = 0", "linger = 1"),
    "another hop": WHOLE.replace("ssh://me@inner", "ssh://me@outer"),
    "a hop less": WHOLE.replace('proxy = "socks5://127.0.0.1:9050"', ""),
    "another bridge": WHOLE.replace("127.0.0.1:7657", "127.0.0.1:7658"),
    "one changed": WHOLE.replace("5432\ntarget", "5433\ntarget"),
    "one more": WHOLE + OTHER,
    "one": T,
    "one with a limit": T + "nconnect = 1\n",
    "of another type": T + "nconnect = 1.0\n",
    "true": T + "nconnect = true\n",
    "two": T + OTHER,
    "in another order": OTHER + T,
    "at one address": T.replace(":0", ":8081") + OTHER,
    "at one address, the other way round": OTHER + T.replace(":0", ":8081"),
    "no table": "tunnels = 5\n",
    "a tunnel that is no table": T + "[tunnels]\nu = 5\n",
    "empty": "",
    "no TOML": "[tunnels",
    "a secret": SECRETS[0][0],
}


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "relay.toml"
    made.touch(0o600)
    return made


def result(found):
    """The parts that a reader of the file sees."""
    problems = [found.problems.format(problem) for problem in found.problems.in_order()]
    return problems, found.entries, found.hops, found.folder, list(found.file.tunnels)


@pytest.mark.parametrize("mode", [0o600, 0o644], ids=["private", "readable"])
def test_each_file_after_each_other_one_is_read_as_if_it_were_new(path, mode):
    for one, other in itertools.product(FILES.values(), repeat=2):
        path.chmod(0o600)
        path.write_text(one)
        before = config.read(str(path))
        if not before.problems.in_order():
            path.write_text(other)
            path.chmod(mode)
            assert result(config.read(str(path), before=before.written)) == result(config.read(str(path)))


def test_a_tunnel_that_is_written_as_before_keeps_its_entry(path):
    path.write_text(T + OTHER)
    before = config.read(str(path))
    path.write_text("# a comment\n" + OTHER.replace(":2", ":3") + T)
    now = {entry.name: entry for entry in config.read(str(path), before=before.written).entries}
    was = {entry.name: entry for entry in before.entries}
    assert now["t"] is was["t"]
    assert now["u"] is not was["u"]


def test_a_secret_is_found_once_others_can_read_the_file(path):
    path.write_text(SECRETS[4][0])
    before = config.read(str(path))
    assert before.problems.in_order() == []
    path.chmod(0o644)
    (problem,) = config.read(str(path), before=before.written).problems.in_order()
    assert "a password is written there" in problem.text
