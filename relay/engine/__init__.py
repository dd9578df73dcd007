"""The relay engine: one relay thread per tunnel, its connections and their flows."""
