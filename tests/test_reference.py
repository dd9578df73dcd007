"""The pages that docs/write_reference.py writes are up to date."""

import subprocess
import sys

from documents import ROOT
from helpers import WAIT


def test_everything_that_is_made_from_the_options_is_up_to_date():
    script = ROOT / "docs" / "write_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), f"run: python {script}"
