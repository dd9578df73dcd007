"""Carriers: the supervised connections that many streams share, such as an SSH connection or a SAM session."""
