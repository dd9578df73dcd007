"""``relay.daemon.tunnel_file``: what a file says at the start and when it is read again; nothing is opened here."""

import pytest

from relay.daemon.failures import ProblemsError, ReloadError
from relay.daemon.options import LOG_INTERVAL, Options
from relay.daemon.tunnel_file import TunnelFile
from relay.transports.resume.figures import BUDGET

ONE = '[tunnels.one]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n'
TWO = '[tunnels.two]\nlisten = ":0"\ntarget = "127.0.0.1:1"\nrequired = true\nworkers = 2\n'


@pytest.fixture
def toml(tmp_path, monkeypatch):
    """Writes the file, in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "relay.toml"

    def write(text):
        path.touch(0o600)
        path.write_text(text)
        return str(path)

    return write


def test_the_first_reading_makes_the_tunnels(toml):
    file = TunnelFile(toml(ONE + TWO), Options(), "relay.toml")
    members = file.first()
    assert [(one.name, one.plan.is_required) for one in members] == [("one", False), ("two", True)]
    assert file.processes.size == 2


def test_the_memory_of_resumable_streams_is_set_at_the_start(toml):
    usual = BUDGET.limit
    try:
        TunnelFile(toml('resume_memory = "3MiB"\n' + ONE), Options(), "relay.toml").first()
        assert BUDGET.limit == 3 << 20
        TunnelFile(toml(ONE), Options(), "relay.toml").first()
        assert BUDGET.limit == 3 << 20
    finally:
        BUDGET.limit = usual


def test_problems_at_the_start_are_raised_all_at_once(toml):
    with pytest.raises(ProblemsError) as found:
        TunnelFile(toml("[tunnels.one]\nlisten = 1\n[tunnels.two]\nlisten = 2\n"), Options(), "relay.toml").first()
    assert found.value.status == 2
    assert [line.partition(" ")[0] for line in found.value.lines] == ["relay.toml:1:", "relay.toml:3:"]


def test_rules_that_can_never_match_are_warned_of_at_the_start(toml, caplog):
    lists = 'deny = ["user:www-data"]\nallow = ["127.0.0.1", "10.0.0.0/8"]\n'
    TunnelFile(toml(f"[defaults]\n{lists}{ONE}{lists}{TWO}"), Options(), "relay.toml").first()
    never = "can never match: "
    assert [
        text.partition(never)[0] + never for text in caplog.messages
    ] == [  # not those of the defaults, which are for
        f"relay.toml:7: tunnels.one.deny[0]: user:www-data {never}",  # listeners of several kinds
        f"relay.toml:8: tunnels.one.allow[1]: cidr:10.0.0.0/8 {never}",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_list_of_the_defaults_with_which_no_client_could_connect_is_warned_of(toml, caplog):
    TunnelFile(toml("[defaults]\nallow = ['user:ann']\n" + ONE + TWO), Options(), "relay.toml").first()
    assert [text.partition(":")[2].partition(";")[0] for text in caplog.messages] == [
        f"{line}: tunnels.{name}: no client could connect: no rule of defaults.allow is for clients of this listener"
        for line, name in ((3, "one"), (6, "two"))
    ]


def test_a_file_of_rules_is_not_read_for_the_warnings(toml, caplog):
    TunnelFile(toml(ONE + "allow = ['file:no-such-list', 'user:ann']\n"), Options(), "relay.toml").first()
    assert [text.split()[1] for text in caplog.messages] == ["tunnels.one.allow[1]:"]


def test_options_override_the_keys_at_the_top(toml):
    text = 'control = "a.sock"\nstatus = ":1"\nlog_file = "a.log"\nsandbox = "auto"\n'
    file = TunnelFile(toml(text + ONE), Options(), "relay.toml", {"control": "/b.sock", "log_interval": 5.0})
    file.first()
    endpoints, log = file.endpoints(file.current), file.log(file.current)
    assert (endpoints.control, endpoints.status, endpoints.config) == ("/b.sock", ":1", file.path)
    assert (log.path, log.interval) == ("a.log", 5.0)
    assert file.sandbox == "auto"
    assert TunnelFile(file.path, Options(), "relay.toml").log(file.current).interval == LOG_INTERVAL


def test_what_is_written_as_before_keeps_its_plan(toml):
    file = TunnelFile(toml(ONE + TWO), Options(), "relay.toml")
    one, two = file.first()
    toml('status = ":1"\n' + ONE + TWO.replace("workers = 2", "workers = 1"))
    again = file.again()
    assert again.plans[0].entry is one.plan.entry
    assert again.plans[1].entry is not two.plan.entry
    assert [change.key for change in again.keys] == ["status"]
    assert again.file.status == ":1"
    assert file.current.status is None, "nothing is in force yet"


def test_a_problem_changes_nothing(toml):
    file = TunnelFile(toml(ONE), Options(), "relay.toml")
    (one,) = file.first()
    toml("[tunnels.one]\nlisten = 1\n")
    with pytest.raises(ReloadError) as caught:
        file.again()
    assert caught.value.status == 2
    toml(ONE)
    assert file.again().plans[0].entry is one.plan.entry
