"""Reasoning on the command line: where it goes, and the options that ask for more or less of it."""

import json
from pathlib import Path

import pytest
from helpers.chat_models import make_chat_model
from helpers.commands import invoke

from q4run.text.chat_template import ChatTemplate

# Reasons inside the prompt, which the model's babble then goes on with, up to its end.
OPEN = "{{ messages[-1].content }}{{ '</think>' if enable_thinking is false else '<think>\n' }}"
EFFORT = "{# <think> #}{{ messages[-1].content ~ reasoning_effort }}"
READS = "{{ messages[-1].content }}{{ enable_thinking }}{{ reasoning_effort }}"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("thinking"))


def verb(monkeypatch, model_path, source: str | None, name: str, *options: object):
    """``run`` or ``chat`` of a model with this template, in JSON."""
    template = source and ChatTemplate(source, bos_token="", eos_token="")
    monkeypatch.setattr("q4run.loading.load_chat_template", lambda metadata, tokenizer: template)
    said = ["-p", "in the end"] if name == "run" else []
    return invoke(
        name, model_path, *said, "-n", 8, "--temp", 0, "--json", *options, stdin="in the end\n"
    )


def test_reasoning_goes_to_standard_error(monkeypatch, model_path):
    result = verb(monkeypatch, model_path, OPEN, "run")
    told = json.loads(result.stdout)
    assert told["text"] == ""
    assert told["reasoning"].strip() in result.stderr
    answered = json.loads(verb(monkeypatch, model_path, OPEN, "run", "--no-think").stdout)
    assert answered["text"]
    assert answered["reasoning"] == ""


def test_reasoning_is_no_part_of_what_was_said(monkeypatch, model_path):
    result = verb(monkeypatch, model_path, OPEN, "chat")
    _, answer = json.loads(result.stdout)["messages"]
    assert answer["content"] == ""
    assert answer["reasoning_content"] in result.stderr


@pytest.mark.parametrize("name", ["run", "chat"])
def test_options_reach_the_template(monkeypatch, model_path, name):
    given = []
    render = ChatTemplate.render

    def watch(self, messages, **variables):
        given.append(variables)
        return render(self, messages, **variables)

    monkeypatch.setattr(ChatTemplate, "render", watch)
    for options, wanted in (
        ([], {}),
        (["--no-think"], {"enable_thinking": False}),
        (["--reasoning-effort", "high"], {"reasoning_effort": "high"}),
    ):
        given.clear()
        result = verb(monkeypatch, model_path, READS, name, *options)
        assert result.exit_code == 0
        assert given == [wanted]
        assert "left out" not in result.stderr


@pytest.mark.parametrize("name", ["run", "chat"])
def test_a_template_that_takes_no_notice_is_told_of_in_a_line(monkeypatch, model_path, name):
    for source, options, why in (
        (EFFORT, ["--no-think"], "turns reasoning off: --no-think is left out."),
        (OPEN, ["--reasoning-effort", "low"], "of reasoning: --reasoning-effort is left out."),
        (None, ["--no-think"], "no chat template: --no-think is left out."),
    ):
        result = verb(monkeypatch, model_path, source, name, *options)
        assert result.exit_code == 0
        assert [line for line in result.stderr.splitlines() if line.endswith(why)]


def test_wrong_usage(monkeypatch, model_path):
    for options in (
        ["--no-think", "--reasoning-effort", "low"],
        ["--reasoning-effort", " "],
        ["--raw", "--no-think"],
    ):
        result = verb(monkeypatch, model_path, READS, "run", *options)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr
