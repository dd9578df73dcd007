"""The parts of the embedded SSH server."""
