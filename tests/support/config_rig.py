"""Files of tunnels, for the tests of :mod:`relay.config`."""

from relay import config


def read_text(folder, text, mode=0o600):
    """Read a file of this text and mode."""
    path = folder / "relay.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return config.read(str(path))


def problems_of(folder, text, mode=0o600):
    """Return the problems of such a file, a line each: ``number: text``."""
    found = read_text(folder, text, mode).problems
    return [found.format(problem).removeprefix(f"{folder}/relay.toml:") for problem in found.in_order()]


def only(found):
    """The only one of them."""
    assert len(found) == 1, found
    return found[0]


T = '[tunnels.t]\nlisten = ":0"\ntarget = "localhost:1"\n'  # three lines that are right

WHOLE = """
[defaults]
nconnect = 10
timeout = 3600
connect_timeout = 5.5
idle_timeout = "none"
first_byte_timeout = "none"
linger = 0
drain = 1
drain_spread = 0.5
sam = "127.0.0.1:7657"
required = true

[hops]
bastion = "ssh://me@bastion"
proxy = "socks5://127.0.0.1:9050"

[hops.inner]
address = "ssh://me@inner"
keyfile = "a key"
accept_new = true
keepalive = "none"
compress = false

[hops.router]
address = "i2p:"
in_depth = 1
inbound.quantity = 2
inbound.allowZeroHop = true

[tunnels.db]
listen = 5432
target = "db.internal:5432"
via = ["bastion", "inner"]
nconnect = -1

[tunnels.site]
listen = "i2p:"
listen_via = ["bastion"]
target = "127.0.0.1:8000"
keys = "site.dat"
deny = ["bad.txt"]

[tunnels.page]
listen = ":0"
target = "name.i2p:80"
via = ["router"]

[tunnels.browser]
listen = "socks5://127.0.0.1:1080"
rule = ["*.corp.example=bastion,inner", "*.i2p=i2p:", "10.0.0.0/8=refuse", "*=ssh://other"]
via = ["proxy"]
user = "me"
password_env = "PASSWORD"

[tunnels.socket]
listen = "unix:///tmp/socks"
target = "anywhere"
required = false
"""

SECRETS = [
    ("hops.x = 'ssh://me:secret@x'\n" + T, "1: hops.x: a password"),
    ("hops.x = 'ssh://me@x?passphrase=secret'\n" + T, "1: hops.x: a passphrase"),
    ("hops.x = {address = 'ssh://x', password = 'secret'}\n" + T, "1: hops.x: a password"),
    ("hops.x = {address = 'i2p:', user = 'u', password = 'secret'}\n" + T, "1: hops.x: a password"),
    (T + "via = ['ssh://a', 'socks5://me:secret@x:1']", "4: tunnels.t.via[1]: a password"),
    (
        "[tunnels.t]\nlisten = 'ssh://me@x?password=secret'\nlisten_via = ['ssh://me:secret@y']\ntarget = 'a:1'",
        "3: tunnels.t.listen_via[0]: a password",
    ),
    ("[tunnels.t]\nlisten = 'socks5://me:secret@:0'", "2: tunnels.t.listen: a password"),
    ("[tunnels.t]\nlisten = 'socks5://:0'\nuser = 'me'\npassword = 'secret'", "4: tunnels.t.password: a password"),
    ("[tunnels.t]\nlisten = 'socks5://:0'\nrule = ['*=ssh://me:secret@x']", "3: tunnels.t.rule[0]: a password"),
    ("[tunnels.t]\nlisten = 'i2p:?user=u&password=secret'\ntarget = 'a:1'", "2: tunnels.t.listen: a password"),
    ("[tunnels.t]\nlisten = ':0'\ntarget = 'i2p://a.i2p?user=u&password=secret'", "3: tunnels.t.target: a password"),
]
