"""The text of the unit, as systemd reads and rates it."""

import configparser
import dataclasses
import shutil
import subprocess

import pytest
from helpers import WAIT

from relay.cli.service.unit import Sandbox, Unit, config_of, text_of

ANALYZE = shutil.which("systemd-analyze")
BEST = Unit(("/opt/relay/bin/relay",), "/etc/relay/relay.toml", "", "", 255, Sandbox())
WORST = Sandbox(
    ("/srv/a b",),
    needs_home=True,
    needs_tmp=True,
    needs_low_port=True,
    starts_programs=True,
    binds=("/tmp/r", "/tmp/p"),
    groups=("7", "8"),
    shares_runtime=True,
)


CALLS = ["@system-service", "~@privileged", "landlock_create_ruleset landlock_add_rule landlock_restrict_self"]


def service(unit):
    """The section of the service, with the values of each key."""
    values = {}
    for line in text_of(unit).partition("[Service]")[2].partition("[Install]")[0].splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def test_the_unit_of_a_new_systemd_reloads_by_notification():
    new, old = service(BEST), service(dataclasses.replace(BEST, version=252))
    assert new["Type"] == ["notify-reload"] and "ExecReload" not in new
    assert old["Type"] == ["notify"] and old["ExecReload"] == ["kill -HUP $MAINPID"]
    assert "FDSTORE=512" in old["Environment"] and "FDSTORE=512" not in new["Environment"]
    assert new["FileDescriptorStoreMax"] == ["512"] and new["Restart"] == ["on-failure"]
    assert new["ExecStart"] == ["/opt/relay/bin/relay up /etc/relay/relay.toml"]
    assert new["DynamicUser"] == ["yes"]
    assert new["KillMode"] == ["mixed"]


def test_each_need_relaxes_its_part_of_the_sandbox():
    best, worst = service(BEST), service(dataclasses.replace(BEST, sandbox=WORST, user="me"))
    changed = {key: (best.get(key), worst.get(key)) for key in {*best, *worst} if best.get(key) != worst.get(key)}
    assert changed == {
        "DynamicUser": (["yes"], None),
        "User": (None, ["me"]),
        "CapabilityBoundingSet": ([""], ["CAP_NET_BIND_SERVICE"]),
        "AmbientCapabilities": ([""], ["CAP_NET_BIND_SERVICE"]),
        "PrivateUsers": (["yes"], ["no"]),
        "PrivateTmp": (["yes"], ["no"]),
        "ProtectHome": (["yes"], ["read-only"]),
        "MemoryDenyWriteExecute": (["yes"], None),
        "ProcSubset": (["pid"], None),
        "SystemCallFilter": ([*CALLS, "~@resources"], [*CALLS, "@chown"]),
        "RestrictAddressFamilies": (["AF_UNIX AF_INET AF_INET6"], ["AF_UNIX AF_INET AF_INET6 AF_NETLINK"]),
        "ReadWritePaths": (None, ['"/srv/a b"']),
        "BindReadOnlyPaths": (None, ["/tmp/r /tmp/p"]),
        "RuntimeDirectoryMode": (["0700"], ["0711"]),
        "SupplementaryGroups": (None, ["7 8"]),
    }


def test_paths_are_escaped_and_those_of_a_home_are_relative_to_it():
    unit = Unit(
        ("/home/me/bin/re lay",), '/home/me/100%$"x', None, "/home/me", 255, Sandbox(("/home/me/a", "/home/men"))
    )
    values = service(unit)
    assert config_of(text_of(unit), "/home/me") == unit.config
    assert values["ExecStart"] == ['"%h/bin/re lay" up "%h/100%%$$\\"x"']
    assert values["ReadWritePaths"] == ["%h/a /home/men"]
    assert "StateDirectory" not in values and values["RuntimeDirectoryPreserve"] == ["yes"]
    assert "WantedBy=default.target" in text_of(unit)


def test_it_is_the_ini_that_it_seems():
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(text_of(BEST))
    assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.fixture(scope="module")
def version():
    if ANALYZE is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    words = subprocess.run(
        [ANALYZE, "--version"], capture_output=True, text=True, timeout=WAIT, check=True
    ).stdout.split()
    return int(words[1])


@pytest.mark.parametrize("user", ["", "daemon", None], ids=["dynamic", "system", "user"])
@pytest.mark.parametrize("sandbox", [Sandbox(), WORST], ids=["best", "worst"])
def test_systemd_accepts_it_and_rates_it_2_0_at_most(version, tmp_path, user, sandbox):
    if user is None:
        sandbox = dataclasses.replace(sandbox, groups=())  # refused for a user's own service
    unit = Unit(("/bin/true",), "/etc/relay/relay.toml", user, "/home/me", version, sandbox)
    path = tmp_path / "relay.service"
    path.write_text(text_of(unit))
    manager = ["--user"] if user is None else []
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    for words in (["verify", "--man=no"], ["security", "--offline=true", "--threshold=20"]):
        argv = [ANALYZE, *manager, *words, str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT, check=False, env=environment)
        about = [line for line in done.stderr.splitlines() if "relay.service" in line]
        assert (done.returncode, about) == (0, []), done.stdout[-200:]
