"""The facts of this machine that ``relay doctor`` reports."""

import resource
from importlib import metadata

import pytest

from relay.cli.doctor import machine as facts
from relay.cli.doctor.report import Status


@pytest.fixture
def limit(monkeypatch):
    def set_limit(number):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (min(number, 256), number))

    return set_limit


def test_all_checks_have_a_text():
    checks = facts.machine()
    assert {"python", "relay", "dependencies", "open files", "kernel"} <= {check.step for check in checks}
    assert all(check.text for check in checks)


@pytest.mark.parametrize(
    ("most", "connections", "status"),
    [
        (20_000, None, Status.OK),
        (20_000, 1000, Status.OK),
        (512, None, Status.WARNING),
        (4096, 5000, Status.FAILED),
        (resource.RLIM_INFINITY, 10**6, Status.OK),
    ],
)
def test_the_limit_of_open_files(limit, most, connections, status):
    limit(most)
    check = facts.open_files(connections)
    assert check.status is status
    assert bool(check.advice) == (status is not Status.OK)


def test_a_module_that_is_in_the_way(tmp_path):
    (tmp_path / "relay.py").touch()
    foreign = tmp_path / "lib" / "relay"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").touch()
    own, *others = facts.other_relays([str(tmp_path), str(tmp_path / "lib"), str(facts.PACKAGE.parent)])
    assert own.status is Status.OK
    assert [check.subject for check in others] == [str(tmp_path / "relay.py"), str(foreign / "__init__.py")]
    assert all(check.status is Status.WARNING and "rename it" in check.advice for check in others)


def test_another_project_of_the_name(monkeypatch):
    monkeypatch.setattr(facts, "_version", lambda name: "0.0.8" if name == "relay" else "1")
    check = facts.other_relays([])[-1]
    assert check.status is Status.FAILED
    assert "0.0.8" in check.text
    assert "pip uninstall relay" in check.advice


@pytest.mark.parametrize(
    ("version", "status"), [("3.9.1", Status.OK), ("3.4", Status.FAILED), ("6.0", Status.FAILED), (None, Status.FAILED)]
)
def test_the_version_of_a_dependency(monkeypatch, version, status):
    optional = ['sphinx>=8; extra == "dev"', 'uvicorn>=0.3; extra == "status"', 'relay-toolkit[cli]; extra == "all"']
    monkeypatch.setattr(metadata, "requires", lambda _: ["paramiko<6,>=3.5", *optional])
    monkeypatch.setattr(facts, "_version", lambda name: version if name == "paramiko" else None)
    (check,) = facts.dependencies()
    assert (check.subject, check.status) == ("paramiko", status)
    assert bool(check.advice) == (status is not Status.OK)


def test_the_version_of_an_extra_that_is_installed(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda _: ['uvicorn>=99; extra == "status"'])
    (check,) = facts.dependencies()
    assert (check.subject, check.status) == ("uvicorn", Status.FAILED)


def test_a_package_without_metadata(monkeypatch):
    def missing(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", missing)
    (check,) = facts.dependencies()
    assert check.status is Status.WARNING


def test_a_low_pipe_quota(monkeypatch, tmp_path):
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs/pipe-user-pages-soft").write_text("1024\n")
    monkeypatch.setattr(facts, "PROC", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (check,) = facts._pipes()
    assert check.status is Status.WARNING
    assert "fs.pipe-user-pages-soft=16384" in check.advice


def test_no_openssh_client_is_no_failure(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    (check,) = facts._openssh()
    assert check.status is Status.SKIPPED


def test_a_kernel_without_splice(monkeypatch):
    monkeypatch.delattr("os.splice")
    check = facts._kernel()[0]
    assert (check.status, "splice" in check.text) == (Status.WARNING, True)
