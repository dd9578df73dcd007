"""The source release: all that git has is in it, and it can be built, tested and installed without a network."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOME_TESTS = ("tests/addresses/test_values.py", "tests/test_init.py", "tests/promises/test_half_close_is_kept.py")


def run(folder: Path, *argv: str, **variables: str) -> str:
    """Return what a command says; nothing that it could load comes from a network or from this checkout."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": str(folder), **variables}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def source_files() -> list[str]:
    """The files of the source: git's files, with those to come; in a release itself, what it says it has."""
    if (ROOT / ".git").exists():
        return run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")[:-1]
    listed = (ROOT / "relay_toolkit.egg-info" / "SOURCES.txt").read_text().splitlines()
    return [name for name in listed if ".egg-info/" not in name]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A release, built from a copy and unpacked: where it is, and the files that it had."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in source_files():
        if (ROOT / name).exists():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    build = "import setuptools.build_meta as build; print(build.build_sdist('../dist'))"
    file = run(folder / "source", sys.executable, "-c", build, PYTHONPATH="").splitlines()[-1]
    with tarfile.open(folder / "dist" / file) as archive:
        archive.extractall(folder / "unpacked", filter="data")
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return folder / "unpacked" / file.removesuffix(".tar.gz"), names


@pytest.fixture
def built(release: tuple[Path, set[str]]) -> Path:
    """The directory of the unpacked release."""
    return release[0]


def test_everything_is_in_it(release: tuple[Path, set[str]]) -> None:
    built, there = release
    wanted = {name for name in source_files() if (ROOT / name).exists()}
    assert len(wanted) > 300
    assert wanted - there == set()
    assert {name for name in there - wanted if ".egg-info/" not in name} == {"PKG-INFO"}
    assert [name for name in wanted if os.access(ROOT / name, os.X_OK) != os.access(built / name, os.X_OK)] == []


def test_its_tests_run(built: Path) -> None:
    where = run(built, sys.executable, "-c", "import relay; print(relay.__file__)")
    assert Path(where.strip()).parent == built / "relay"
    said = run(built, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SOME_TESTS)
    assert " passed" in said and "failed" not in said


def test_on_the_page_of_an_index_no_link_and_no_picture_is_broken(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    for_an_index = runpy.run_path(str(built / "deploy" / "release" / "pack.py"))["for_an_index"]
    metadata = (built / "PKG-INFO").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\((.*)\)", metadata)
    assert len(pictures) == 2 and "[SSH](docs/ssh.md)" in metadata
    homeless = for_an_index(metadata)
    assert "](" not in homeless and "| SSH, chains |" in homeless
    home = "https://code.example/relay"
    shown = for_an_index(metadata.replace("Name: ", f"Project-URL: Source, {home}\nName: "))
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(links) > 20 and all(link.startswith(f"{home}/") for link in links)
    assert [f"{home}/raw/v{version('relay-toolkit')}/{path}" for path in pictures] == links[:2]


MANUALS = {f"share/man/man1/{path.name}" for path in (ROOT / "docs" / "man").glob("*.1")}
OPERATIONS = {f"share/relay/{name}" for name in ("fail2ban/relay.conf", "grafana-dashboard.json", "relay.rules.yml")}
COMPLETIONS = {
    "share/bash-completion/completions/relay",
    "share/zsh/site-functions/_relay",
    "share/fish/vendor_completions.d/relay.fish",
}


@pytest.mark.parametrize("origin", ["release", "clone"])
def test_what_is_installed_is_the_package_with_its_manuals_and_completions(
    built: Path, tmp_path: Path, origin: str
) -> None:
    source = built if origin == "release" else built.parents[1] / "source"
    build = f"import setuptools.build_meta as build; print(build.build_wheel({str(tmp_path)!r}))"
    file = run(shutil.copytree(source, tmp_path / "copy"), sys.executable, "-c", build, PYTHONPATH="").splitlines()[-1]
    package = {path for path in (source / "relay").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    with zipfile.ZipFile(tmp_path / file) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    data = file.rsplit("-", 3)[0] + ".data/data/"
    assert len(MANUALS) >= 10
    assert names == {str(path.relative_to(source)) for path in package} | {
        data + n for n in MANUALS | COMPLETIONS | OPERATIONS
    }
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--ignore-installed"]
    run(tmp_path, *pip, "--prefix", str(tmp_path / "prefix"), "--no-warn-script-location", file)
    assert [name for name in MANUALS | COMPLETIONS if not (tmp_path / "prefix" / name).read_text()] == []
