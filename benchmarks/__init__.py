"""The relay and its peers under the same load, side by side in one run: ``python -m benchmarks --help``.

``peers`` says how each is started, ``loads`` what load there is, ``rows`` what is measured of whom and what is to be
reached, ``report`` and ``picture`` how it is told. ``sshpeers`` and ``sshrows`` are the same for SSH, over the server
of ``sshd``. ``machine`` holds what the operating system knows of a process, ``jobs`` and ``goals`` the words that the
others are said in.
"""
