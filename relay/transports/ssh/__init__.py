"""SSH (the Secure Shell, RFC 4251): connections with many streams, by paramiko or by the OpenSSH client."""
