"""The options of tunnels: one field each, and all that follows from them."""

import inspect
import typing

import pytest

import relay
import relay.aio
from relay.access.limit import Limit
from relay.addresses.options import options_of
from relay.api.i2p_tunnels import NOT_OF_A_CLIENT, NOT_OF_A_SERVER
from relay.api.keywords import ClientKeywords, ServerKeywords
from relay.engine.command_options import CommandOptions
from relay.engine.keywords import SharedKeywords, TunnelKeywords
from relay.engine.options import TunnelOptions, made_of, part_of, tunnel_options

OPTIONS = tunnel_options(TunnelOptions)
NOT_SENT = ("admit", "on_end")
BY_POSITION = {"nconnect", "timeout"}
TAKERS = [
    (relay.Tunnel, (), TunnelKeywords, {}),
    (relay.aio.Tunnel, (), TunnelKeywords, {}),
    (relay.spawn, NOT_SENT, SharedKeywords, {"timeout": None}),
    (relay.TunnelServer, NOT_OF_A_SERVER, ServerKeywords, {"timeout": None, "connect_timeout": 90.0, "linger": 5.0}),
    (relay.TunnelClient, NOT_OF_A_CLIENT, ClientKeywords, {"timeout": None, "connect_timeout": 90.0, "linger": 5.0}),
]


@pytest.mark.parametrize(("function", "left_out", "keywords", "defaults"), TAKERS)
def test_every_option_is_a_parameter_with_its_default_its_text_and_its_type(function, left_out, keywords, defaults):
    parameters = inspect.signature(function).parameters
    for name, option in OPTIONS.items():
        assert (name in parameters) is (name not in left_out)
        if name in parameters:
            assert parameters[name].default == defaults.get(name, option.default)
            assert f":param {name}: " in function.__doc__
    assert "{options}" not in function.__doc__
    assert keywords.__annotations__.keys() & OPTIONS.keys() == OPTIONS.keys() - {*left_out} - BY_POSITION


def test_unknown_keywords_are_refused_as_python_does():
    with relay.listen(":0") as receive:
        with pytest.raises(TypeError, match=r"^Tunnel\.__init__\(\) got an unexpected keyword argument 'nconect'$"):
            relay.Tunnel(receive, relay.tcp("127.0.0.1", 1), nconect=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("nconnect", None, TypeError, "nconnect: expected a whole number, got NoneType"),
        ("timeout", 0, ValueError, "timeout: must be greater than 0, got 0; use None for no limit"),
        ("linger", -1, ValueError, "linger: must be at least 0, got -1; use None for no limit"),
        ("warm", None, TypeError, "warm: expected a whole number, got NoneType"),
        ("warm_for", None, ValueError, "warm_for: must have a limit, got None; use 30 seconds"),
        ("source", "nowhere", ValueError, "source: "),
        ("limit", [{"rate": "x"}], ValueError, "limit: "),
        ("accept_proxy", ["x"], ValueError, "accept_proxy: "),
        ("send_proxy", "v3", ValueError, "send_proxy: expected v1 or v2, got 'v3'"),
        ("name", 3, TypeError, "name: expected text, got int"),
        ("on_end", 3, TypeError, "on_end: expected a callable, got int"),
    ],
)
def test_a_wrong_value_names_its_option(name, value, error, text):
    with pytest.raises(error) as caught:
        made_of("f", **{name: value})
    assert str(caught.value).startswith(text)


def test_checked_values_are_those_that_a_tunnel_takes():
    made = made_of("f", timeout=float("inf"), linger=0, limit=["rate=1/s"])
    assert (made.timeout, made.linger, made.limit) == (None, 0.0, (Limit.parse("rate=1/s"),))


def test_the_message_to_another_process_is_plain_and_can_be_made_options_again():
    made = made_of("f", limit=["rate=1/s"], accept_proxy=("10.0.0.0/8",), deny=("user:me",), on_end=print)
    message = made.as_message()
    assert not {*NOT_SENT} & message.keys()
    assert message["limit"] == [{"per": "ip", "rate": "1/s"}]
    assert (message["accept_proxy"], message["deny"]) == (["10.0.0.0/8"], ["user:me"])
    assert made_of("f", **message).as_message() == message


def test_workers_divide_the_warm_streams_and_nothing_else():
    message = made_of("f", warm=5, nconnect=9).as_message()
    assert part_of(message, 2) == {**message, "warm": 3}
    assert [part_of({"warm": warm}, 2) for warm in (0, 1, 4)] == [{"warm": 0}, {"warm": 1}, {"warm": 2}]


def test_every_option_of_commands_and_files_has_its_texts():
    for name, option in tunnel_options(CommandOptions).items():
        assert bool(option.command) is bool(option.key), name
        assert not option.help.endswith(".")
        assert option.command.endswith((".", "")) and "Default" not in option.help


def test_a_command_has_other_defaults_and_the_same_declarations():
    assert CommandOptions().timeout is None
    assert options_of(CommandOptions)["timeout"].help == OPTIONS["timeout"].help


def test_the_keywords_of_a_tunnel_have_types_at_run_time():
    assert typing.get_type_hints(relay.Tunnel.__init__)["options"]
