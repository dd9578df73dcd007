"""Streams that outlive their carrier: the protocol of docs/resume-protocol.md, without I/O."""
