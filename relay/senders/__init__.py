"""The ways out, one file each: what makes the outgoing stream of a connection."""
