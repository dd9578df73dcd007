"""The workflows of the hosting site: each job is one line of make, and what it takes from others is pinned."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def steps() -> list[tuple[str, dict[str, Any]]]:
    """Each step, with the name of its job."""
    return [
        (f"{path.stem}: {name}", step)
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text())["jobs"].items()
        for step in job["steps"]
    ]


@pytest.mark.parametrize(("job", "step"), steps())
def test_each_step_is_a_line_of_make_or_pinned(job: str, step: dict[str, Any]) -> None:
    if "uses" in step:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), job
    else:
        target = re.fullmatch(r"make ([\w-]+)", step["run"])
        assert target and re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE), job


def test_jobs_that_install_debian_packages_run_on_debian() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert {name for name, job in jobs.items() if "container" in job} == {"test", "versions"}
    for name in "test", "versions":
        image = jobs[name]["container"]["image"].replace("${{ matrix.python }}", "3.11")
        assert re.fullmatch(r"python:3\.\d+-bookworm", image), "the package chromium of Ubuntu is a snap"
        assert not [step for step in jobs[name]["steps"] if "setup-python" in step.get("uses", "")], "none for Debian"


def test_the_index_gets_only_packages() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    kept = {
        step["with"]["name"]: step["with"]["path"].split()
        for step in jobs["build"]["steps"]
        if "path" in step.get("with", {})
    }
    assert kept == {"dist": ["dist/*.whl", "dist/*.tar.gz"], "checksums": ["dist/SHA256SUMS"]}
    (got,) = (step["with"]["name"] for step in jobs["publish"]["steps"] if "download-artifact" in step["uses"])
    assert got == "dist"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_workflow_may_write_but_to_the_index(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    rights = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert rights in ({}, {"publish": {"id-token": "write"}})


def test_every_python_of_the_documentation_is_tried() -> None:
    (strategy,) = (
        job["strategy"] for _, job in yaml.safe_load(WORKFLOWS[0].read_text())["jobs"].items() if "strategy" in job
    )
    versions = strategy["matrix"]["python"]
    assert f"| Python | {versions[0]} to {versions[-1]} |" in (ROOT / "docs/stability.md").read_text()


def test_the_citation_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
