"""SOCKS and HTTP CONNECT proxies: dialers and listeners."""
