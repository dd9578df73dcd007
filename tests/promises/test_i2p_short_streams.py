"""Clients that send a little and end at once: all of it arrives, however the streams come in."""

from __future__ import annotations

from helpers import Thread, receive_all

COUNT = 200


def test_all_of_them_arrive_whole(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)

    def send():
        for number in range(COUNT):
            client = rig.client()
            client.sendall(b"request %d" % number)
            client.close()

    sending = Thread(send)
    came = set()
    for _ in range(COUNT):
        with rig.accept() as far:
            came.add(receive_all(far))
    sending.result()
    assert came == {b"request %d" % number for number in range(COUNT)}
