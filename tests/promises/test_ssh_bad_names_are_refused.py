"""A server name that could be taken for an option, or holds what no name holds, is refused at the call."""

import pytest

import relay

BAD = [
    "-oProxyCommand=touch /tmp/x",
    "-F/etc/passwd",
    "me@-host",
    "-me@host",
    "me you@host",
    "me@ho st",
    "me@host\n",
    "me\n@host",
    "me@host\0",
    "me@host%h",
    "me%h@host",
    "me@",
    "@host",
    "",
    "ssh://-host",
    "ssh://-me@host",
    "ssh://me@host%20x",
    "ssh://me%20you@host",
    "ssh://me%0ayou@host",
    "ssh://me@%2dhost",
    "ssh://me@host:0",
    "ssh://me@host:65536",
    "ssh://me@host/path",
    "ssh://me@$(id)",
    "ssh://me@`id`",
    "ssh://me@host;id",
]


@pytest.mark.parametrize("server", BAD)
def test_in_every_place(server):
    for attempt in (
        lambda: relay.ssh(server, "127.0.0.1", 9),
        lambda: relay.ssh("me@host", "127.0.0.1", 9, via=[server]),
        lambda: relay.ssh_listen(server),
        lambda: relay.target("127.0.0.1:9", via=[server]),
        lambda: relay.target("127.0.0.1:9", via=["ssh://me@host", server]),
        lambda: relay.connect("127.0.0.1:9", via=[server]),
    ):
        with pytest.raises(ValueError) as failed:  # noqa: PT011  (the words are checked below)
            attempt()
        text = str(failed.value)
        assert text.isprintable()
