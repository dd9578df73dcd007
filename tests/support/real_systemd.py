"""A real systemd as process 1 of namespaces of its own, beside what the machine runs: its units are the test's own."""

import contextlib
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

from helpers import WAIT, wait_until

SYSTEMD = "/usr/lib/systemd/systemd"
UNITS = "/etc/systemd/system"  # inside; the machine's own is hidden
FOLDER = "/run/relay-test"  # inside, for the files of the tests
TARGETS = ("basic", "default", "multi-user", "network-online", "shutdown", "sockets", "sysinit")

# Nothing outside changes: what is written is in memory. The program's own files stay visible for every user, also where
# they are in a folder of root alone, which is the first argument.
SCRIPT = f"""
set -e
mount --make-rprivate /
umount --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mount -t proc proc /proc
private=$1
shift
number=0
for folder; do
    number=$((number + 1))
    mkdir -p /run/kept/$number
    mount --bind "$folder" /run/kept/$number
done
for folder in {UNITS} /var/lib $private; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
for folder in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
number=0
for folder; do
    number=$((number + 1))
    mkdir -p "$folder"
    mount --bind /run/kept/$number "$folder"
done
mkdir {FOLDER} {UNITS}/service.d
for name in {" ".join(TARGETS)}; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > {UNITS}/$name.target
done
log=append:{FOLDER}/log
printf "[Service]\\nStandardOutput=$log\\nStandardError=$log\\n" > {UNITS}/service.d/log.conf
mount -o remount,bind,ro /
exec {SYSTEMD} --system --unit=default.target --show-status=no
"""


class Unavailable(Exception):  # noqa: N818 - it is no fault
    """No systemd can run here; its text says why."""


class Systemd:
    """The service manager of namespaces of its own. A context manager.

    :raises Unavailable: where it is not allowed, or not installed.
    """

    def __init__(self):
        if not os.path.exists(SYSTEMD) or shutil.which("nsenter") is None:
            raise Unavailable("systemd is not installed (Debian: systemd)")
        if os.geteuid() != 0:
            raise Unavailable("only root can start a systemd of its own")
        self.pid = None
        self._group = _cgroup()
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(f"\0relay-test-systemd-{os.getpid()}")
        self._notified.settimeout(WAIT)
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": f"@relay-test-systemd-{os.getpid()}",
            "SYSTEMD_UNIT_PATH": UNITS,
            "container": "relay-test",
        }
        unshare = "exec unshare --pid --mount --cgroup --fork --kill-child"
        self._process = subprocess.Popen(
            ["sh", "-c", f'echo $$ > "$0/cgroup.procs" && {unshare} sh -c "$@"', self._group, SCRIPT, "sh", *_hidden()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self):
        """Wait until it has started."""
        ended = os.pidfd_open(self._process.pid)
        try:
            while True:
                ready, _, _ = select.select([self._notified, ended], [], [], WAIT)
                if self._notified in ready and b"READY=1" in self._notified.recv(4096):
                    break
                if ended in ready or not ready:
                    self._process.kill()
                    raise Unavailable(f"this machine starts no systemd: {self._process.stderr.read().decode().strip()}")
        finally:
            os.close(ended)
        (self.pid,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()

    def run(self, *argv, check=True):
        """Run a program inside; its standard output."""
        inside = ["nsenter", "--target", self.pid, "--mount", "--pid", "--cgroup", *argv]
        environment = {"PATH": os.environ["PATH"], "HOME": "/root"}
        done = subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=WAIT, check=False)
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    def path(self, path):
        """A file inside, as it is seen from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def log(self):
        """All that services have written."""
        path = self.path(f"{FOLDER}/log")
        return path.read_text() if path.exists() else ""

    def show(self, unit, name):
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def wait_for(self, unit, **properties):
        """Wait until properties of a unit have these values."""
        try:
            wait_until(lambda: all(self.show(unit, name) == value for name, value in properties.items()))
        except AssertionError:
            found = {name: self.show(unit, name) for name in properties}
            raise AssertionError(f"{found} is not {properties}; {self.log()}") from None

    def close(self):
        """Kill all that runs inside."""
        if self.pid is not None:
            os.kill(int(self.pid), signal.SIGKILL)  # process 1; the kernel kills all others
        elif self._process.poll() is None:
            self._process.kill()  # --kill-child does it
        self._process.wait(WAIT)
        self._process.stderr.close()
        self._notified.close()
        wait_until(lambda: _removed(self._group))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _cgroup():
    """A control group of its own, which is the root of the namespace."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for _, place, kind, *_ in mounts:
        if kind == "cgroup2":
            made = Path(place, f"relay-test-{os.getpid()}")
            try:
                made.mkdir()
            except OSError as error:
                raise Unavailable(f"this machine makes no control group: {error}") from None
            return str(made)
    raise Unavailable("this machine has no version 2 of control groups")


def _removed(group):
    """Remove a control group, once its processes are gone."""
    for path, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    return not os.path.exists(group)


PARTS = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])]  # of this program


def _hidden():
    """The folder that only root may enter with parts of this program, or nothing; and the parts that are hidden."""
    private = next(filter(None, map(_private, PARTS)), "")
    hidden = [folder for folder in ("/run", "/tmp", "/var/tmp", "/var/lib", private) if folder]
    return [private, *(part for part in PARTS if any(Path(part).is_relative_to(each) for each in hidden))]


def _private(part):
    """The first folder on the way to a file that only its owner may enter."""
    folders = [*reversed(Path(part).parents), Path(part)]
    return next((str(folder) for folder in folders if not stat.S_IXOTH & folder.stat().st_mode), "")
