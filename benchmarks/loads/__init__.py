"""Loads: public tools, and own programs."""
