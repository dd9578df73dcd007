"""Options of several commands: ``--resume`` is about the last hop, whatever that is; an old name warns."""

import click
import pytest
from click.testing import CliRunner

from relay.cli.options import in_workers, via


@click.command()
@via
def shows(via):
    print("\n".join(via))


@pytest.mark.parametrize(
    ("hops", "read"),
    [
        (["ssh://me@far"], ["ssh://me@far?resume=yes"]),
        (["ssh://me@far?port=1&keyfile=k"], ["ssh://me@far?port=1&keyfile=k&resume=yes"]),
        (["ssh://far?resume=/far.sock"], ["ssh://far?resume=/far.sock"]),
        (["ssh://outer", "ssh://inner"], ["ssh://outer", "ssh://inner?resume=yes"]),
        (["tls://far:1?cert=me.pem"], ["resume:tls://far:1?cert=me.pem"]),
        (["resume:unix:///far.sock"], ["resume:unix:///far.sock"]),
    ],
)
def test_the_last_hop_resumes(hops, read):
    given = [word for hop in hops for word in ("--via", hop)]
    for words in (["--resume", *given], [*given, "--resume"]):
        assert CliRunner().invoke(shows, words).output.split() == read
    assert CliRunner().invoke(shows, given).output.split() == hops


def test_it_needs_a_hop():
    ended = CliRunner().invoke(shows, ["--resume"])
    assert ended.exit_code == 2
    assert "--resume: there is no hop; add --via ssh://HOST" in ended.output


@click.command()
@in_workers
def shares(workers, carrier_sharing):
    print(carrier_sharing)


def test_an_old_name_works_and_warns():
    done = CliRunner().invoke(shares, ["--carriers", "per-worker"])
    warning, value = done.output.splitlines()
    assert warning.endswith(" WARNING --carriers: it is --carrier-sharing now; relay 0.3 will not know it")
    assert value == "per-worker"
    done = CliRunner().invoke(shares, ["--carriers", "2"])
    assert done.exit_code == 2
    assert "their number is a parameter of the hop: ssh://HOST?carriers=2" in " ".join(done.output.split())
