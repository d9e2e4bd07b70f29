"""What ``import q4run`` offers: every name, its type, and how little it loads."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import q4run


def test_every_name_is_there_and_is_listed():
    for name in q4run.__all__:
        assert getattr(q4run, name).__name__ == name
    assert set(q4run.__all__) <= set(dir(q4run))
    with pytest.raises(AttributeError, match="has no attribute 'loda'"):
        q4run.loda  # noqa: B018


def test_names_are_loaded_on_first_use():
    code = (
        "import sys, q4run; assert 'numba' not in sys.modules; assert 'numpy' not in sys.modules;"
        " from q4run import *; assert load and Model and 'numba' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PROGRAM = """
import q4run
with q4run.load("model.gguf") as model:
    reveal_type(model)
    reveal_type(q4run.load)
    reveal_type(model.stats)
    reveal_type(q4run.Conversation(model, q4run.SamplingParameters()))
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_type_checker_sees_it(tmp_path):
    """Only the modules of the face are looked into: the gate checks the whole package."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\nignore_missing_imports = true\n"
    )
    package = Path(q4run.__file__).parent
    face = ("__init__", "loading", "model", "generation/stats", "generation/conversation")
    files = [package / f"{name}.py" for name in (*face, "generation/sampler", "errors")]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "program.py", *files],
        cwd=tmp_path,
        env={"MYPYPATH": str(package.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    revealed = [line.partition('is "')[2].rstrip('"') for line in checked.stdout.splitlines()]
    assert revealed[0] == "q4run.model.Model"
    assert revealed[1].startswith("def (path: ")
    assert revealed[1].endswith("-> q4run.model.Model")
    assert revealed[2] == "q4run.generation.stats.Stats"
    assert revealed[3] == "q4run.generation.conversation.Conversation[q4run.model.Model]"
