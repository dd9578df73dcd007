"""Transports: one file or folder for each kind of stream."""
