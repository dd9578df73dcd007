"""WebSockets (RFC 6455): each is one stream, to and from servers behind reverse proxies and CDNs."""
