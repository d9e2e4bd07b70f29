"""The command line: what goes where, and exit statuses."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.chat_models import make_chat_model
from helpers.commands import COMMAND, ESCAPE, assert_one_error_line, command, greedy, invoke

import q4run
from q4run.cli import VERBS
from q4run.terminal import describe


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("cli"))


# What needs no model


def test_the_version():
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"q4run {q4run.__version__}\n")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns_and_gives_an_example(verb):
    result = invoke(*verb.split(), "--help")
    assert result.exit_code == 0
    assert f"q4run {verb}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["chat", "--help"]])
def test_help_needs_neither_numba_nor_tokenizers(arguments):
    code = (
        "import sys; from q4run.cli import app\n"
        f"try: app({arguments})\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'tokenizers', 'prompt_toolkit', 'gguf', 'jinja2'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.gguf", None),
        ("text.gguf", b"hello"),
        ("cut.gguf", b"GGUF\3\0\0\0"),
        ("e.gguf", b""),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for arguments in (["run", path, "-p", "Hi"], ["chat", path], ["inspect", path]):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert_one_error_line(result.stderr)
        assert str(path) in result.stderr


WRONG_USAGE = {
    "no verb": [],
    "unknown verb": ["frobnicate"],
    "unknown option": ["run", "m.gguf", "-p", "x", "--frobnicate"],
    "no prompt": ["run", "m.gguf"],
    "two prompts": ["run", "m.gguf", "-p", "x", "-f", "y"],
    "no tokens": ["run", "m.gguf", "-p", "x", "-n", "0"],
    "raw and system": ["run", "m.gguf", "-p", "x", "--raw", "--system", "y"],
    "no size": ["chat", "m.gguf", "--ram-budget", "much"],
    "zero size": ["chat", "m.gguf", "--ram-budget", "0G"],
    "unknown io": ["chat", "m.gguf", "--io", "fast"],
    "unknown KV type": ["chat", "m.gguf", "--kv-type", "f8"],
    "no threads": ["chat", "m.gguf", "--threads", "0"],
    "no context": ["chat", "m.gguf", "--context", "0"],
    "negative temperature": ["chat", "m.gguf", "--temp", "-1"],
    "negative seed": ["chat", "m.gguf", "--seed", "-1"],
}


@pytest.mark.parametrize("arguments", WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage_is_status_2(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_where_an_error_comes_from(arguments, capfd, tmp_path):
    result = invoke(*arguments, tmp_path / "absent.gguf")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in invoke("inspect", tmp_path / "absent.gguf").stderr


@pytest.mark.parametrize(
    ("exception", "said"),
    [
        (q4run.BudgetError("give it 6G"), "give it 6G"),
        (
            FileNotFoundError(2, "No such file or directory", "x.txt"),
            "x.txt: there is no such file",
        ),
        (PermissionError(13, "Permission denied", "x.txt"), "x.txt: permission denied"),
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(5, "Input/output error", "x.txt"), "x.txt: Input/output error"),
        (OSError("odd"), "odd"),
        (MemoryError(), "--ram-budget"),
        (KeyError("x"), "KeyError: 'x': this is a bug; run again with --debug"),
    ],
)
def test_every_exception_becomes_a_line_that_helps(exception, said):
    assert said in describe(exception)


def test_an_unexpected_exception_is_called_a_bug(monkeypatch):
    def broken(*arguments, **keywords):
        raise RuntimeError("two\nlines \x1b[31m")

    monkeypatch.setattr("q4run.cli.run.open_model", broken)
    result = invoke("run", "m.gguf", "-p", "x")
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert "RuntimeError: two lines �[31m: this is a bug; run again with --debug" in result.stderr


# run


def test_run_writes_the_completion_and_nothing_else(model_path):
    done = command("run", model_path, "-p", "in the end", "-n", 24, "--temp", 0, "--context", 512)
    assert done.returncode == 0
    assert done.stdout == greedy(model_path, "in the end", None, 24)
    assert ESCAPE not in done.stdout + done.stderr
    chosen, figures = done.stderr.splitlines()
    assert chosen.startswith(f"{model_path.name} · llama4, 5 layers, 16 experts · RAM ")
    assert " of 80 experts · pread · " in chosen
    assert re.match(
        r"prompt \d+ tokens at [\d.]+/s · answer 24 tokens at [\d.]+/s · hits \d+ %", figures
    )


def test_raw_continues_the_prompt_as_it_stands(model_path):
    prompt = "<|begin_of_text|>in the end"
    arguments = ["-p", prompt, "--raw", "-n", 16, "--temp", 0, "--context", 512]
    result = invoke("run", model_path, *arguments)
    assert result.exit_code == 0
    assert result.stdout == greedy(model_path, None, prompt, 16)
    assert "prompt 6 tokens" in result.stderr or "prompt 5 tokens" in result.stderr


def test_run_json_is_one_object(model_path):
    arguments = ["-p", "in the end", "-n", 8, "--temp", 0, "--json", "--context", 512]
    result = invoke("run", model_path, *arguments, "--ram-budget", "1G", "--threads", 1)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert figures["text"] == greedy(model_path, "in the end", None, 8)
    assert figures["finish"] == "length"
    assert (figures["threads"], figures["io"]) == (1, "pread")
    assert figures["ram_budget"] == 10**9
    assert figures["decode"]["tokens"] == 8
    assert figures["prefill"]["tok_s"] > 0
    assert figures["experts"]["bytes_read"] > 0
    assert figures["peak_rss"] > 10**7


def test_run_json_with_stats_has_the_use_of_every_expert(model_path):
    arguments = ["-p", "in the end", "-n", 8, "--temp", 0, "--json", "--context", 512]
    result = invoke("run", model_path, *arguments, "--ram-budget", "1G", "--stats")
    assert result.exit_code == 0
    experts = json.loads(result.stdout)["experts"]
    assert [layer["layer"] for layer in experts["layers"]] == list(range(5))
    for layer in experts["layers"]:
        assert len(layer["uses"]) == len(layer["in_ram"]) == 16
        assert all(there for n, there in zip(layer["uses"], layer["in_ram"], strict=True) if n)
    assert sum(sum(layer["uses"]) for layer in experts["layers"]) > 0
    plain = json.loads(invoke("run", model_path, *arguments).stdout)
    assert "layers" not in plain["experts"]


def test_stats_show_which_experts_were_used(model_path):
    arguments = ["-p", "in the end", "-n", 8, "--temp", 0, "--context", 512]
    result = invoke("run", model_path, *arguments, "--ram-budget", "1G", "--stats")
    assert result.exit_code == 0
    assert result.stdout == greedy(model_path, "in the end", None, 8)
    _, _, shown = result.stderr.partition("layer experts 0 to 15\n")
    *layers, in_ram, on_disk = shown.splitlines()
    assert len(layers) == 5
    # All were read for the prompt or stayed on disk; nothing that was used has left.
    assert {mark for line in layers for mark in line[6:]} <= set("o░▒▓█.")
    assert any(mark in "░▒▓█" for line in layers for mark in line[6:])
    assert in_ram.startswith("in RAM: ")
    assert on_disk.startswith("on disk: ")
    assert "layer experts" not in invoke("run", model_path, *arguments).stderr


def test_stats_of_a_model_without_experts_say_so(shared_data):
    path = shared_data / "weights" / "stories260K-gguf-v1.gguf"
    result = invoke("run", path, "-p", "Once", "-n", 4, "--raw", "--stats")
    assert result.exit_code == 0
    assert "stories260K-gguf-v1.gguf has no experts to show." in result.stderr


def test_the_prompt_can_come_from_standard_input_or_a_file(model_path, tmp_path):
    (tmp_path / "prompt.txt").write_text("in thé end")
    (tmp_path / "latin.txt").write_bytes("in thé end".encode("latin-1"))
    options = ["-n", "8", "--temp", "0", "--context", "512"]
    expected = greedy(model_path, "in thé end", None, 8)
    assert invoke("run", model_path, "-p", "-", *options, stdin="in thé end").stdout == expected
    assert invoke("run", model_path, "-f", tmp_path / "prompt.txt", *options).stdout == expected
    for arguments, stdin in ((["-f", tmp_path / "latin.txt"], None), (["-p", "-"], b"\xff\xfe")):
        result = invoke("run", model_path, *arguments, stdin=stdin)
        assert result.exit_code == 1
        assert_one_error_line(result.stderr)
        assert "UTF-8" in result.stderr
    result = invoke("run", model_path, "-f", tmp_path / "absent.txt")
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)


def test_a_seed_gives_the_same_text_again(model_path):
    arguments = ["run", model_path, "-p", "Hi", "-n", 16, "--context", 512, "--temp", 1.2]
    texts = [invoke(*arguments, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_end_of_the_context_is_said(model_path):
    result = invoke("run", model_path, "-p", "Hi", "--context", 40, "--temp", 0)
    assert result.exit_code == 0
    assert "The context of 40 tokens is full; --context gives more." in result.stderr


def test_a_prompt_longer_than_the_context_is_one_error_line(model_path):
    result = invoke("run", model_path, "-p", "Hi " * 100, "--context", 40)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "--context" in result.stderr.splitlines()[-1]


def test_a_context_beyond_what_the_model_was_trained_on_is_said(model_path):
    result = invoke("run", model_path, "-p", "Hi", "-n", 1, "--context", 2000)
    assert "The model was trained on 1024 tokens" in result.stderr
    assert "trained on" not in invoke("run", model_path, "-p", "Hi", "-n", 1).stderr


def test_a_budget_too_small_names_the_least_that_works(model_path):
    result = invoke("run", model_path, "-p", "Hi", "--ram-budget", "100k")
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    least = re.search(r"at least ([\d.]+ [kM]B)", result.stderr)[1].replace(" ", "")
    assert invoke("run", model_path, "-p", "Hi", "-n", 1, "--ram-budget", least).exit_code == 0


def test_a_reader_that_closes_early_is_no_error(model_path):
    process = subprocess.Popen(
        [*COMMAND, "run", model_path, "-p", "Hi", "-n", "500", "--temp", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert len(process.stdout.read(1)) == 1
    process.stdout.close()
    stderr = process.stderr.read().decode()
    assert process.wait() == 0
    assert "error" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_standard_output_is_one_error_line(model_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "run", model_path, "-p", "Hi", "-n", "4", "--threads", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert_one_error_line(done.stderr.partition("\n")[2])
    assert "disk is full" in done.stderr


@pytest.mark.parametrize("arguments", [["run", "-p", "Hi", "-n", "100000"], ["chat"]])
def test_ctrl_c_is_status_130_without_a_word(model_path, arguments):
    process = subprocess.Popen(
        [*COMMAND, *arguments, model_path, "--temp", "0", "--context", "100000", "--threads", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if arguments[0] == "chat":
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
    assert len(process.stdout.read(1)) == 1
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert b"error" not in stderr
