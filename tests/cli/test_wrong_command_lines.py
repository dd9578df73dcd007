"""Wrong command lines: each gets one line, status 2 and no secret, before anything is opened."""

import shlex

import pytest
from command_rig import run

# A command line => what is in the one line about it.
LINES = r"""
forwrd => forwrd: no such command; did you mean forward? See relay --help
help nope => nope: no such command; see relay --help
help hosp => hosp: no such command; did you mean hops? See relay --help
help ctl lsit => lsit: no such command; did you mean list? See relay ctl --help
forward 8080:db:80 => TARGET: missing; '8080:db:80' is ssh's spelling; write 8080 db:80
forward '[::1]:8080:[::2]:80' => '[::1]:8080:[::2]:80' is ssh's spelling; write [::1]:8080 [::2]:80
forward -L 8080:db:80 => -L is ssh's: ssh -L 8080:db:80 bastion is relay forward 8080 db:80 --via ssh://b
forward -R8080:db:80 => ssh -R 8080:localhost:80 server is relay expose localhost:80 --on 'ssh://server?li
forward :0 h:1 -J me@b => -J is ssh's: write --via ssh://HOST for each hop, the nearest first
forward 8080:db:80 me@bastion => '8080:db:80': this is ssh's spelling; write two addresses: 8080 db:80
forward fe80::1:2:80 h:1 => too many colons; an IPv6 address is written in brackets
forward 8080 db:80 me@b => me@b: unexpected argument; a server to go over is --via ssh://me@b; see relay forward
expose 8080:db:80 => '8080:db:80' is ssh's spelling; write db:80 --on 'ssh://HOST?listen=:8080'
check -- forward 8080:db:80 => TARGET: missing; '8080:db:80' is ssh's spelling; write 8080 db:80
forward => LISTEN: missing; see relay forward --help
forward :0 => TARGET: missing; see relay
forward :0 h:1 i:2 => i:2: unexpected argument; see relay forward --help
forward :0 h:1 --nconect 1 => --nconnect
forward :0 h:1 --vai x => --vai: no such option; did you mean --via? See relay forward --help
forward :0 h:1 --nconnect 0 => --nconnect: must be at least 1, or -1 for no limit, got '0'
forward :0 h:1 --warm -1 => --warm: must be a whole number from 0 to 1024, got '-1'
forward :0 h:1 --limit rate=5 => --limit: rate: expected a number and a time, got '5'
forward :0 h:1 --limit speed=5 => --limit: unknown part 'speed=5'; use KEY=VALUE with one of per,
forward :0 h:1 --drain-spread none => --drain-spread: must have a limit, got none
forward :0 h:1 --warm-for none => --warm-for: must have a limit, got none
forward :0 h:1 --timeout -1 => --timeout: must not be negative, got -1; leave the option out
forward :0 h:1 --timeout nan => --timeout: expected a time such as 90, 1.5s, 10m or 2h, got 'nan'
forward :0 h:1 --timeout => --timeout: value missing
forward :0 h:1 --drain -1 => --drain
forward :0 h:1 --log-format xml => 'text', 'json'
forward :0 h:99999 => target 'h:99999': port 99999; a port is a number from 1 to 65535
forward :99999 h:1 => listen address ':99999': port 99999; a port is a number from 0 to 65535
forward :0 ssh://h => ssh:// is a hop, not a target
forward socks5://:0 h:1 => the clients of a proxy name their targets; use relay socks
forward socks5://me:hunter2@:0 h:1 => all users of this machine can read a password that
forward :0 h:1 --via ssh://a --via ssh://-b => hop 2 of 2 (ssh://-b): host: '-b' is not
forward :0 h:1 --via => --via: value missing; see relay forward --help
forward :0 tcp://me:hunter2@h:1 => tcp:// takes no user or password
forward :0 h:1 --via ssh://me:hunter2@h => use password_file=FILE or password_env=NAME
forward :0 h:1 --via ssh://a --via 'ssh://h?passphrase=hunter2' => use passphrase_file=FILE
forward ssh://me:hunter2@h h:1 => listen address 'ssh://me:***@h': all users of this machine can read
forward :0 h:1 ssh://me:hunter2@h => ssh://me:***@h: unexpected argument
forward :0 h:1 'h?password=hunter2' => h?password=***: unexpected argument
forward :0 h:1 'h?x=hunter2' 'ssh://me:hunter2@h?x=hunter2' => h?x=*** ssh://me:***@h?x=***: unexpected argument
forward :0 h:1 --debgu=ssh://me:hunter2@h => --debgu
forward :0 h:1 --nconnect ssh://me:hunter2@h => --nconnect
forward :0 h:1 --idle-timeout '5 weeks' => expected a time such as 90, 1.5s, 10m or 2h, got '5 weeks'
forward :0 x.i2p --sam h:1 --sam h:1 => sam: h:1 is written twice; once is enough
forward 'i2p:?user=me&password=hunter2' h:1 => use password_file=FILE or password_env=NAME
forward :0 h:1 --sam h:1 => --sam: neither LISTEN nor TARGET nor a hop is at I2P
forward :0 'x.i2p?sam=h:1' --sam h:1 => sam= is written twice
expose h:1 --on ssh://127.0.0.1:1 --timeout 0 => must be greater than 0, got 0
expose h:1 => --on: missing; see relay expose --help
expose --on ssh://h => TARGET: missing; see relay
expose h:1 --on ssh://me:hunter2@h => use password_file=FILE or password_env=NAME
expose h:1 --on ssh://h --via ssh://me:hunter2@h => hop 'ssh://me:***@h': all users
expose h:1 --on i2p --sam h => sam 'h': no port
expose h:1 --on 'i2p:?keys=a' --keys b => keys= is written twice
expose h:1 --on 'i2p:?keys=a' --transient => --transient: a destination that is not saved has no
expose h:1 --on i2p --session a --transient => --transient: a destination
expose h:1 --on i2p --allow name.i2p => allow: 'name.i2p' is neither a rule nor a file
expose h:1 --on ssh://h --sam h:1 => --sam: only for --on i2p; other addresses have their own
expose h:1 --on ssh://h --allow x => allow: 'x' is neither a rule nor a file: the kind
expose h:1 --on ssh://h --transient => --transient: only for --on i2p and tor; an ssh:// address has its own
expose h:1 --on 'i2p:?user=me&password=hunter2' => use password_file=FILE or password_env=NAME
socks :0 --limit rate=5/s --limit rate=5/s => --limit: the name 'ip:5/s' is there twice
socks :0 --warm 1 => --warm: no such option
socks ssh://a => listen address 'ssh://a?listen=127.0.0.1:0': a proxy for programs does not listen there
socks i2p: => a proxy for programs does not listen there
socks 'tls://:0?cert=x' => a proxy for programs does not listen there
socks http://unix:///x => listen address
socks socks5://me:hunter2@:0 => all users of this machine can read a password
socks 'socks5://me@:0?password_env=X' --user me --password-env X => --user: it is in LISTEN
socks :0 --rule '*' => rule '*': no route is given
socks :0 --rule 10.0.0.1/8=direct => host bits set
socks :0 --via tls://a:1 => is a target, not a hop
socks :0 --via ssh://me:hunter2@a => all users of this machine can read a password
socks :0 --rule '*=ssh://me:hunter2@a' => all users of this machine can read a password
socks :0 --rule '*=direct,ssh://me:hunter2@a' => rule
socks :0 --user me => --user: password missing; set --user NAME and --password-file FILE
socks :0 --password-env X => --user: user missing
socks :0 --user me --password-env NOT_SET => is not set
socks :0 --user me --password-file /does/not/exist => No such file
socks => LISTEN
pipe 127.0.0.1:1 --linger -1 => --linger: must not be negative, got -1
pipe 127.0.0.1:1 --idle-timeout 0 => --idle-timeout: must be greater than 0, got 0
pipe 127.0.0.1:1 --via 127.0.0.1:2 => 127.0.0.1:2
pipe 127.0.0.1:1 --via 'ssh://me@host?password=hunter2' => all users of this machine can read a password
pipe 127.0.0.1:1 --via ssh://me:hunter2@host => ssh://
pipe 'i2p://name.i2p?user=me&password=hunter2' => all users of this machine can read a password
pipe => TARGET
up --shutdown-delay none => --shutdown-delay: must have a limit, got none
doctor 127.0.0.1:1 --timeout none => --timeout: must have a limit, got none
"""


def rows():
    for row in LINES.strip().splitlines():
        line, said = row.split(" => ")
        yield pytest.param(shlex.split(line), said, id=line)


@pytest.mark.parametrize(("arguments", "said"), [*rows()])
def test_it_gets_one_line_and_status_2(arguments, said):
    done = run(*arguments, input="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("relay: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr


def test_nine_bridges_are_too_many():
    done = run("forward", ":0", "x.i2p", *(word for port in range(1, 10) for word in ("--sam", f"h:{port}")))
    assert (done.returncode, done.stderr) == (2, "relay: sam: 9 bridges are given; 1 to 8 are allowed\n")


@pytest.mark.parametrize("option", ["-L", "-R", "-D"])
def test_what_an_option_of_ssh_is_here_can_be_run(option):
    words = shlex.split(run("forward", option, "8080:db:80").stderr.partition(" is relay ")[2])
    done = run("check", "--print", "--", *words)
    assert (done.returncode, done.stderr) == (0, "")
