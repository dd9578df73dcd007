"""The seeds of each target, and every input that once broke something, through the target."""

import pytest

from .__main__ import SEEDS
from .targets import NAMES, load


def test_every_target_has_seeds():
    assert sorted(folder.name for folder in SEEDS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_parser_takes_it(name):
    target = load(name)
    for file in sorted((SEEDS / name).iterdir()):
        target(file.read_bytes())
