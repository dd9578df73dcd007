"""The options of addresses in the signatures, the types and the docstrings of the functions that take them."""

import inspect
import typing

import pytest

import relay
from relay.addresses.i2p import I2PRouter
from relay.addresses.options import options_of
from relay.addresses.signatures import annotation
from relay.addresses.ssh import SSHServer
from relay.api.keywords import I2PKeywords, SSHKeywords

SSH = [relay.ssh, relay.ssh_listen]
I2P = [relay.i2p, relay.i2p_listen, relay.TunnelServer, relay.TunnelClient]


@pytest.mark.parametrize(
    ("function", "owner"), [*((one, SSHServer) for one in SSH), *((one, I2PRouter) for one in I2P)]
)
def test_every_option_is_a_keyword_with_its_default_and_its_text(function, owner):
    parameters = inspect.signature(function).parameters
    own = {"sam", "session"} if owner is I2PRouter else set()
    for name, option in options_of(owner).items():
        if name not in own:
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert parameters[name].default == option.default
            assert parameters[name].annotation == annotation(option)
            assert f"\n:param {name}: {option.help}"[:36] in function.__doc__
    assert "{options}" not in function.__doc__
    assert max(map(len, function.__doc__.splitlines())) <= 120


@pytest.mark.parametrize("function", SSH)
def test_no_other_keyword_is_taken_for_ssh(function):
    assert all(one.kind is not one.VAR_KEYWORD for one in inspect.signature(function).parameters.values())
    with pytest.raises(TypeError, match=r"^compresion: unexpected keyword argument; allowed are keyfile, "):
        function("bastion", "h", 1, compresion=True)


@pytest.mark.parametrize("function", I2P)
def test_options_of_the_session_are_further_keywords(function):
    assert list(inspect.signature(function).parameters.values())[-1].kind is inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize(
    ("keywords", "owner", "own"), [(SSHKeywords, SSHServer, set()), (I2PKeywords, I2PRouter, {"sam", "session"})]
)
def test_type_checkers_know_every_option(keywords, owner, own):
    assert set(typing.get_type_hints(keywords)) == set(options_of(owner)) - own
