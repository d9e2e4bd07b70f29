"""Running the command line in tests, in this process or in one of its own."""

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

import q4run
from q4run.cli import app
from q4run.generation.completion import Completion
from q4run.generation.sampler import Sampler, SamplingParameters

ESCAPE = "\x1b"
COMMAND = [sys.executable, "-m", "q4run"]


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """Runs the command line in this process."""
    return CliRunner().invoke(app, _words(arguments), input=stdin)


def command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [*COMMAND, *_words(arguments)], capture_output=True, text=True, check=False, **options
    )


def _words(arguments: tuple[object, ...]) -> list[str]:
    """With one thread: on a busy machine, two that wait for each other may take far longer."""
    words = list(map(str, arguments))
    if words and words[0] in ("run", "chat") and not {"--threads", "--help"} & set(words):
        words += ["--threads", "1"]
    return words


def assert_one_error_line(stderr: str) -> None:
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")


def greedy(
    model_path: Path, prompt: str | None, raw: str | None, n_tokens: int, context: int = 512
) -> str:
    """What ``run --temp 0`` is to write."""
    with q4run.load(model_path, context=context, threads=1) as model:
        if raw is None:
            raw = model.template.render([{"role": "user", "content": prompt}])
        ids = model.tokenize(raw, special=True)
        sampler = Sampler(SamplingParameters(temperature=0.0))
        completion = Completion(model.session, model.tokenizer, ids, sampler, n_tokens)
        return "".join(completion)
