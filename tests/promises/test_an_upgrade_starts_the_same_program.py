"""A successor is the program that runs, with the flags of its interpreter: no package that others put in its way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_rig import buffered, run
from helpers import WAIT, wait_until

RELAY = Path(sys.executable).with_name("relay")
TUNNEL = '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "127.0.0.1:9"\n'


@pytest.fixture
def control(tmp_path, runtime_directory):
    """``control(word)``: call relay ctl; what it printed, as JSON."""

    def call(*words):
        done = run("ctl", "--control", str(runtime_directory / "c.sock"), *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    call.path = runtime_directory / "c.sock"
    yield call
    if call.path.exists():
        number = call("status")["pid"]
        run("ctl", "--control", str(call.path), "stop")
        wait_until(lambda: not Path(f"/proc/{number}").exists())


def plant(folder, mark):
    """Put a package of the same name there, which leaves a mark when it is imported."""
    (folder / "relay").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (folder / "relay" / name).write_text(f"open({str(mark)!r}, 'w')\n")


@pytest.mark.parametrize(
    ("flags", "program", "place"),
    [
        ([], ["-m", "relay"], "cwd"),
        (["-P"], ["-m", "relay"], "cwd"),
        (["-I"], ["-m", "relay"], "path"),
        (["-E", "-Werror"], ["-m", "relay"], "path"),
        (["-I"], [RELAY], "path"),
        ([], [RELAY], "cwd"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)) or "none",
)
def test_no_package_of_others_is_imported(tmp_path, control, flags, program, place):
    file, cwd, path, mark = (tmp_path / name for name in ("relay.toml", "cwd", "path", "mark"))
    file.write_text(TUNNEL)
    file.chmod(0o600)
    cwd.mkdir()
    path.mkdir()
    argv = list(map(str, [sys.executable, *flags, *program, "up", file, "--control", control.path]))
    environment = buffered({**os.environ, "PYTHONPATH": str(path)})
    with subprocess.Popen(argv, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert b"listening on" in process.stdout.readline()
            wait_until(control.path.exists)
            plant(tmp_path / place, mark)
            control("upgrade")
            successor = control("status")["pid"]
            assert successor != process.pid
            assert not mark.exists()
            words = Path(f"/proc/{successor}/cmdline").read_bytes().decode().split("\0")
            assert set(flags) <= set(words)
            assert process.wait(WAIT) == 0
        finally:
            process.kill()


def test_the_file_of_the_module_is_the_command_of_its_own_package(tmp_path):
    import relay

    plant(tmp_path, tmp_path / "mark")
    main = Path(relay.__file__).with_name("__main__.py")
    done = subprocess.run(
        [sys.executable, "-P", main, "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"relay {relay.__version__}\n")
    assert not (tmp_path / "mark").exists()
