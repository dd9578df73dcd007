"""Limits as text: each form is understood, and each mistake is one clear line."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from relay.access.limit import Action, Limit, Period, Rate, Scope, check_answer, check_limits, must_stay_whole


def test_every_part_of_the_text_becomes_a_value() -> None:
    text = "per=ip/24,rate=20/10s,concurrent=8,bandwidth=2MB/s,quota=10GB/month,ban=10m,action=tarpit,name=web"
    limit = Limit.parse(text)
    terms = limit.terms
    assert (terms.scope, terms.rate, terms.concurrent) == (Scope("ip", 24, 64), Rate(20, 10.0), 8)
    assert (terms.bandwidth, terms.quota, terms.period) == (2e6, 10 * 10**9, Period.MONTH)
    assert (terms.ban, terms.action, limit.name) == (600.0, Action.TARPIT, "web")
    assert str(limit) == text
    assert Limit.parse(str(limit)) == limit == Limit(**limit.as_table()) == pickle.loads(pickle.dumps(limit))


@pytest.mark.parametrize(
    ("keys", "name", "expected"),
    [
        ({"rate": "5/m"}, "rate", Rate(5, 60.0)),
        ({"rate": "1/0.5s"}, "rate", Rate(1, 0.5)),
        ({"rate": "7/2h"}, "rate", Rate(7, 7200.0)),
        ({"rate": " 1000000/366d "}, "rate", Rate(1_000_000, 366 * 86400.0)),
        ({"rate": "7/s", "per": "ip"}, "scope", Scope("ip", 32, 64)),
        ({"rate": "7/s", "per": "ip/16/48"}, "scope", Scope("ip", 16, 48)),
        ({"rate": "7/s", "per": "ip/1/1"}, "scope", Scope("ip", 1, 1)),
        ({"rate": "7/s", "per": "ip/32/128"}, "scope", Scope("ip", 32, 128)),
        ({"rate": "7/s", "per": "identity"}, "scope", Scope("identity")),
        ({"rate": "7/s", "per": "tunnel"}, "scope", Scope("tunnel")),
        ({"bandwidth": "1.5MB/s", "per": "connection"}, "scope", Scope("connection")),
        ({"bandwidth": "16Mbit/s"}, "bandwidth", 2e6),
        ({"bandwidth": "2 MiB/s"}, "bandwidth", float(2**21)),
        ({"bandwidth": "64KB/s"}, "bandwidth", 64000.0),
        ({"bandwidth": 5000}, "bandwidth", 5000.0),
        ({"bandwidth": "5000000"}, "bandwidth", 5e6),
        ({"bandwidth": " 1000.5 "}, "bandwidth", 1000.5),
        ({"bandwidth": 1000}, "bandwidth", 1000.0),
        ({"bandwidth": "8kbit/s"}, "bandwidth", 1000.0),
        ({"concurrent": 1}, "concurrent", 1),
        ({"concurrent": 1_000_000}, "concurrent", 1_000_000),
        ({"quota": "1B/month"}, "quota", 1),
        ({"quota": "1.5kB/day"}, "quota", 1500),
        ({"quota": "2 TiB/day"}, "quota", 2**41),
        ({"rate": "7/s", "ban": 366 * 86400}, "ban", 366 * 86400.0),
        ({"rate": "7/s", "ban": 0.5}, "ban", 0.5),
        ({"quota": "1GB/day", "ban": "s"}, "ban", 1.0),
        ({"rate": "7/s"}, "ban", 0.0),
        ({"rate": "7/s"}, "period", Period.DAY),
        ({"quota": "1GiB/day"}, "quota", 2**30),
        ({"quota": "1GB/week"}, "period", Period.WEEK),
        ({"quota": "500B/hour"}, "quota", 500),
        ({"rate": "7/s", "ban": 90}, "ban", 90.0),
        ({"rate": "7/s", "ban": "1d"}, "ban", 86400.0),
        ({"rate": "7/s", "ban": "10"}, "ban", 10.0),
        ({"rate": "7/s", "ban": "0.5"}, "ban", 0.5),
        ({"rate": "7/s", "action": "close"}, "action", Action.CLOSE),
    ],
)
def test_values(keys: dict[str, Any], name: str, expected: object) -> None:
    assert getattr(Limit(**keys).terms, name) == expected


LOGIN = {"rate": "5/1m", "ban": "1m", "name": "login"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "there is nothing to limit; give it rate, concurrent, bandwidth or quota"),
    ({"rate": "20"}, "rate: expected a number and a time, got '20'; use for example 20/10s or 5/m"),
    ({"rate": "0/10s"}, "rate: expected a number and a time, got '0/10s'"),
    ({"rate": "20/10"}, "rate: expected a number and a time, got '20/10'"),
    ({"rate": "20/0s"}, "rate: expected a number and a time"),
    ({"rate": "20/.s"}, "rate: expected a number and a time"),
    ({"rate": "-1/s"}, "rate: expected a number and a time"),
    ({"rate": "20/9999999w"}, "rate: expected a number and a time"),
    ({"rate": "20/367d"}, "rate: expected a number and a time"),
    ({"rate": "\x1f20/s"}, "rate: expected a number and a time"),
    ({"rate": "X20/s"}, "rate: expected a number and a time"),
    ({"rate": "1000001/s"}, "rate: expected a number and a time"),
    ({"rate": "1/s\x1b[2J"}, r"got '1/s\\x1b[2J'"),
    ({"concurrent": 0}, "concurrent: must be from 1 to 1000000, got 0"),
    ({"bandwidth": "2MB"}, "bandwidth: expected 1kB/s or more, got '2MB'; use for example 2MB/s or 16Mbit/s"),
    ({"concurrent": 1_000_001}, "concurrent: must be from 1 to 1000000, got 1000001"),
    ({"bandwidth": "1B/s"}, "bandwidth: expected 1kB/s or more"),
    ({"bandwidth": 999.9}, "bandwidth: expected 1kB/s or more"),
    ({"bandwidth": 1e18}, "bandwidth: expected 1kB/s or more"),
    ({"bandwidth": "1000000TB/s"}, "bandwidth: expected 1kB/s or more"),
    ({"bandwidth": float("nan")}, "bandwidth: expected 1kB/s or more"),
    ({"bandwidth": float("inf")}, "bandwidth: expected 1kB/s or more"),
    ({"bandwidth": "2mB/s"}, "bandwidth: expected 1kB/s or more"),
    ({"quota": "10GB"}, "quota: expected a size and a period, got '10GB'; use for example 10GB/month; the"),
    ({"quota": "10GB/year"}, "quota: expected a size and a period"),
    ({"quota": "1000000TB/day"}, "quota: expected a size and a period"),
    ({"quota": "0B/day"}, "quota: expected a size and a period"),
    ({"quota": "8Mbit/day"}, "quota: expected a size and a period"),
    ({"rate": "1/s", "ban": "10x"}, "ban: expected a time up to 366d, got '10x'; use for example 10m"),
    ({"rate": "1/s", "ban": "-1"}, "ban: expected a time up to 366d, got '-1'"),
    ({"rate": "1/s", "ban": 10**400}, "ban: expected a time up to 366d, got '1000"),
    ({"bandwidth": 10**400}, "bandwidth: expected 1kB/s or more, got '1000"),
    ({"bandwidth": "9" * 400}, "bandwidth: expected 1kB/s or more, got '9999"),
    ({"bandwidth": "999"}, "bandwidth: expected 1kB/s or more, got '999'; use for example 2MB/s or 16Mbit/s"),
    ({"bandwidth": "5M"}, "bandwidth: expected 1kB/s or more, got '5M'"),
    ({"rate": "1/s", "ban": 0}, "ban: expected a time up to 366d, got '0'"),
    ({"rate": "1/s", "ban": 366 * 86400 + 1}, "ban: expected a time up to 366d"),
    ({"rate": "1/s", "ban": float("nan")}, "ban: expected a time up to 366d"),
    ({"concurrent": 3, "ban": "10m"}, "ban: follows a rate or a quota; give one of them"),
    ({"rate": "1/s", "per": "host"}, "per: expected the clients that count together, got 'host'; use ip, ip/24"),
    ({"rate": "1/s", "per": "ip/33"}, "per: a network has 1 to 32 bits (IPv6: 1 to 128), got 'ip/33'"),
    ({"rate": "1/s", "per": "ip/24/129"}, "per: a network has 1 to 32 bits"),
    ({"rate": "1/s", "per": "ip/0"}, "per: a network has 1 to 32 bits"),
    ({"rate": "1/s", "per": "ip/24/0"}, "per: a network has 1 to 32 bits"),
    ({"rate": "1/s", "per": "connection"}, "per=connection limits only bandwidth; use another per for the rest"),
    *(
        ({"bandwidth": "1MB/s", "per": "connection"} | more, "per=connection limits only bandwidth")
        for more in ({"rate": "1/s"}, {"concurrent": 1}, {"quota": "1B/day"})
    ),
    ({"rate": "1/s", "action": "drop"}, "action: expected reset, close or tarpit, got 'drop'; use one of them"),
    ({"rate": "٣/s"}, "rate: expected a number and a time, got '٣/s'"),
    ({"rate": "3/٣s"}, "rate: expected a number and a time, got '3/٣s'"),
    ({"rate": "1/s", "per": "ip/٣"}, "per: expected the clients that count together, got 'ip/٣'"),
    ({"bandwidth": "٣MB/s"}, "bandwidth: expected 1kB/s or more, got '٣MB/s'"),
    ({"rate": "1/s", "name": "two words"}, "name: expected one word, got 'two words'; use at most 64 letters"),
    ({"rate": "1/s", "name": "x" * 65}, "name: expected one word"),
    ({"rate": "1/s", "name": "login"}, "login: counts wrong passwords; give it rate and ban, and no other limit"),
    *(
        (LOGIN | more, "login: counts wrong passwords; give it rate and ban, and no other limit")
        for more in ({"quota": "1GB/day"}, {"rate": None, "quota": "1B/day"}, {"concurrent": 1}, {"bandwidth": "1MB/s"})
    ),
    (LOGIN | {"per": "identity"}, "login: counts wrong passwords by address, not per=identity; use per=ip or, for net"),
    (
        LOGIN | {"per": "tunnel"},
        "login: counts wrong passwords by address, not per=tunnel; use per=ip or, for networks",
    ),
]


@pytest.mark.parametrize(("keys", "problem"), BAD)
def test_a_bad_value_is_one_clear_line(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match="^limit: ") as caught:
        Limit(**keys)
    text = str(caught.value)
    assert problem.replace("\\\\", "\\") in text and "\n" not in text


@pytest.mark.parametrize("key", ["per", "rate", "quota", "ban", "bandwidth", "concurrent", "name"])
@pytest.mark.parametrize("value", [[], True])
def test_a_value_of_another_type(key: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^limit: {key}: expected .*, got {type(value).__name__}$"):
        check_limits([{"rate": "1/s", key: value}])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unknown part ''; use KEY=VALUE with one of per, rate, "),
        ("rate", "unknown part 'rate'; use KEY=VALUE with one of per, rate, "),
        ("rat=10/s", "unknown part 'rat=10/s'; did you mean rate?"),
        ("speed=1/s", "unknown part 'speed=1/s'"),
        ("terms=1", "unknown part 'terms=1'"),
        ("rate=1/s,name=a=b", "name: expected one word, got 'a=b'"),
        ("rate=1/s,rate=2/s", "rate is there twice; use --limit once for each limit"),
        ("rate=1/s,concurrent=10000000", "concurrent: expected a whole number, got '10000000'"),
        ("concurrent=many", "concurrent: expected a whole number, got 'many'; use for example 8"),
    ],
)
def test_bad_text_of_the_command_line(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match="^limit: ") as caught:
        Limit.parse(text)
    assert problem in str(caught.value)


def test_the_list_of_a_tunnel() -> None:
    first = Limit(rate="1/s")
    limits = check_limits([first, {"per": "tunnel", "concurrent": 3}, "per=identity,quota=1GB/day"])
    assert limits[0] is first
    assert [limit.name for limit in limits] == ["ip:1/s", "tunnel:3", "identity:1GB/day"]
    assert check_limits(None) == check_limits([]) == ()
    assert len(check_limits([{"concurrent": n} for n in range(1, 65)])) == 64


def test_the_name_is_made_of_the_values_and_is_no_part_of_the_text() -> None:
    limit = Limit.parse("rate=5/m, concurrent=3,bandwidth=2 MB/s,quota=1GB/day")
    assert limit.name == "ip:5/m-3-2MB/s-1GB/day"
    assert str(limit) == "per=ip,rate=5/m,concurrent=3,bandwidth=2 MB/s,quota=1GB/day"
    assert limit.as_table() == {
        "per": "ip", "rate": "5/m", "concurrent": 3, "bandwidth": "2 MB/s", "quota": "1GB/day",
    }  # fmt: skip
    assert Limit(rate="1/s", bandwidth="1." + "0" * 80 + "GB/s").name == "ip:1/s-1." + "0" * 55
    assert [Limit(bandwidth=2e16).name, Limit(rate=" 1/s", per=" ip ").name] == ["ip:2e16", "ip:1/s"]
    assert Limit(rate="1/s", name="x" * 64).name == "x" * 64
    assert Limit(**LOGIN).name == "login"


def test_what_a_program_answers_about_a_client() -> None:
    one, other = Limit(rate="1/s"), Limit(concurrent=3)
    assert check_answer(True) is True and check_answer(False) is False
    assert check_answer(one) == check_answer([one]) == (one,) and check_answer((one, other)) == (one, other)
    for wrong, got in ((None, "NoneType"), ([], "none"), ((), "none"), ([one, "1/s"], "str")):
        with pytest.raises(TypeError, match=rf"^admit must return True, False, or one or more relay.Limit, got {got}$"):
            check_answer(wrong)
    with pytest.raises(ValueError, match="^limit: login: counts wrong passwords of a tunnel"):
        check_answer((one, Limit(**LOGIN)))
    with pytest.raises(ValueError, match="is there twice"):
        check_answer((one, one))


def test_only_limits_of_each_connection_may_be_counted_in_several_processes() -> None:
    alone = Limit(per="connection", bandwidth="1MB/s")
    assert not must_stay_whole([]) and not must_stay_whole([alone])
    assert must_stay_whole([alone, Limit(rate="1/s")])


@pytest.mark.parametrize(
    ("limits", "error", "problem"),
    [
        ("rate=1/s", TypeError, "expected a list of limits, got str"),
        ({"rate": "1/s"}, TypeError, "expected a list of limits, got dict"),
        (3, TypeError, "expected a list of limits, got int"),
        ([3], TypeError, "expected a table or a relay.Limit, got int"),
        ([{"speed": 1}], ValueError, "unknown key 'speed'; use one of per, rate"),
        (["rate=1/s", "rate=1/s"], ValueError, "the name 'ip:1/s' is there twice; give each limit a name of its own"),
        ([{"concurrent": n} for n in range(1, 66)], ValueError, "at most 64 are allowed, got 65"),
    ],
)
def test_a_bad_list(limits: object, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match="^limit: ") as caught:
        check_limits(limits)
    assert problem in str(caught.value)
