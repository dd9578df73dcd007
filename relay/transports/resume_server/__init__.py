"""The listeners of resume servers, at each kind of address that knows its clients."""
