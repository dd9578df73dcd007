"""Clients of a tunnel: who they are, and what is demanded of them."""
