"""``relay.daemon.plan_from_file``: what a key of a file means, and what becomes of its problems."""

import pytest
from config_rig import T, read_text

from relay.daemon.failures import ProblemsError
from relay.daemon.options import Options
from relay.daemon.plan_from_file import (
    add_problem,
    check_problems,
    collect_problems,
    limits,
    options_to_keys,
    plan_of,
    plans_of,
)
from relay.errors import ConnectError

SHOWN = Options()


def entry_of(folder, text):
    return read_text(folder, text).entries[0]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("nconnect = 3", "nconnect", 3),
        ('timeout = "none"', "timeout", None),
        ('idle_timeout = "none"', "idle_timeout", None),
        ("idle_timeout = 5", "idle_timeout", 5.0),
        ('probe = "banner"', "probe", "banner"),
    ],
)
def test_a_limit_of_a_tunnel(tmp_path, line, name, value):
    assert getattr(limits(entry_of(tmp_path, f"{T}{line}\n"), SHOWN), name) == value


def test_a_limit_that_the_file_does_not_have_is_that_of_the_options(tmp_path):
    assert limits(entry_of(tmp_path, T), Options(linger=7.0)).linger == 7.0


def test_a_plan_has_the_name_and_the_addresses_of_its_table(tmp_path):
    plan = plan_of(entry_of(tmp_path, T), SHOWN)
    assert plan.name == "t"
    assert plan.configured == "127.0.0.1:0 → localhost:1"


def test_a_proxy_has_its_rules(tmp_path):
    text = '[tunnels.p]\nlisten = "socks5://:0"\nrule = ["*.internal=direct", "*=ssh://me@x"]\n'
    plan = plan_of(entry_of(tmp_path, text), SHOWN)
    assert [end for _, end in plan.routes.out] == [None]  # the rule with a hop; the other one leads there directly
    assert plan.configured.startswith("socks5://127.0.0.1:0 → anywhere")


def test_an_entry_that_is_the_same_keeps_its_plan(tmp_path):
    config = read_text(tmp_path, T)
    [plan] = plans_of(config, SHOWN)
    assert plans_of(config, SHOWN, {"t": plan})[0] is plan
    assert plans_of(config, SHOWN, {})[0] is not plan


def test_a_tunnel_with_a_problem_has_no_plan(tmp_path):
    config = read_text(tmp_path, T + '[tunnels.u]\nlisten = "nowhere"\ntarget = "localhost:1"\n')
    assert [plan.name for plan in plans_of(config, SHOWN)] == ["t"]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("--connect-timeout: too short"), 2), (ConnectError("x: cannot be resolved"), 1)]
)
def test_a_failure_becomes_a_problem_of_the_file(tmp_path, error, status):
    config = read_text(tmp_path, T)
    with collect_problems(config, "tunnels", "t"):
        raise error
    with pytest.raises(ProblemsError) as found:
        check_problems(config)
    assert found.value.status == status
    assert options_to_keys(str(error)) in found.value.lines[0]


def test_one_problem_that_the_user_must_mend_decides_on_the_status(tmp_path):
    config = read_text(tmp_path, T)
    add_problem(config, ("tunnels", "t"), ConnectError("x: cannot be resolved"))
    add_problem(config, ("tunnels", "t", "listen"), ValueError("wrong"))
    with pytest.raises(ProblemsError) as found:
        check_problems(config)
    assert found.value.status == 2
    assert len(found.value.lines) == 2


def test_a_file_without_problems_is_no_error(tmp_path):
    check_problems(read_text(tmp_path, T))


def test_other_errors_are_not_problems_of_a_file(tmp_path):
    with pytest.raises(KeyError), collect_problems(read_text(tmp_path, T), "tunnels", "t"):
        raise KeyError


def test_a_message_has_the_keys_of_a_file():
    assert options_to_keys("--password-file: set --user too") == "password_file: set user too"
