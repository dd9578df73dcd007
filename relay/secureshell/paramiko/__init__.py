"""The backend over paramiko: exact errors, nothing to install."""
