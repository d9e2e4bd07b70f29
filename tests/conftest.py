"""Fixtures that several test files share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from q4run.kernels.threads.pool import ALONE, Pool, ThreadPool
from q4run.machine.load import Load, Watch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# A shell that runs the tests in the background has them and all they start ignore Ctrl-C, and
# ``nohup`` that the terminal is gone.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real vocabularies, text and small trained weights, or a skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared test data (../shared/data) is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def three_threads() -> Iterator[Pool]:
    """The state of a pool of three threads: more than some machines have cores."""
    with ThreadPool(3) as pool:
        yield pool.state


@pytest.fixture(params=["alone", "three threads"])
def pool(request: pytest.FixtureRequest, three_threads: Pool) -> Pool:
    """What kernels take as their threads: runs a test on the caller's alone and on three."""
    return ALONE if request.param == "alone" else three_threads


class Others:
    """What programs beside the test do, which it says: at first nothing."""

    load = Load()


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    """Has every measurement see the load that the test says, not that of the machine."""
    said = Others()
    monkeypatch.setattr(Watch, "load", lambda watch: said.load)
    return said
