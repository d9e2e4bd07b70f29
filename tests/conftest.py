"""Fixtures that several test files share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real vocabularies, text and small trained weights, or a skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared test data (../shared/data) is not beside this checkout")
    return SHARED_DATA
