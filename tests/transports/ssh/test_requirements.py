"""The needs of a connection to an SSH server on this machine, by the user's configuration."""

import pytest

from relay.addresses.ssh import SSHServer
from relay.errors import AddressError
from relay.transports.ssh.requirements import requirements

pytestmark = pytest.mark.usefixtures("spawner_thread")


@pytest.fixture
def needs(tmp_path):
    """Returns the needs of a server by a configuration."""
    config = tmp_path / "config"

    def found(text, server=None, *, behind=False):
        config.write_text(text)
        return requirements(server or SSHServer("host", config=str(config)), behind=behind)

    return found


def test_the_port_and_the_files_are_those_of_the_configuration(needs, tmp_path):
    key = tmp_path / "key"
    key.touch()
    found = needs(f"Port 2222\nIdentityFile {key}\nUserKnownHostsFile {tmp_path}/known\nGlobalKnownHostsFile none\n")
    assert found.port == 2222
    assert found.program == ""
    assert {str(tmp_path / "config"), str(key), f"{key}.pub", str(tmp_path / "known")} <= set(found.reads)
    assert found.appends == []


def test_the_options_of_the_address_are_files_too(needs, tmp_path):
    (tmp_path / "key").touch()
    server = SSHServer("host", config="none", keyfile=str(tmp_path / "key"), password_file="secret")
    assert {str(tmp_path / "key"), "secret"} <= set(needs("", server).reads)


def test_unknown_hosts_are_appended_where_they_are_trusted(needs, tmp_path):
    text = f"UserKnownHostsFile {tmp_path}/known\nStrictHostKeyChecking accept-new\n"
    assert needs(text).appends == [f"{tmp_path}/known"]


def test_the_first_jump_has_the_port(needs, tmp_path):
    text = "Host host\nProxyJump first:2201,second:2202\nHost *\nPort 2203\n"
    assert needs(text).port == 2201
    assert needs(text, behind=True).port is None


def test_a_loop_of_jumps_ends(needs):
    with pytest.raises(AddressError, match="check ProxyJump for a loop"):
        needs("Host host\nProxyJump other\nHost other\nProxyJump host\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ProxyCommand nc %h %p\n", "ssh://host has a ProxyCommand"),
        ("BindAddress 127.0.0.1\n", "ssh://host uses the OpenSSH client"),
        ('Match host host exec "true"\nPort 1\n', "runs a program"),
        ("Include more\n", ""),
    ],
)
def test_programs_are_found(needs, text, words):
    assert words in needs(text).program
    assert bool(words) == bool(needs(text).program)


def test_a_proxy_command_is_not_used_behind_hops(needs):
    assert needs("ProxyCommand nc %h %p\n", behind=True).program == ""


def test_included_files_are_read(needs, tmp_path):
    (tmp_path / "included").write_text(f"Include {tmp_path}/deeper-*\n")
    (tmp_path / "deeper-1").write_text('Match exec "true"\n')
    found = needs(f'Include "{tmp_path}/included"\n')
    assert {str(tmp_path / "included"), str(tmp_path / "deeper-1")} <= set(found.reads)
    assert found.program == f"Match exec in {tmp_path}/deeper-1 runs a program"


def test_a_server_of_the_openssh_backend_is_a_program(needs):
    server = SSHServer("host", config="none", backend="openssh")
    assert needs("", server).program == "ssh://host uses the OpenSSH client"
