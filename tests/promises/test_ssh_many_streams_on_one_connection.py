"""A hundred streams at once and five hundred short ones in a row use one login, and leave nothing."""

import gc
import socket
import threading
from collections import Counter

from helpers import WAIT, Thread, echo, ended, exchange, wait_until

import relay


def test_a_hundred_at_once(far_end, over_ssh):
    rig = over_ssh(far_end.url)
    clients = [rig.client() for _ in range(100)]
    for number, client in enumerate(clients):
        client.sendall(b"%03d" % number)
    fars = {far.recv(3): far for far in (rig.accept() for _ in clients)}
    for number, client in enumerate(clients):
        exchange(client, fars[b"%03d" % number])
    assert far_end.logins == 1
    for client in clients:
        client.close()
    for far in fars.values():
        assert far.recv(1) == b""
        far.close()
    assert ended(rig.tunnel, 100) == ["done"] * 100


def test_five_hundred_short_ones_in_a_row(far_end, serve):
    server = serve(echo)
    factory = relay.target("{}:{}".format(*server.address), via=[far_end.url])
    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        for _ in range(500):
            with socket.create_connection(tunnel.address, WAIT) as client:
                client.sendall(b"short")
                assert client.recv(5) == b"short"
        assert set(ended(tunnel, 100)) == {"done"}
        assert tunnel.stats().accepted == 500
        if far_end.kind == "embedded":
            wait_until(lambda: far_end.rig.channels == 0)
            assert far_end.rig.opened == 500
    assert far_end.logins == 1


def test_from_many_threads_over_many_factories(far_end, echo_server):
    """Thirty streams of as many factories show one login, however they are made."""
    target = "{}:{}".format(*echo_server.address)
    gate = threading.Barrier(30)

    def one():
        gate.wait(WAIT)
        with relay.connect(target, via=[far_end.url]) as client:
            client.settimeout(WAIT)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            gate.wait(WAIT)

    for thread in [Thread(one) for _ in range(30)]:
        thread.result()
    assert far_end.logins == 1


def test_no_stream_is_left_for_the_garbage_collector(far_end, serve):
    """Years of streams must not wait for a collection: with cycles, each would hold its descriptors' objects."""
    server = serve(echo)
    factory = relay.target("{}:{}".format(*server.address), via=[far_end.url])

    def ours():
        kinds = (type(one) for one in gc.get_objects())
        named = ((kind.__name__, kind.__module__) for kind in kinds)  # of some in C the module is no text
        wanted = ("relay.transports.ssh", "relay.carriers", "relay.streams.stream")
        found = Counter(name for name, module in named if isinstance(module, str) and module.startswith(wanted))
        del found["StreamPath"]  # of the records that the tunnel keeps
        return found

    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:

        def use(count):
            for _ in range(count):
                with socket.create_connection(tunnel.address, WAIT) as client:
                    client.sendall(b"short")
                    assert client.recv(5) == b"short"
            wait_until(lambda: tunnel.stats().active == 0)

        use(3)
        gc.collect()
        gc.disable()
        try:
            before = ours()
            use(30)
            wait_until(lambda: max((ours() - before).values(), default=0) < 10)
        finally:
            gc.enable()
