"""The checks for the steps of an SSH login."""

import base64
from types import SimpleNamespace

import pytest

from relay.cli.doctor import ssh_steps
from relay.cli.doctor.recorder import RecordedStep
from relay.cli.doctor.report import Status
from relay.errors import AuthenticationError, ConnectError, HostKeyError
from relay.streams.trace import Stage
from relay.transports.ssh.connection import GREETING, KEY_EXCHANGE, IncompatibleError

KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
BLOB = base64.b64decode(KEY)


def step(**facts):
    made = RecordedStep(Stage.LOGIN, "ssh://bastion", facts, lambda: None)
    made.done()
    return made


def transport(**values):
    names = ("remote_version", "kex", "host_key_type", "remote_cipher", "remote_mac")
    return SimpleNamespace(**dict.fromkeys(names, None) | values)


def test_a_key_exchange_has_the_version_and_the_algorithms():
    agreed = transport(remote_version="SSH-2.0-x\x1b", kex="curve", host_key_type="ed", remote_cipher="aes")
    version, exchange = ssh_steps.key_exchange(step(transport=agreed), None, Status.OK)
    assert (version.step, version.text) == ("ssh version", "SSH-2.0-x\\x1b")
    assert (exchange.step, exchange.text, exchange.facts["mac"]) == ("key exchange", "curve, ed, aes", "")
    version, exchange = ssh_steps.key_exchange(step(transport=agreed), ConnectError("nothing in common"), Status.FAILED)
    assert (version.status, exchange.status, exchange.text) == (Status.OK, Status.FAILED, "nothing in common")
    assert exchange.advice


@pytest.fixture
def settings(tmp_path):
    """Returns the settings of a login with a known_hosts file of this text."""

    def make(text, hostkey=None):
        (path := tmp_path / "known_hosts").write_text(text)
        server = SimpleNamespace(hostkey=hostkey)
        return SimpleNamespace(known_hosts=(str(path),), host_key_names=("bastion",), server=server)

    return make


@pytest.mark.parametrize("line", ["", f"@revoked bastion ssh-ed25519 {KEY}\n", f"other ssh-ed25519 {KEY}\n"])
def test_a_host_key_that_would_be_stored_is_a_warning(settings, line):
    (check,) = ssh_steps.host_key(step(settings=settings(line), blob=BLOB), None, Status.OK)
    assert (check.status, check.facts["known"]) == (Status.WARNING, [])
    assert "is not known" in check.text and "compare the fingerprint" in check.advice


def test_a_host_key_that_is_pinned(settings):
    (check,) = ssh_steps.host_key(step(settings=settings("", "SHA256:x"), blob=BLOB), None, Status.OK)
    assert check.text.endswith(", pinned by hostkey")
    error = HostKeyError("ssh://bastion: another key; compare it")
    (check,) = ssh_steps.host_key(step(settings=settings(""), blob=BLOB), error, Status.FAILED)
    assert (check.status, check.text, check.advice) == (Status.FAILED, "another key", "compare it")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (HostKeyError("x"), "host key"),
        (AuthenticationError("x"), "login"),
        (IncompatibleError("x"), "key exchange"),
        (ConnectError("there is no SSH server"), "ssh version"),
        (ConnectError("x", reason="refused"), "connect"),
        (ConnectError("cannot resolve x", reason="unreachable"), "resolve"),
        (ConnectError("x", reason="connect_timeout"), "connect"),
        (ConnectError("x", reason="closed"), "login"),
    ],
)
def test_an_error_of_the_openssh_client_names_the_step(error, name):
    (check,) = ssh_steps.client(step(), error, Status.FAILED)
    assert (check.step, check.status) == (name, Status.FAILED)


@pytest.mark.parametrize(("stage", "name"), [(GREETING, "ssh version"), (KEY_EXCHANGE, "key exchange")])
def test_the_stage_of_an_error_names_the_step(stage, name):
    error = ConnectError("it ended")
    error.stage = stage
    assert ssh_steps.client(step(), error, Status.FAILED)[0].step == name


def test_a_login_of_the_openssh_client():
    (check,) = ssh_steps.client(step(), None, Status.OK)
    assert (check.step, check.status) == ("login", Status.OK)


def test_a_login_says_what_was_offered_and_tried():
    tried = step(offered=["publickey"], rejected=["a key\n"], accepted=["password"])
    (check,) = ssh_steps.login(tried, None, Status.OK)
    assert check.text == r"by password; the server offers publickey; rejected before: a key\n"
    (check,) = ssh_steps.login(step(accepted=["none"]), None, Status.OK)
    assert check.text == "by none; the server offers no other method"
