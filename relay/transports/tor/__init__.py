"""Onion services: a listener at the control port of tor."""
