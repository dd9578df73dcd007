"""The ways in, one file each: what a tunnel accepts its connections from."""
