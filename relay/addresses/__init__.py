"""Addresses, hops and routes: text to frozen values and back. No I/O."""
