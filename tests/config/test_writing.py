"""The effective settings as a file: they are the same, without secrets."""

import math

import pytest
from config_rig import SECRETS, WHOLE, read_text

from relay import config
from relay.addresses.values import TCPAddress
from relay.config.models import LIMITS


def effective(found):
    limits = [{name: getattr(entry.tunnel, name) for name in LIMITS} for entry in found.entries]
    return config.as_toml(found.file, found.hops, list(zip(found.entries, limits, strict=True)))


def test_what_is_printed_says_the_same(tmp_path):
    found = read_text(tmp_path, WHOLE)
    again = read_text(tmp_path, effective(found))
    assert again.problems.in_order() == []
    assert effective(again) == effective(found)

    def plain(entries):
        return [
            (e.name, e.via, e.listen_via, e.rules, e.is_proxy, e.tunnel.model_dump(exclude={"listen"})) for e in entries
        ]

    assert plain(again.entries)[:4] == plain(found.entries)[:4]
    assert again.entries[0].tunnel.listen == "127.0.0.1:5432"


def test_the_keys_beside_the_tables_are_kept(tmp_path):
    text = 'log_file = "/var/log/relay/access.log"\nlog_interval = "none"\n[tunnels.t]\nlisten = ":0"\ntarget = "a:1"\n'
    again = read_text(tmp_path, effective(read_text(tmp_path, text)))
    assert (again.file.log_file, again.file.log_interval) == ("/var/log/relay/access.log", math.inf)


def test_what_tunnels_have_from_the_defaults_is_in_each(tmp_path):
    lists = 'limit = [{rate = "5/m"}]\nallow = ["::1"]\ndeny = ["::2"]\n'
    text = f'[defaults]\nnconnect = 5\n{lists}carrier_sharing = "per-worker"\nprobe = "connect"\n' + "".join(
        f'[tunnels.{name}]\nlisten = ":0"\ntarget = "a:1"\n{more}'
        for name, more in {"t": "", "u": "limit = []\ndeny = []\n"}.items()
    )
    again = read_text(tmp_path, effective(read_text(tmp_path, text)))
    assert again.problems.in_order() == []
    tables = [entry.tunnel.model_dump(exclude_none=True) for entry in again.entries]
    keys = ("limit", "allow", "deny", "carrier_sharing", "probe")
    assert [[table[key] for key in keys] for table in tables] == [
        [[{"per": "ip", "rate": "5/m"}], ["::1"], ["::2"], "per-worker", "connect"],
        [[], ["::1"], [], "per-worker", "connect"],
    ]


def test_several_targets_and_ways_are_kept_without_secrets(tmp_path):
    text = (
        '[tunnels.t]\nlisten = ":0"\ntarget = ["a:1", "b:2"]\npolicy = "fastest"\nnconnect = 5\n'
        'via = [["ssh://x"], ["ssh://y?password=secret", "ssh://z"]]\n'
    )
    printed = effective(read_text(tmp_path, text))
    assert "secret" not in printed
    again = read_text(tmp_path, printed.replace("?password=***", ""))
    assert [(entry.target, entry.others[-1][1], entry.tunnel.policy) for entry in again.entries] == [
        (TCPAddress("a", 1), TCPAddress("b", 2), "fastest")
    ]
    assert [str(route[-1]) for route, _ in again.entries[0].others] == ["ssh://z", "ssh://x", "ssh://z"]


@pytest.mark.parametrize(("text", "told"), SECRETS)
def test_no_secret_is_printed(tmp_path, text, told):
    printed = effective(read_text(tmp_path, text))
    assert "secret" not in printed
    assert "***" in printed
