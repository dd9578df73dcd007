"""Measurements: each is one row of a table."""
