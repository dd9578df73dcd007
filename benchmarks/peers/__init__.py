"""The programs that are measured, and how each is started."""
