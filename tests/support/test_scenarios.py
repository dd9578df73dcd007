"""Scenarios whose routers fail run once more, at new routers; those that fail themselves do not."""

import contextlib
import json
import logging
from types import SimpleNamespace

import pytest
import scenarios
from scenarios import PartedError, run_all


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    """Run scenarios; return what was printed, and how many networks there were."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(scenarios, "_networks", [])
    networks = []

    @contextlib.contextmanager
    def ground(folder):
        router = SimpleNamespace(folder=folder / "router-0", crashed=False, log=lambda: "the router's log")
        networks.append(SimpleNamespace(routers=[router]))
        yield networks[-1], networks[-1], len(networks)

    def run(*tried, names=()):
        monkeypatch.setattr("sys.argv", ["program", str(tmp_path), *names])
        run_all({one.__name__: one for one in tried}, ground, 60.0)
        return json.loads(capsys.readouterr().out), len(networks)

    return run


def well(network, attempt):
    return attempt


def parted(network, attempt):
    if attempt == 1:
        raise PartedError("two routers")
    return attempt


def always_parted(network, attempt):
    raise PartedError("two routers")


def crashed(network, attempt):
    network.routers[0].crashed = attempt == 1
    assert attempt == 2
    return attempt


def failed(network, attempt):
    raise AssertionError("not served")


def test_what_is_well_runs_once(ran):
    assert ran(well) == ({"well": [1, ""]}, 1)


def test_only_what_the_arguments_name_runs(ran):
    assert ran(well, failed, names=["well"]) == ({"well": [1, ""]}, 1)


@pytest.mark.parametrize("scenario", [parted, crashed])
def test_what_routers_have_spoilt_runs_again(ran, scenario):
    outcomes, networks = ran(scenario)
    assert (outcomes, networks) == ({scenario.__name__: [2, ""]}, 2)


def test_the_others_do_not_run_again(ran):
    outcomes, networks = ran(well, parted, failed)
    assert (outcomes["well"], outcomes["parted"], networks) == ([1, ""], [2, ""], 2)
    said, problem = outcomes["failed"]
    assert said is None
    assert "not served" in problem.splitlines()[-1]
    assert "the router's log" in problem


def test_twice_is_enough(ran):
    outcomes, networks = ran(always_parted)
    assert outcomes["always_parted"][1].startswith("i2pd has parted")
    assert networks == 2
