"""Options: their choices are what the registries have, and each is declared once."""

import inspect
import json
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

import pytest
import typer
from helpers.chat_models import make_chat_model
from helpers.commands import invoke

from q4run.cli import VERBS
from q4run.cli.groups import Group, flatten, option
from q4run.disk import methods
from q4run.disk.methods import METHODS
from q4run.experts.policies import POLICIES
from q4run.experts.prefetch import PREFETCH
from q4run.kernels.attention.kinds import kind_names

CHOICES = {
    "--io": ["auto", *METHODS],
    "--cache": list(POLICIES),
    "--prefetch": list(PREFETCH),
    "--kv-type": kind_names(),
}
MADE_UP = """
from q4run.disk.methods.pread import Pread

class Loud(Pread):
    def read(self, path, offset, target):
        print("a loud read")
        super().read(path, offset, target)

METHOD = Loud
"""


def refused(verb: str, name: str) -> list[str]:
    """The choices that the refusal of a wrong one lists."""
    arguments = {"run": ["m.gguf", "-p", "x"], "perplexity": ["m.gguf", "-f", "x"]}
    result = invoke(verb, *arguments.get(verb, ["m.gguf"]), name, "made-up")
    assert result.exit_code == 2
    said = " ".join(re.sub("[│╭╮╰╯─]", "", result.stderr).split())
    assert name in said
    return re.findall(r"'([^']+)'", said.partition("is not one of")[2])


@pytest.mark.parametrize("verb", ["run", "chat", "perplexity", "bench"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_told_those_of_the_registry(verb, name):
    assert refused(verb, name) == CHOICES[name]


def test_a_file_in_the_folder_is_an_io_method(tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text(MADE_UP)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert re.search(r"<?auto\|direct\|loud", invoke("chat", "--help").stdout)
    assert "loud" in refused("run", "--io")
    model = make_chat_model(tmp_path)
    options = ["-p", "Hi", "-n", 2, "--json", "--context", 64, "--io", "loud", "--debug"]
    result = invoke("run", model, *options)
    assert result.exit_code == 0
    *read, figures = result.stdout.splitlines()
    assert set(read) == {"a loud read"}
    assert json.loads(figures)["io"] == "loud"


@pytest.mark.parametrize("verb", VERBS)
def test_no_function_of_a_verb_has_more_than_8_parameters(verb):
    module = import_module(f"q4run.cli.{verb}")
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__:
            assert len(inspect.signature(function).parameters) <= 8, name


@dataclass(frozen=True)
class Pair:
    least: Annotated[int, typer.Option("--least")]
    most: Annotated[int, typer.Option("--most")] = 3


def test_a_group_is_made_of_its_options():
    taken = {}
    total = Group(sum_of, lambda: [option("one", int, 1, typer.Option("--one"))])

    def verb(*, first: str, pair: Pair, made: Annotated[int, total], last: str = "z") -> None:
        taken.update(first=first, pair=pair, made=made, last=last)

    flat = flatten(verb)
    parameters = inspect.signature(flat).parameters
    assert list(parameters) == ["first", "least", "most", "one", "last"]
    assert parameters["least"].default is inspect.Parameter.empty
    flat(first="a", least=1, most=2, one=5, last="b")
    assert taken == {"first": "a", "pair": Pair(1, 2), "made": 105, "last": "b"}


def sum_of(one: int) -> int:
    return 100 + one
