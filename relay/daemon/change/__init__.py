"""Changes of a running relay: the reload of its file, and the upgrade to another process."""
