"""A running relay: its tunnels, their reload and upgrade, and what operators see of them. It prints nothing."""
