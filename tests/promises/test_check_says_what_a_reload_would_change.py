"""``relay check --diff`` asks the relay that runs, and changes nothing."""

from command_rig import commands, run

FILE = '[tunnels.one]\nlisten = ":0"\ntarget = "127.0.0.1:{}"\n[tunnels.two]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n'


def test_it_prints_the_verdicts(tmp_path, environment):
    file = tmp_path / "relay.toml"
    file.touch(0o600)
    file.write_text(FILE.format(1))

    def check(*words, status=0):
        done = run("check", "--diff", *words, env=environment)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    assert "no relay" in check(str(file), status=2)
    with commands() as start:
        command = start(str(file), command="up", env=environment)
        command.hear("2 of 2 tunnels listen")
        assert check(str(file)) == check() == "one: same\ntwo: same\n"
        file.write_text(FILE.format(2).replace("[tunnels.two]", "[tunnels.three]"))
        for _ in range(2):  # it changes nothing
            assert check(str(file)) == "one: rerouted (target)\nthree: new\ntwo: gone\n"
        file.write_text("this is no TOML")
        assert "this is not TOML" in check(status=2)
        assert command.end()[0] == 0
    assert "expected one file" in check("forward", "1", "2", status=2)
