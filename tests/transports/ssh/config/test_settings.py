"""The caller's wishes over the user's SSH configuration."""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ssh_keys import blob, line, make

from relay import AddressError
from relay.addresses.ssh import SSHServer
from relay.errors import RelayError
from relay.transports.ssh.config import options
from relay.transports.ssh.config import settings as configuration
from relay.transports.ssh.config.settings import CLIENT_ONLY
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.internals import LISTS, supported

pytestmark = pytest.mark.usefixtures("spawner_thread")

HOME = pwd.getpwuid(os.getuid()).pw_dir
USER = pwd.getpwuid(os.getuid()).pw_name
Told = Callable[..., Settings]


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_AUTH_SOCK", "KRB5CCNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(configuration, "_warned", set())


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Return a function of a configuration and wishes, which returns the settings of the host ``db``."""

    def ask(text: str = "", **wishes: Any) -> Settings:
        (tmp_path / "config").write_text(text)
        return configuration.resolve_settings(SSHServer(**{"host": "db", "config": str(tmp_path / "config"), **wishes}))

    return ask


@pytest.fixture(params=["ssh -G", "paramiko"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "paramiko":
        monkeypatch.setattr(options, "which", lambda name: None)


def test_without_any_wish(parser: None, told: Told) -> None:
    settings = told()
    assert (settings.hostname, settings.port, settings.user, settings.name) == ("db", 22, USER, "ssh://db")
    assert settings.host_key_name == "db" and not settings.accept_new and settings.requires_openssh == ""
    assert settings.known_hosts == (
        f"{HOME}/.ssh/known_hosts",
        f"{HOME}/.ssh/known_hosts2",
        "/etc/ssh/ssh_known_hosts",
        "/etc/ssh/ssh_known_hosts2",
    )
    assert (settings.ciphers, settings.kex, settings.macs, settings.host_key_algorithms) == ((), (), (), ())
    assert settings.agent is None and settings.jumps == () and settings.command is None and not settings.compress


def test_everything_that_is_honoured(parser: None, told: Told, tmp_path: Path) -> None:
    make(tmp_path / "mine")
    (tmp_path / "mine-cert.pub").write_text("")
    settings = told(
        f"""
        Host db
          HostName db.internal
          User me
          Port 2222
          IdentityFile {tmp_path}/%n/../mine
          IdentityFile {tmp_path}/mine
          IdentityFile {tmp_path}/missing
          IdentitiesOnly yes
          CertificateFile {tmp_path}/mine-cert.pub
          IdentityAgent /run/agent-%r
          ProxyJump you@first:2201,[::1]:2202,third
          UserKnownHostsFile {tmp_path}/known
          GlobalKnownHostsFile /etc/known
          HostKeyAlias the-db
          StrictHostKeyChecking accept-new
          HashKnownHosts yes
          Ciphers aes256-ctr
          KexAlgorithms ecdh-sha2-nistp521
          MACs hmac-sha2-512
          HostKeyAlgorithms rsa-sha2-512
          Compression yes
          ControlMaster auto
          RemoteCommand false
          RequestTTY force
          ForkAfterAuthentication yes
          LocalForward 1 a:2
        """
    )
    (tmp_path / "db").mkdir()
    assert (settings.hostname, settings.user, settings.port) == ("db.internal", "me", 2222)
    assert settings.identities == (f"{tmp_path}/mine",) and settings.identities_only
    assert settings.certificates == (f"{tmp_path}/mine-cert.pub",) and settings.agent == "/run/agent-me"
    assert [(jump.user, jump.host, jump.port, jump.config) for jump in settings.jumps] == [
        ("you", "first", 2201, f"{tmp_path}/config"),
        (None, "::1", 2202, f"{tmp_path}/config"),
        (None, "third", None, f"{tmp_path}/config"),
    ]
    assert settings.known_hosts == (f"{tmp_path}/known", "/etc/known") and settings.host_key_name == "the-db"
    assert settings.accept_new and settings.hash_known_hosts and settings.compress
    assert settings.ciphers == ("aes256-ctr",) and settings.kex == ("ecdh-sha2-nistp521",)
    assert settings.macs == ("hmac-sha2-512",) and settings.host_key_algorithms == ("rsa-sha2-512",)
    assert settings.requires_openssh == ""


def test_the_caller_wins(parser: None, told: Told, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        make(tmp_path / name)
    text = f"User me\nPort 1\nIdentityFile {tmp_path}/other\nCompression yes\nUserKnownHostsFile /no\n"
    wishes = {"keyfile": str(tmp_path / "mine"), "known_hosts": "~/known", "accept_new": True, "compress": False}
    settings = told(text + "GlobalKnownHostsFile /etc/known\n", user="you", port=2, **wishes)
    assert (settings.user, settings.port, settings.compress, settings.accept_new) == ("you", 2, False, True)
    assert settings.identities == (str(tmp_path / "mine"),) and settings.identities_only
    assert settings.known_hosts == (os.path.expanduser("~/known"), "/etc/known")
    assert settings.host_key_name == "[db]:2"


def test_a_key_beside_those_of_the_configuration(parser: None, told: Told, tmp_path: Path) -> None:
    mine, other = str(make(tmp_path / "mine")), str(make(tmp_path / "other"))
    text = f"IdentityFile {other}\nIdentityFile {mine}\nIdentityAgent /run/agent\n"
    settings = told(text, keyfile=mine, identities_only=False)
    assert (settings.identities, settings.identities_only) == ((mine, other), False)
    assert settings.agent == "/run/agent"
    assert told(f"{text}IdentitiesOnly yes\n", keyfile=mine, identities_only=False).identities_only
    with pytest.raises(AddressError, match="no such file"):
        told(text, keyfile=f"{mine}-not", identities_only=False)


def test_a_key_that_the_caller_names_must_be_there(told: Told, tmp_path: Path) -> None:
    with pytest.raises(AddressError, match=r"^ssh://db: keyfile=/no/key: no such file; check the path$"):
        told(keyfile="/no/key")


def test_a_key_of_which_only_the_public_part_is_there_is_the_agents(told: Told, tmp_path: Path) -> None:
    make(tmp_path / "mine")
    (tmp_path / "mine").unlink()
    assert told(f"IdentityFile {tmp_path}/mine").identities == (f"{tmp_path}/mine",)


def test_no_keys(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "mine")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    text = f"PubkeyAuthentication no\nIdentityFile {tmp_path}/mine\n"
    assert (told(text).identities, told(text).agent) == ((), None)
    assert told(text, keyfile=str(tmp_path / "mine")).identities == (f"{tmp_path}/mine",)
    assert told("IdentityFile none").identities == ()


@pytest.mark.parametrize(
    ("wish", "agent"),
    [
        ("", "/run/environment"),
        ("IdentityAgent SSH_AUTH_SOCK", "/run/environment"),
        ("IdentityAgent none", None),
        ("IdentityAgent $OTHER", "/run/other"),
        ("IdentityAgent $MISSING", None),
        ("IdentityAgent ${OTHER}/x", "/run/other/x"),
        ("IdentityAgent ~/agent", f"{HOME}/agent"),
        ("IdentityAgent /run/%u/%i", f"/run/{USER}/{os.getuid()}"),
    ],
)
def test_the_agent(parser: None, told: Told, monkeypatch: pytest.MonkeyPatch, wish: str, agent: str | None) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/environment")
    monkeypatch.setenv("OTHER", "/run/other")
    monkeypatch.delenv("MISSING", raising=False)
    assert told(wish).agent == agent


def test_files_with_spaces_in_their_names(parser: None, told: Told, tmp_path: Path) -> None:
    (tmp_path / "a b").touch()
    settings = told(f'UserKnownHostsFile "{tmp_path}/a b"\nGlobalKnownHostsFile none\n')
    assert settings.known_hosts == (f"{tmp_path}/a b",)
    assert told("UserKnownHostsFile /a /b\nGlobalKnownHostsFile none\n").known_hosts == ("/a", "/b")


def test_without_files_of_the_user_nothing_is_written_to_the_systems(told: Told) -> None:
    assert told("UserKnownHostsFile none\nGlobalKnownHostsFile /etc/known\n").known_hosts == (os.devnull, "/etc/known")


@pytest.mark.parametrize(
    ("wish", "accepts", "warnings"),
    [("", 0, 0), ("yes", 0, 0), ("ask", 0, 0), ("accept-new", 1, 0), ("no", 0, 1), ("off", 0, 1)],
)
def test_strictness(
    parser: None, told: Told, caplog: pytest.LogCaptureFixture, wish: str, accepts: int, warnings: int
) -> None:
    text = f"StrictHostKeyChecking {wish}\n" if wish else ""
    with caplog.at_level(logging.WARNING, "relay"):
        assert told(text).accept_new is bool(accepts)
        told(text)
    told_off = [record for record in caplog.records if "StrictHostKeyChecking" in record.getMessage()]
    assert len(told_off) == warnings  # one for each server


def test_a_proxy_command(parser: None, told: Told) -> None:
    text = 'HostName db.internal\nUser me\nPort 5\nProxyCommand nc -x "%h" %p %n %r 100%%'
    assert told(text).command == 'nc -x "db.internal" 5 db me 100%'
    assert told("ProxyCommand none").command is None


def test_a_descriptor_that_a_command_passes_is_for_the_client_alone(parser: None, told: Told) -> None:
    text = "ProxyCommand nc %h %p\nProxyUseFdpass yes"
    with pytest.raises(RelayError, match="^ssh://db: ProxyUseFdpass.*OpenSSH client.*backend='openssh'") as raised:
        told(text, backend="paramiko")
    assert type(raised.value) is RelayError, "it is final"
    assert told(text, backend="openssh").command == "nc db 22"
    assert told(text).requires_openssh.startswith("ProxyUseFdpass")
    assert told("ProxyUseFdpass yes", backend="paramiko").command is None


@pytest.mark.parametrize("user", ["a`id`", "a$(id)", "a;id", "a|id", "a&id", "a\\b", "a>b", "a(b", "a*b"])
def test_a_name_that_a_shell_would_read_goes_into_no_command(parser: None, told: Told, user: str) -> None:
    with pytest.raises(AddressError, match="^ssh://db: .*ProxyCommand"):
        told(f"Match all\n User {user}\n ProxyCommand nc %h %p %r")


@pytest.mark.parametrize("host", ["-oProxyCommand=id", "a b", "a;b", "$(id)", "a`b", "a/b", "x%h%h;", "%%eth0", "a'b"])
def test_a_host_that_is_none(parser: None, told: Told, host: str) -> None:
    with pytest.raises(AddressError, match="^ssh://db: ") as raised:
        told(f'HostName "{host}"')
    assert "\n" not in str(raised.value)


def test_an_address_with_a_zone(parser: None, told: Told) -> None:
    assert told("HostName fe80::1%%eth0").hostname == "fe80::1%eth0"


@pytest.mark.parametrize(
    "jump",
    [
        "[fe80::1%eth0]",
        "me@[fe80::1%eth0]:22",
        "fe80::1%eth0",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]:",
        "@hop",
        "me@",
        "me you@hop",
        "me:secret@hop",
        "hop:",
        "hop:2_2",
        "hop:٢٢",
        "hop: 22",
        "hop:+22",
        "hop:" + "9" * 5000,
        "hop/x",
        "ho\x01p",
        "h\udcff",
    ],
)
def test_a_jump_that_is_none(jump: str) -> None:
    with pytest.raises(AddressError, match="^ssh://db: ProxyJump ") as raised:
        configuration._jump(SSHServer("db"), jump)
    text = str(raised.value)
    assert text.isprintable() and len(text) < 300 and "invalid literal" not in text


@pytest.mark.parametrize(
    ("jump", "host", "user", "port"),
    [
        ("hop", "hop", None, None),
        ("me@hop:5", "hop", "me", 5),
        ("ssh://me@hop:5/", "hop", "me", 5),
        ("[::1]:5", "::1", None, 5),
        ("me@[::1]", "::1", "me", None),
        ("::1", "::1", None, None),
    ],
)
def test_a_jump(jump: str, host: str, user: str | None, port: int | None) -> None:
    assert configuration._jump(SSHServer("db"), jump) == SSHServer(host, user, port)


@pytest.mark.parametrize("wish", ["Port 0", "Port 65536", "Port x", "ProxyJump a:0", "ProxyJump -x"])
def test_values_that_cannot_be_right(parser: None, told: Told, wish: str) -> None:
    with pytest.raises(AddressError, match="^ssh://db: ") as raised:
        told(wish)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wish", "option"),
    [
        ("PKCS11Provider /lib/x.so", "PKCS11Provider"),
        ("SecurityKeyProvider /lib/x.so", "SecurityKeyProvider"),
        ("HostbasedAuthentication yes", "HostbasedAuthentication"),
        ("KnownHostsCommand /bin/x", "KnownHostsCommand"),
        ("RevokedHostKeys /etc/x", "RevokedHostKeys"),
        ("VerifyHostKeyDNS yes", "VerifyHostKeyDNS"),
        ("BindAddress 127.0.0.1", "BindAddress"),
        ("BindInterface lo", "BindInterface"),
        ("ProxyCommand x\nProxyUseFdpass yes", "ProxyUseFdpass"),
        ("Ciphers chacha20-poly1305@openssh.com", "Ciphers"),
        ("KexAlgorithms sntrup761x25519-sha512@openssh.com", "KexAlgorithms"),
        ("KexAlgorithms +diffie-hellman-group1-sha1", "KexAlgorithms"),
        ("MACs umac-64@openssh.com,umac-128@openssh.com", "MACs"),
        ("HostKeyAlgorithms +ssh-rsa", "HostKeyAlgorithms"),
        ("PubkeyAcceptedAlgorithms +ssh-rsa", "PubkeyAcceptedAlgorithms"),
    ],
)
def test_what_needs_the_client(parser: None, told: Told, wish: str, option: str) -> None:
    if option.lower() in LISTS and wish.partition("+")[2] in supported(option.lower()):
        assert told(wish).requires_openssh == "", "an old paramiko has it"
    else:
        assert told(wish).requires_openssh.startswith(option + " ")
    assert option in {need.option for need in CLIENT_ONLY}


@pytest.mark.parametrize(
    "wish",
    [
        "PKCS11Provider none",
        "SecurityKeyProvider internal",
        "KnownHostsCommand none",
        "VerifyHostKeyDNS ask",
        "Ciphers chacha20-poly1305@openssh.com,aes128-ctr",
        "Ciphers +aes128-cbc",
        "MACs -umac*",
        "GSSAPIAuthentication yes",  # as everywhere on Debian, and here is no ticket
        "CanonicalizeHostname yes\nCanonicalDomains invalid",
    ],
)
def test_what_does_not(told: Told, wish: str) -> None:
    assert told(wish).requires_openssh == ""


def test_the_home_directory_in_the_callers_paths(
    parser: None, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").write_text("User somebody\n")
    make(tmp_path / "key")
    settings = told(config="~/mine", keyfile="~/key", known_hosts="~/known", password_file="~/word")
    assert settings.user == "somebody"
    assert settings.identities == (f"{tmp_path}/key",) and settings.known_hosts[0] == f"{tmp_path}/known"
    server = settings.server
    paths = [server.config, server.keyfile, server.known_hosts, server.password_file]
    assert paths == [f"{tmp_path}/{name}" for name in ("mine", "key", "known", "word")]


def test_added_algorithms_are_kept(parser: None, told: Told) -> None:
    settings = told("Ciphers +aes128-cbc\nKexAlgorithms ecdh-sha2-nistp256\n")
    assert settings.added == ("aes128-cbc",)
    assert settings.ciphers == () and settings.kex == ("ecdh-sha2-nistp256",)


@pytest.mark.parametrize("wish", ["KnownHostsCommand /bin/x", "VerifyHostKeyDNS yes"])
def test_with_a_pin_other_sources_of_trust_do_not_count(told: Told, wish: str) -> None:
    assert told(wish, hostkey="SHA256:" + "A" * 43).requires_openssh == ""


def test_a_key_exchange_by_kerberos(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    """An option that only the clients of some distributions know."""
    assert not told().gssapi_key_exchange
    monkeypatch.setattr(options, "_ask", lambda server, argv: {"gssapikeyexchange": ["yes"], "user": ["me"]})
    assert told().gssapi_key_exchange


def test_kerberos_with_a_ticket(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5CCNAME", "KCM:")
    assert told("GSSAPIAuthentication yes").requires_openssh.startswith("GSSAPIAuthentication ")
    assert told("GSSAPIAuthentication no").requires_openssh == ""


def test_a_key_that_lies_in_hardware(told: Told, tmp_path: Path) -> None:
    public = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAAA=="
    (tmp_path / "id_sk.pub").write_text(public + "\n")
    (tmp_path / "id_sk").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "id").write_bytes(make(tmp_path / "made").read_bytes())
    for wishes in ({"keyfile": f"{tmp_path}/id_sk"}, {"keyfile": f"{tmp_path}/id_sk.pub"}):
        assert "security key" in told("", **wishes).requires_openssh
    text = f"IdentityFile {tmp_path}/id_sk\nIdentityFile {tmp_path}/id\n"
    assert "security key" in told(text).requires_openssh
    assert told(text, keyfile=f"{tmp_path}/id").requires_openssh == ""


def test_a_host_of_which_only_an_authority_is_known(told: Told, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("@cert-authority " + line("*") + "\n")
    assert told(known_hosts=str(known)).requires_openssh.startswith("@cert-authority ")
    assert told(known_hosts=str(known), hostkey="SHA256:" + "A" * 43).requires_openssh == ""
    known.write_text(known.read_text() + line("db", blob(1)) + "\n")
    assert told(known_hosts=str(known)).requires_openssh == ""


def test_the_defaults_are_asked_once(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    told()
    asked: list[Any] = []
    ask = options._ask
    monkeypatch.setattr(options, "_ask", lambda server, argv: asked.append(argv) or ask(server, argv))
    told()
    assert len(asked) == 1
    assert asked[0][-2:] == ["--", "db"]
