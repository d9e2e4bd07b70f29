"""Every command in README and docs, as it stands there, on a tiny model in its place."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.tiny_checkpoints import make_checkpoint

from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CHECKPOINT = "Llama-4-Scout-17B-16E-Instruct"


DOCS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "experiments.md")
# What a page's reader has, where the page does not make it itself.
CONVERT = ["-m", "q4run", "convert", CHECKPOINT, "model.gguf", "--type", "q8_0"]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    """Python's arguments for every command of q4run's in a block of commands, in order."""
    joined = "\n".join(blocks("bash", text)).replace("\\\n", " ")
    lines = joined.replace("&&", "\n").splitlines()
    words = [shlex.split(line) for line in lines]
    return [
        ["-m", "q4run", *line[1:]] if line[0].endswith("q4run") else line[1:]
        for line in words
        if line and (line[0].endswith("q4run") or line[:2] == ["python", "-m"])
    ]


def prepare(folder: Path) -> None:
    make_checkpoint("llama4_quantisable", folder / CHECKPOINT)
    (folder / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 40)
    assert run([*CONVERT[:4], "your-model.gguf", *CONVERT[5:]], folder).returncode == 0


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


PAGES = [
    ROOT / "README.md",
    *(pytest.param(page, marks=pytest.mark.exhaustive) for page in DOCS),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_in_their_order(page, tmp_path):
    found = commands(page.read_text())
    if not found:
        assert page == ROOT / "docs/README.md", "a page without a command"
        return
    prepare(tmp_path)
    makes_model = any(arguments[:5] == CONVERT[:5] for arguments in found)
    for arguments in found if makes_model else [CONVERT, *found]:
        if "--plot" in arguments and find_spec("matplotlib") is None:
            continue  # the [test] extra brings it along
        done = run(arguments, tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)


def test_readme_is_read_in_two_minutes():
    assert README.count("\n") <= 150
    assert ["-m", "q4run", "chat"] in commands()


def test_every_command_is_on_the_page_of_commands():
    shown = {arguments[2] for arguments in commands((ROOT / "docs/commands.md").read_text())}
    assert VERBS.keys() <= shown


def test_pages_link_to_what_is_there():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_the_python_example_works(tmp_path):
    (example,) = blocks("python")
    prepare(tmp_path)
    assert run(CONVERT, tmp_path).returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_figures_of_the_budget_are_the_programs():
    page = (ROOT / "docs/streaming.md").read_text()
    allowance = re.search(r"fixed allowance of (\d+) MB", " ".join(page.split()))
    assert allowance
    assert int(allowance[1]) * 10**6 == INTERPRETER_ALLOWANCE


def test_the_gate_finds_the_test_command():
    marked = README.partition("<!-- test command -->\n```bash\n")[2].partition("```")[0]
    assert marked.count("\n") == 1
    assert marked.strip().endswith(".venv/bin/pytest -n 2")
