"""The tunnels behind :mod:`relay.compat.zmqssh`."""
