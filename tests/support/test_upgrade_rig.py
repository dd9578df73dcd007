"""The rig of an upgraded relay ends it."""

import socket

from helpers import WAIT
from upgrade_rig import Upgraded


def test_a_relay_ends_although_its_end_would_take_long(tmp_path):
    """It has a delay before the drain, and a connection that the drain would wait for."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        tunnel = '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "{}:{}"\n'.format(*target.getsockname())
        running = Upgraded(tmp_path, f"shutdown_delay = 600\n[defaults]\ndrain = 600\n{tunnel}")
        with socket.create_connection(("127.0.0.1", running.port("one")), WAIT), target.accept()[0]:
            running.close()
    assert running.first.returncode is not None
