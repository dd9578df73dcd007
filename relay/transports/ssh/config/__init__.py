"""The settings of an SSH connection: ssh_config(5), known hosts, identities and algorithms."""
