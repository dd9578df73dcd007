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
