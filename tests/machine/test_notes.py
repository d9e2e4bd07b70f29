"""What is noted of this machine, and how long it counts."""

import json
import time

import pytest

from q4run.machine.load import Load
from q4run.machine.notes import Notes

HOUR = 3600
BUSY = Load(cpu=0.8)


class Measurement:
    """Gives another speed each time."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[str, float]:
        self.count += 1
        return {"speed": float(self.count), "lost_s": 0.0}


@pytest.fixture
def measure():
    return Measurement()


@pytest.fixture
def path(tmp_path, others):
    return tmp_path / "cache" / "speeds.json"


@pytest.fixture
def later(monkeypatch):
    """Lets time pass."""
    began = time.time()
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: began + seconds)


def speed_of(path, measure, **how) -> tuple[float, bool]:
    figures, just_now = Notes(path, **how).figures("x", measure)
    return figures["speed"], just_now


def test_a_measurement_counts_for_a_day(path, measure, later):
    assert speed_of(path, measure) == (1, True)
    assert speed_of(path, measure) == (1, False)
    later(23 * HOUR)
    assert speed_of(path, measure) == (1, False)
    later(25 * HOUR)
    assert speed_of(path, measure) == (2, True)
    later(-HOUR)
    assert speed_of(path, measure)[1]


def test_one_asked_for_anew_is_made(path, measure):
    speed_of(path, measure)
    assert speed_of(path, measure, anew=True) == (2, True)
    assert speed_of(path, measure) == (2, False)


def test_one_beside_others_counts_as_long_as_they_go_on(path, measure, others):
    others.load = BUSY
    notes = Notes(path)
    assert notes.figures("x", measure)[1]
    assert notes.load == BUSY
    notes = Notes(path)
    assert notes.figures("x", measure) == ({"speed": 1, "lost_s": 0}, False)
    assert notes.load == BUSY
    others.load = Load()
    notes = Notes(path)
    assert notes.figures("x", measure)[1]
    assert notes.load == Load()
    others.load = BUSY
    assert speed_of(path, measure) == (2, False)


def test_one_beside_others_counts_less_than_an_older_one_without(path, measure, others, later):
    speed_of(path, measure)
    others.load = BUSY
    later(20 * 24 * HOUR)
    assert speed_of(path, measure) == (1, False)
    assert measure.count == 2
    later(40 * 24 * HOUR)
    assert speed_of(path, measure) == (3, True)


def test_one_asked_for_beside_others_does_not_replace_one_without(path, measure, others):
    speed_of(path, measure)
    others.load = BUSY
    assert speed_of(path, measure, anew=True) == (2, True)
    assert speed_of(path, measure) == (1, False)


@pytest.mark.parametrize("load", [Load(cpu=0.05), Load(disk=0.05)])
def test_a_little_load_is_none(load, path, measure, others):
    others.load = load
    speed_of(path, measure)
    others.load = BUSY
    assert speed_of(path, measure) == (1, False)


def test_a_speed_of_nothing_is_not_noted(path):
    assert Notes(path).figures("x", lambda: {"speed": 0.0}) == ({"speed": 0.0}, True)
    assert not path.exists()


def test_notes_of_others_stay(path, measure):
    path.parent.mkdir()
    path.write_text('{"else": 3}')
    speed_of(path, measure)
    assert json.loads(path.read_text()).keys() == {"else", "x"}


def test_a_correction_is_as_old_as_what_it_corrects(path, measure, later):
    notes = Notes(path)
    notes.correct("x", {"speed": 7.0})
    assert not path.exists()
    speed_of(path, measure)
    later(20 * HOUR)
    notes.correct("x", {"speed": 7.0})
    assert notes.figures("x", measure) == ({"speed": 7, "lost_s": 0}, False)
    later(25 * HOUR)
    assert speed_of(path, measure) == (2, True)
