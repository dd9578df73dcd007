"""Operations on a running relay: the control socket, the status server, health."""
