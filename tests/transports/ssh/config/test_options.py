"""Reading the user's SSH configuration, by the client and without it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import is_running, wait_until

from relay import AddressError, ConnectError
from relay.addresses.ssh import SSHServer
from relay.transports.ssh.config import options
from relay.transports.ssh.config.options import Options, read
from relay.transports.ssh.internals import LISTS, supported

pytestmark = pytest.mark.usefixtures("spawner_thread")


@pytest.fixture(params=["ssh -G", "paramiko"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with each of the two parsers."""
    if request.param == "paramiko":
        monkeypatch.setattr(options, "which", lambda name: None)
    elif shutil.which("ssh") is None:
        pytest.skip("there is no ssh (Debian: openssh-client)")
    return str(request.param)


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., Options]:
    """Return a function of a configuration and a host, which returns the settings of the host."""

    def ask(text: str, host: str = "host") -> Options:
        (tmp_path / "config").write_text(text)
        return read(SSHServer(host, config=str(tmp_path / "config")))

    return ask


@pytest.mark.parametrize(
    ("host", "behind", "here"), [("db", False, True), ("db", True, False), ("x.i2p", False, False)]
)
def test_a_name_that_is_others_to_look_up_is_not_made_canonical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, behind: bool, here: bool
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(options, "_ask", lambda server, argv: asked.append(argv) or {})
    monkeypatch.setattr(options, "_defaults_of", lambda server, program: {})
    read(SSHServer(host, config=str(tmp_path / "config")), behind=behind)
    assert ("CanonicalizeHostname=no" in asked[0]) is not here


def test_the_callers_wishes_decide_what_matches(told: Any, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Match user deploy\n HostName inner\n")
    assert read(SSHServer("host", "deploy", 99, config=str(tmp_path / "config"))).text("hostname") == "inner"
    assert read(SSHServer("host", "other", 99, config=str(tmp_path / "config"))).text("port") == "99"


def test_switches(parser: str, told: Any) -> None:
    found = told("Compression yes\nHashKnownHosts no\nProxyCommand none\n")
    assert found.is_yes("compression") and not found.is_no("compression")
    assert found.is_no("hashknownhosts") and not found.is_yes("hashknownhosts")
    assert found.text("proxycommand") == "" and not found.is_yes("nosuchoption") and not found.is_no("nosuchoption")


def test_algorithms_that_the_user_has_not_chosen(parser: str, told: Any) -> None:
    found = told("")
    assert [found.algorithms(name) for name in LISTS] == [()] * len(LISTS)
    assert [found.added(name) for name in LISTS] == [()] * len(LISTS)


def test_algorithms_that_the_user_has_chosen(parser: str, told: Any) -> None:
    found = told("Ciphers aes256-ctr,aes128-ctr\nMACs +hmac-md5-96\nKexAlgorithms -*nistp*\n")
    assert found.algorithms("ciphers") == ("aes256-ctr", "aes128-ctr")
    assert found.algorithms("macs") == ()
    kex = found.algorithms("kexalgorithms")
    assert kex and not any("nistp" in name for name in kex)
    first = told("Ciphers ^aes256-ctr\n").algorithms("ciphers")
    assert first[0] == "aes256-ctr" and len(first) > 3


def test_an_algorithm_that_is_added(told: Any) -> None:
    found = told("Ciphers +aes128-cbc\nHostKeyAlgorithms +ssh-rsa\n")
    assert found.added("ciphers") == ("aes128-cbc",) and found.added("hostkeyalgorithms") == ("ssh-rsa",)


def test_paramikos_lists_are_there() -> None:
    assert all(supported(name) for name in LISTS)


def test_it_is_read_anew_at_each_call(parser: str, told: Any) -> None:
    assert told("Port 1\n").text("port") == "1"
    assert told("Port 2\n").text("port") == "2"


def test_a_broken_configuration(told: Any) -> None:
    with pytest.raises(AddressError, match=r"^ssh://host: .*config: line 2: Bad configuration option: foo$"):
        told("Port 1\nFoo bar\n")


def test_a_broken_configuration_without_the_client(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "which", lambda name: None)
    for text in ("???\n", "Match foo\n", 'Host "\n'):
        with pytest.raises(AddressError, match="^ssh://host: the SSH configuration cannot be used") as raised:
            told(text)
        assert "\n" not in str(raised.value)


def test_a_configuration_that_is_not_there(parser: str, tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="(?i)no such file"):
        read(SSHServer("host", config=str(tmp_path / "none")))
    assert read(SSHServer("host", config="none")).text("port") == "22"


def test_a_client_that_hangs_is_ended_with_its_children(
    told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told("")
    text = ""
    for seconds in (0.3, 3.0, 30.0):  # a busy machine may need longer until the child is there
        monkeypatch.setattr(options, "ANSWER_TIME", seconds)
        with pytest.raises(ConnectError, match="ssh -G.*Match exec") as raised:
            told(f'Match exec "echo $$ >{tmp_path}/pid; sleep 1000"\n Port 1\n')
        assert raised.value.reason == "connect_timeout"
        text = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""
        if text:
            break
    wait_until(lambda: not is_running(int(text)))


def test_a_reader_that_is_killed_says_nothing_of_the_configuration(told: Any) -> None:
    with pytest.raises(ConnectError, match="`ssh -G` was killed by signal 9; relay tries again$") as raised:
        told('Match exec "kill -9 $PPID"\n Port 1\n')
    assert raised.value.reason == "unreachable"


def test_a_child_that_stays_behind_does_not_hold_us(told: Any, tmp_path: Path) -> None:
    found = told(f'Match exec "sleep 1000 & echo $! >{tmp_path}/pid"\n Port 7\n')
    os.kill(int((tmp_path / "pid").read_text()), 9)  # it is still there
    assert found.text("port") == "7"


def test_match_exec_without_the_client_is_told(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "which", lambda name: None)
    monkeypatch.setattr("paramiko.config.invoke", None)
    monkeypatch.setattr("paramiko.config.invoke_import_error", ImportError())
    with pytest.raises(AddressError, match="Match exec.*needs the OpenSSH client"):
        told("Match exec true\n Port 1\n")


def test_include_without_the_client_is_told_once(
    told: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(options, "which", lambda name: None)
    with caplog.at_level(logging.WARNING, "relay"):
        assert told("Include other\nPort 5\n").text("port") == "5"
        told("Include other\nPort 5\n")
    assert [record.getMessage() for record in caplog.records if "Include" in record.getMessage()] == [
        caplog.records[0].getMessage()
    ]


def test_a_user_without_an_entry_in_the_password_file(monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    def fail(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr(options.pwd, "getpwuid", fail)
    monkeypatch.setenv("HOME", "/nowhere")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    found = told("Host host\n HostName %h.internal\nHost other\n Port 8\nHost *\n Port 9\n")
    assert found.text("hostname") == "host.internal"
    assert found.text("port") == "9" and found.text("user") == str(os.getuid())
    assert options.home() == "/nowhere"
    with pytest.raises(AddressError, match="set the environment variable USER"):
        told("Match localuser me\n Port 1\n")
