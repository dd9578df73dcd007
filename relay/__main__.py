"""``python -m relay``: the command."""

from __future__ import annotations

import os
import sys

if __package__:
    from .cli import main
else:  # by the path of this file, as a successor: its package is the one beside it, wherever the command was started
    _folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if _folder not in sys.path:
        sys.path.insert(0, _folder)
    from relay.cli import main

if __name__ == "__main__":
    sys.exit(main())
