"""Tunnels in child processes."""
