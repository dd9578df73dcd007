"""The unit of ``relay service``, by which systemd runs the tunnels of a file."""
