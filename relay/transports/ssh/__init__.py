"""SSH (the Secure Shell, RFC 4251): connections that many streams ride on, by paramiko or by the OpenSSH client."""
