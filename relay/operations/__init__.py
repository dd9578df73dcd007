"""What operators see and do while relay runs: the control socket, the status server, health."""
