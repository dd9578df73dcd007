"""The rig of the command waits for nothing for ever."""

import command_rig
import pytest


def test_a_line_that_does_not_come(monkeypatch):
    monkeypatch.setattr(command_rig, "WAIT", 0.3)
    with command_rig.commands() as run:
        command = run("0", "127.0.0.1:1")
        with pytest.raises(AssertionError, match="'never' is not in"):
            command.hear("never")
        assert command.process.wait(60) < 0
