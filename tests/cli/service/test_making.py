"""The user of the unit, and its sandbox, from a file on disk."""

import os
import pwd
import sys

import pytest

from relay.cli.service import making
from relay.cli.service.making import make_unit
from relay.cli.service.unit import Sandbox
from relay.daemon.failures import ProblemsError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")

OTHER = pwd.getpwnam("nobody")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Returns the unit for a text; its folder is public unless there is another mode."""
    monkeypatch.setattr(making, "_is_public", lambda path: bool(os.stat(path).st_mode & 0o004))
    monkeypatch.setattr(making, "_TEMPORARY", ())
    monkeypatch.setattr(making, "_check_program", lambda command: None)

    def make(*more, mode=0o644, owner=0, homes=("/nowhere",), name="relay.toml", **options):
        monkeypatch.setattr(making, "_HOMES", homes)
        path = tmp_path / name
        path.write_text("\n".join([*more, "[tunnels.t]", 'listen = "8080"', 'target = "h:1"', ""]))
        path.chmod(mode)
        os.chown(path, owner, -1)
        return make_unit(str(path), **{"is_users": False, "version": 255, **options})

    return make


def test_a_file_that_all_can_read_has_a_user_of_systemd(made, tmp_path):
    unit = made()
    assert (unit.user, unit.config) == ("", str(tmp_path / "relay.toml"))
    assert not unit.sandbox.needs_tmp and not unit.sandbox.starts_programs


def test_the_owner_of_a_private_file_runs_it(made, tmp_path):
    assert made(mode=0o600, owner=OTHER.pw_uid).user == "nobody"
    with pytest.raises(ValueError, match="only root can read it, and the service does not run as root; chown it to"):
        made(mode=0o600)
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(0o600)
    os.chown(tmp_path / "token", OTHER.pw_uid, -1)
    token = 'status_token_file = "token"'
    assert made(token).user == "nobody"
    os.chown(tmp_path / "token", 4242, -1)
    with pytest.raises(ValueError, match="no user can read all of these files; chown them to the same user"):
        made(token, mode=0o600, owner=OTHER.pw_uid)
    with pytest.raises(ValueError, match="its owner 4242 has no name; chown it to a user of this machine"):
        made(token)


def test_the_owner_of_a_file_in_a_home_runs_it(made, tmp_path):
    unit = made(owner=OTHER.pw_uid, homes=(str(tmp_path),))
    assert unit.user == "nobody" and unit.sandbox.needs_home
    with pytest.raises(ValueError, match="it is root's, and the service does not run as root; move it to /etc/relay"):
        made(homes=(str(tmp_path),))


def test_the_users_own_service_has_no_user(made, monkeypatch):
    unit = made(mode=0o600, is_users=True)
    assert unit.user is None and unit.is_users and unit.sandbox.needs_home
    monkeypatch.setenv("HOME", "/home/me")
    assert making.default_config(is_users=True) == "/home/me/.config/relay/relay.toml"
    assert making.default_config(is_users=False) == "/etc/relay/relay.toml"


def test_a_relay_that_a_private_tmp_would_hide_is_shown_to_the_service(made, monkeypatch):
    assert made().sandbox.binds == ()
    monkeypatch.setattr(making, "_TEMPORARY", ("/scratch",))
    monkeypatch.setattr(sys, "prefix", "/scratch/relay/.venv")
    monkeypatch.setattr(making, "package", "/scratch/relay/relay/__init__.py")
    unit = made()
    assert unit.sandbox.binds == ("/scratch/relay/.venv", "/scratch/relay") and not unit.sandbox.needs_tmp


def test_a_file_with_problems_gets_no_unit(made):
    with pytest.raises(ProblemsError, match="nonsense"):
        made("nonsense = 1")
    with pytest.raises(ValueError, match="No such file or directory; write the tunnels there"):
        make_unit("/nowhere/relay.toml", is_users=False, version=255)


def test_a_path_that_a_unit_cannot_hold_is_an_error(made):
    cannot = "a path with a control character, or a backslash at its end, cannot be in a unit; choose another path"
    with pytest.raises(ValueError, match=cannot):
        made(r'log_file = "a\nb/c"')
    with pytest.raises(ValueError, match=cannot):
        made("", name="tunnels\\")


def test_folders_that_systemd_makes_are_no_exceptions(made):
    assert made('log_file = "/var/lib/relay/log"').sandbox.writes == ()
    assert made('log_file = "/var/log/relay/log"').sandbox.writes == ("/var/log/relay",)


def test_the_groups_of_sockets_and_a_shared_directory_are_exceptions(made):
    def tunnel(listen):
        return f'[tunnels.u]\nlisten = "unix:///{listen}"\ntarget = "h:1"'

    assert made(tunnel("run/relay/u?mode=0660&group=root")).sandbox == Sandbox(groups=("0",), shares_runtime=True)
    both = "\n".join(
        [tunnel("run/relay/u?group=root"), tunnel("run/relay/v?group=0").replace("tunnels.u", "tunnels.v")]
    )
    assert made(both).sandbox.groups == ("0",), "one group, by name and by number"
    assert not made(tunnel("run/relay/u")).sandbox.shares_runtime
    assert not made(tunnel("run/other/u?mode=0660")).sandbox.shares_runtime
    with pytest.raises(ValueError, match="this machine has no group nobodys"):
        made(tunnel("run/relay/u?group=nobodys"))
    with pytest.raises(ValueError, match="group=root: the sandbox of a user's service has no other groups; use --sys"):
        made(tunnel("run/relay/u?group=root"), is_users=True)


def test_a_program_of_root_alone_is_an_error(tmp_path, monkeypatch):
    program = tmp_path / "relay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    with pytest.raises(
        ValueError, match="other users cannot run this relay; install it for all users, such as in /opt"
    ):
        making._check_program((str(program),))


def test_the_command_is_the_one_that_runs(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/sh"])
    executable, *flags, option, module = making._command()
    assert (executable, option, module) == (sys.executable, "-m", "relay")
    assert "-P" in flags, "no package of the working directory"
    relay = os.path.join(os.path.dirname(sys.executable), "relay")
    monkeypatch.setattr(sys, "argv", [relay])
    assert making._command() == (relay,)


def test_the_version_of_systemd_is_that_of_the_machine(monkeypatch, tmp_path):
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\necho 'systemd 249 (249.11)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert making.systemd_version() == 249
    program.write_text("#!/bin/sh\nexit 1\n")
    assert making.systemd_version() == 254
    program.unlink()
    assert making.systemd_version() == 254
