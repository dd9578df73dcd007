"""TLS: dialer, listener, handshakes and sessions."""
