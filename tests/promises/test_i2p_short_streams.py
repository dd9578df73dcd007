"""Clients that send a little and end at once: all of it arrives, by ACCEPT and (in the routers' network) by FORWARD."""

from helpers import receive_exactly

COUNT = 200


def test_all_of_them_arrive_whole(i2p_world, over_i2p):
    """One after the other: i2pd 2.45 loses some of a burst by itself where they are accepted one by one."""
    rig = over_i2p(i2p_world)
    for number in range(COUNT):
        request = b"request %03d" % number
        with rig.client() as client:
            client.sendall(request)
        with rig.accept() as far:
            assert receive_exactly(far, len(request)) == request
