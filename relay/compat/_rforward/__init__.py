"""The tunnels behind :mod:`relay.compat.rforward`."""
