"""The commands of ``relay``, one file each."""
