"""Streams that outlive their carrier: the protocol of docs/resume.md, without I/O."""
