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


@pytest.fixture(params=["one thread", "all threads"])
def kernel_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with both forms of the kernels, whatever the size of its work."""
    small_work = 1 << 62 if request.param == "one thread" else -1
    monkeypatch.setattr("q4run.kernels.compile._SMALL_WORK", small_work)
    return request.param
