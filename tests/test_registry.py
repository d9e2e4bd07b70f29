"""Registries: a file in a folder is an entry, found by its name."""

import sys

import pytest

from q4run.disk import methods
from q4run.disk.methods import METHODS
from q4run.experts import policies
from q4run.experts.policies import POLICIES
from q4run.settings import Settings


@pytest.mark.parametrize(
    ("registry", "names"),
    [(METHODS, ["direct", "mmap", "pread"]), (POLICIES, ["layers", "lru"])],
)
def test_every_file_of_the_folder_is_an_entry(registry, names):
    assert list(registry) == names
    assert len(registry) == len(names)
    assert all(callable(registry[name]) for name in names)
    with pytest.raises(KeyError):
        registry["absent"]


@pytest.mark.parametrize(
    ("package", "registry", "setting", "text"),
    [
        (methods, METHODS, "io", "METHOD = 'its value'"),
        (policies, POLICIES, "cache", "make_policy = 'its value'"),
    ],
)
def test_a_new_file_is_an_entry_and_a_setting(
    package, registry, setting, text, tmp_path, monkeypatch
):
    (tmp_path / "made_up.py").write_text(text)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{package.__name__}.made_up", raising=False)
    assert "made_up" in registry
    Settings(**{setting: "made_up"})
    assert f"{package.__name__}.made_up" not in sys.modules  # names import nothing
    assert registry["made_up"] == "its value"
    monkeypatch.delitem(sys.modules, f"{package.__name__}.made_up")
