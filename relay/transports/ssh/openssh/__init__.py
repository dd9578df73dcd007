"""The backend over the OpenSSH client: the user's own ``ssh``, one process for each connection."""
