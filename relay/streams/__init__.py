"""The contract between the engine and the transports: streams, dialers, listeners, and connecting."""
