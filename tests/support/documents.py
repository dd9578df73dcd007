"""The documents that users read: README.md, and the pages of docs/."""

from pathlib import Path

import relay

ROOT = Path(relay.__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
ALL = "\n".join([README, *PAGES.values()])
