"""Bins that tests of pseudo-spots share."""

import pytest
from binned import make_bins


@pytest.fixture
def bins():
    return make_bins()
