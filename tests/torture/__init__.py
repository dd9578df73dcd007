"""Random schedules against real tunnels: no byte may be lost, doubled, reordered or mixed up between connections."""
