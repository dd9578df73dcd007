"""Event loop, readiness, deadlines, background threads, kernel pipes and sockets."""
