"""Drawn clips are a function of their description: within a test process each set is drawn once."""

from functools import cache

import pytest

from examples.train.data.synthetic import SyntheticClips


@pytest.fixture(autouse=True, scope="session")
def _drawn_once():
    drawn = cache(SyntheticClips.render)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyntheticClips, "render", lambda clips, workers=1: drawn(clips, workers))
        yield
