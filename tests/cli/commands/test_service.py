"""``relay service`` as a command."""

import os
import stat

import pytest
from command_rig import run


@pytest.fixture
def home(tmp_path):
    """A home with a file of tunnels; gives the environment."""
    folder = tmp_path / ".config" / "relay"
    folder.mkdir(parents=True)
    (folder / "relay.toml").write_text('[tunnels.t]\nlisten = "i2p:"\ntarget = "h:1"\n')
    return {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}


def test_install_writes_the_unit_and_says_what_to_run(home, tmp_path):
    done = run("service", "install", "--user", env=home)
    path = tmp_path / ".config/systemd/user/relay.service"
    commands = "systemctl --user daemon-reload\nsystemctl --user enable --now relay\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {path}; now run:\n{commands}", "")
    text = path.read_text()
    assert "relay up %h/.config/relay/relay.toml\n" in text
    assert "ReadWritePaths=%h/.local/share/relay\n" in text
    assert stat.S_IMODE((tmp_path / ".local/share/relay").stat().st_mode) == 0o700
    assert run("service", "show", "--user", env=home).stdout == text
    assert run("service", "install", "--user", env=home).returncode == 0
    path.write_text("[Unit]\n")
    done = run("service", "install", "--user", env=home)
    assert (done.returncode, done.stderr) == (
        2,
        f"relay: {path}: relay has not written this unit, or it was changed; --force overwrites it\n",
    )
    assert run("service", "install", "--user", "--force", env=home).returncode == 0
    assert path.read_text() == text


def test_the_kind_of_service_is_required(home):
    done = run("service", "show", env=home)
    assert done.returncode == 2 and done.stderr == "relay: --user or --system: missing; choose one of them\n"


def test_a_file_with_a_problem_writes_nothing(home, tmp_path):
    (tmp_path / "bad.toml").write_text("nonsense = 1\n")
    done = run("service", "install", "--user", "--config", str(tmp_path / "bad.toml"), env=home)
    assert done.returncode == 2 and "nonsense" in done.stderr
    assert not (tmp_path / ".config/systemd").exists()
    done = run("service", "install", "--user", "--config", str(tmp_path / "none.toml"), env=home)
    assert done.returncode == 2 and "none.toml: No such file or directory" in done.stderr


SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$0.calls"
case "$*" in *"$(cat "$0.fails" 2>/dev/null || echo nothing)"*) echo "no bus" >&2; exit 1;; esac
"""


@pytest.fixture
def installed(home, tmp_path):
    """The path of a user's unit, and what has been run of a systemctl that does nothing."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    home["PATH"] = f"{program.parent}:{home['PATH']}"
    assert run("service", "install", "--user", env=home).returncode == 0
    return tmp_path / ".config/systemd/user/relay.service", tmp_path / "bin" / "systemctl.calls"


def test_uninstall_removes_the_unit_and_says_what_stays(installed, home, tmp_path):
    unit, calls = installed
    keys, other = (tmp_path / ".local/share/relay/i2p" / f"{name}.dat" for name in ("t", "other"))
    keys.parent.mkdir()
    for one in (keys, other):
        one.write_text("key")
    config = tmp_path / ".config/relay/relay.toml"
    config.write_text(f'state = "~/bans"\n{config.read_text()}session = "t"\n')
    (tmp_path / "bans").write_text("")
    (tmp_path / ".config/systemd/user/relay.service.d").mkdir()
    done = run("service", "uninstall", "--user", env=home)
    assert (done.returncode, done.stderr, unit.exists()) == (0, "", False)
    assert done.stdout.splitlines() == [
        "stopped and disabled relay.service",
        f"removed {unit}",
        f"kept keys and state; to remove them: rm -r {keys} {tmp_path}/bans",
        f"kept {unit}.d, your changes by systemctl edit",
        f"kept {config}, and the files that it names",
    ]
    assert "--user disable --now relay.service" in calls.read_text().splitlines()
    assert keys.exists() and (tmp_path / "bans").exists()

    # The keys of the file's tunnels, and no others.
    assert run("service", "install", "--user", env=home).returncode == 0
    done = run("service", "uninstall", "--user", "--purge", env=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert {f"removed {keys}", f"removed {tmp_path}/bans"} < set(done.stdout.splitlines())
    assert (keys.exists(), (tmp_path / "bans").exists(), other.exists(), config.exists()) == (False, False, True, True)


def test_a_failure_of_uninstall_changes_nothing(installed, home, tmp_path):
    unit, calls = installed
    text = unit.read_text()

    def problem(*options):
        calls.unlink(missing_ok=True)
        done = run("service", "uninstall", "--user", *options, env=home)
        assert (done.returncode, done.stdout) in ((1, ""), (2, "")) and unit.exists()
        return done.stderr.removeprefix("relay: ").rstrip()

    calls.with_suffix(".fails").write_text("disable")
    assert problem() == "systemctl disable --now relay.service: no bus"
    calls.with_suffix(".fails").unlink()
    config = tmp_path / ".config/relay/relay.toml"
    config.rename(f"{config}.away")
    assert problem("--purge") == f"{config}: No such file or directory; check the path"
    assert not calls.exists(), "it was not stopped"
    unit.write_text(f"{text}more")
    assert problem() == f"{unit}: relay has not written this unit, or it was changed; --force removes it"
    unit.write_text("[Unit]")
    assert "the unit names no file of tunnels" in problem("--force", "--purge")
    assert run("service", "uninstall", "--user", "--force", env=home).returncode == 0 and not unit.exists()
    done = run("service", "uninstall", "--user", env=home)
    assert (done.returncode, done.stderr) == (2, f"relay: {unit}: no such unit; check --user and --system\n")
