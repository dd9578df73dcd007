"""Several targets behind one tunnel: which of them gets a client, and which answer."""
