"""The command with Tor: ``doctor``, ``check`` and ``expose``, with the double of tor."""

import pytest
from command_rig import run
from helpers import wait_until

from relay.testing import Tor


@pytest.fixture
def tor():
    with Tor() as made:
        yield made


@pytest.mark.parametrize(("more", "said"), [([], "logged in"), (["--listen"], "tor takes an onion service")])
def test_doctor_tests_the_control_port(tor, more, said, tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text(f"[tunnels.site]\nlisten = 'tor:?control={tor.control}'\ntarget = '9'\n")
    done = run("doctor", "--config", str(config), *more)
    assert f"tor:?control={tor.control}: {said}" in done.stdout, done.stdout + done.stderr
    wait_until(lambda: not tor.services)  # tor learns of doctor's end by the end of its connection
    tor.kill()
    done = run("doctor", "--config", str(config), *more)
    assert done.returncode == 1 and "check that tor runs on this machine" in squeezed_lines(done.stdout)


def squeezed_lines(text):
    return " ".join(text.split())


def test_check_shows_where_the_key_is(tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text("[tunnels.site]\nlisten = 'tor:'\ntarget = '8000'\n[tunnels.b]\nlisten='tor'\ntarget='8000'\n")
    done = run("check", str(config))
    assert done.returncode == 2 and "tunnels.b" in done.stdout + done.stderr
    config.write_text("[tunnels.site]\nlisten = 'tor:'\ntarget = '8000'\nlisten_via = ['ssh://h']\n")
    assert "listen_via" in run("check", str(config)).stderr
    config.write_text("[tunnels.site]\nlisten = 'tor:'\ntarget = '8000'\nlinger = 5\n")
    done = run("check", str(config))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--via", "ssh://h"], "--via: tor connects to relay on this machine; leave it out"),
        (["--sam", "h:1"], "--sam: only for --on i2p"),
        (["--transient", "--keys", "k"], "a destination that is not saved has no keys"),
    ],
)
def test_what_expose_does_not_take(words, said):
    done = run("expose", "8000", "--on", "tor", *words)
    assert done.returncode == 2 and said in done.stderr
