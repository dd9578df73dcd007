"""``relay.cli.tunnel_file``: what a file says at the start and when it is read again; nothing is opened here."""

from __future__ import annotations

import click
import pytest

from relay.cli.options import LOG_INTERVAL, Options
from relay.cli.reload import ReloadError
from relay.cli.tunnel_file import TunnelFile

ONE = '[tunnels.one]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n'
TWO = '[tunnels.two]\nlisten = ":0"\ntarget = "127.0.0.1:1"\nrequired = true\nworkers = 2\n'


@pytest.fixture
def toml(tmp_path, monkeypatch):
    """Writes the file, in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "relay.toml"

    def write(text):
        path.touch(0o600)
        path.write_text(text)
        return str(path)

    return write


def test_the_first_reading_makes_the_tunnels(toml):
    file = TunnelFile(toml(ONE + TWO), Options(), "relay.toml")
    members = file.first()
    assert [(one.name, one.now.is_required) for one in members] == [("one", False), ("two", True)]
    assert file.processes.size == 2


def test_problems_at_the_start_are_printed_and_end_the_program(toml, capsys):
    with pytest.raises(click.exceptions.Exit) as caught:
        TunnelFile(toml("[tunnels.one]\nlisten = 1\n"), Options(), "relay.toml").first()
    assert caught.value.exit_code == 2
    assert "relay.toml" in capsys.readouterr().err


def test_rules_that_deny_no_client_are_warned_of_at_the_start_alone(toml, caplog):
    deny = 'deny = ["10.0.0.0/8", "user:www-data"]\n'
    path = toml(f"[defaults]\n{deny}{ONE}{deny}allow = ['user:root']\n{TWO}")
    file = TunnelFile(path, Options(), "relay.toml")
    file.first()
    file.again()
    (warning,) = caplog.messages  # nor of the defaults, which are for listeners of several kinds
    assert warning.startswith("relay.toml:6: tunnels.one.deny[1]: user:www-data can never match: ")
    assert caplog.records[0].levelname == "WARNING"


def test_options_override_the_keys_at_the_top(toml):
    text = 'control = "a.sock"\nstatus = ":1"\nlog_file = "a.log"\nsandbox = "auto"\n'
    file = TunnelFile(toml(text + ONE), Options(), "relay.toml", {"control": "/b.sock", "log_interval": 5.0})
    file.first()
    endpoints, log = file.endpoints(file.current), file.log(file.current)
    assert (endpoints.control, endpoints.status, endpoints.config) == ("/b.sock", ":1", file.path)
    assert (log.path, log.interval) == ("a.log", 5.0)
    assert file.sandbox == "auto"
    assert TunnelFile(file.path, Options(), "relay.toml").log(file.current).interval == LOG_INTERVAL


def test_what_is_written_as_before_keeps_its_plan(toml):
    file = TunnelFile(toml(ONE + TWO), Options(), "relay.toml")
    one, two = file.first()
    toml('status = ":1"\n' + ONE + TWO.replace("workers = 2", "workers = 1"))
    again = file.again()
    assert again.settings[0].plan is one.plan
    assert again.settings[1].plan is not two.plan
    assert [change.key for change in again.keys] == ["status"]
    assert again.file.status == ":1"
    assert file.current.status is None, "nothing is in force yet"


def test_a_problem_changes_nothing(toml):
    file = TunnelFile(toml(ONE), Options(), "relay.toml")
    (one,) = file.first()
    toml("[tunnels.one]\nlisten = 1\n")
    with pytest.raises(ReloadError) as caught:
        file.again()
    assert caught.value.status == 2
    toml(ONE)
    assert file.again().settings[0].plan is one.plan
