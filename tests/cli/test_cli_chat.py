"""`q4run chat` through a pipe and in a terminal."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from helpers.chat_models import make_chat_model
from helpers.commands import COMMAND, ESCAPE, assert_one_error_line, command, greedy, invoke

import q4run
from q4run.convert import convert


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("cli"))


# chat through a pipe


def test_a_piped_chat_writes_answers_alone_and_figures_to_stderr(model_path):
    options = ["--temp", "0", "-n", "12", "--context", "512"]
    done = command("chat", model_path, *options, input="in the end\n\nand then\n")
    assert done.returncode == 0
    first = greedy(model_path, "in the end", None, 12).lstrip()
    assert done.stdout.startswith(first if first.endswith("\n") else first + "\n")
    assert ESCAPE not in done.stdout + done.stderr
    assert "> " not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for line in lines[1:]:
        assert re.fullmatch(
            r"12 tokens · [\d.]+ tok/s · hits \d+ % · [\d.]+ [kM]?B read · cut short by -n", line
        )


def test_commands_work_through_a_pipe(model_path, tmp_path):
    script = [
        "/system is the end",
        "/system",
        "in the end",
        f"/save {tmp_path}/talk.json",
        "/reset",
        "/stats",
        "/help",
        "/frobnicate",
        f"/load {tmp_path}/talk.json",
        '/system ""',
        "/system",
        "/quit",
        "this is not read any more",
    ]
    result = invoke("chat", model_path, "-n", 4, stdin="\n".join(script))
    assert result.exit_code == 0
    for said in (
        "System message: is the end\n",
        "Saved 1 exchange to ",
        "The conversation begins anew; the system message stays.\n",
        "context ",
        "/load FILE ",
        "There is no command /frobnicate; /help shows those there are.\n",
        "Loaded 1 exchange and its system message from ",
        "System message: none\n",
    ):
        assert said in result.stderr
    assert result.stderr.count("4 tokens · ") == 1
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["model"] == model_path.name
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["messages"][2]["content"].strip() == result.stdout.strip()


def test_a_command_that_fails_ends_a_piped_chat(model_path, tmp_path):
    result = invoke("chat", model_path, stdin=f"/load {tmp_path}/absent.json\nHi\n")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert_one_error_line(result.stderr.partition("\n")[2])


def test_a_message_too_long_does_not_end_a_piped_chat(model_path):
    script = f"{'long ' * 100}\nHi\n"
    result = invoke("chat", model_path, "--context", 64, "-n", 4, "--temp", 0, stdin=script)
    assert result.exit_code == 0
    assert "this message does not fit" in result.stderr
    assert result.stdout.strip() == greedy(model_path, "Hi", None, 4).strip()


def test_dropped_exchanges_and_a_full_context_are_said(model_path):
    result = invoke("chat", model_path, "--context", 64, stdin="in the end\nHi\n")
    assert result.exit_code == 0
    assert "The context of 64 tokens is full: the answer ends here." in result.stderr
    assert "The context of 64 tokens is full: the oldest exchange is dropped." in result.stderr


def test_chat_json_is_one_object_with_the_messages(model_path):
    result = invoke("chat", model_path, "-n", 4, "--json", "--system", "is", stdin="Hi\n")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [message["role"] for message in told["messages"]] == ["system", "user", "assistant"]


def test_an_empty_pipe_is_an_empty_conversation(model_path):
    result = invoke("chat", model_path, stdin="")
    assert (result.exit_code, result.stdout) == (0, "")


def test_closed_streams_are_empty_ones(model_path):
    for closed in ("<&-", ">&- </dev/null"):
        words = " ".join(map(shlex.quote, [*COMMAND, "chat", str(model_path)]))
        done = subprocess.run(
            f"{words} {closed}", shell=True, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1


def test_what_the_encoding_of_the_output_lacks_is_no_error(model_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = command("chat", model_path, "-n", "4", input="Hï\n", env=environment)
    assert done.returncode == 0
    assert "4 tokens ? " in done.stderr


# chat in a terminal


def terminal(model_path: Path, *options: str, **environment: str) -> pexpect.spawn:
    """A chat at its first prompt."""
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "q4run", "chat", str(model_path), "--context", "100000", "--threads", "1", *options],
        # Pexpect's terminal does not tell where its cursor is.
        env=variables | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"} | environment,
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=120,
    )
    child.expect_exact("Ctrl-D quits.")
    child.expect_exact(PROMPT)
    return child


# What prompt_toolkit writes as it begins and ends to read keys: pasted text is to be marked.
PROMPT, SENT = "\x1b[?2004h", "\x1b[?2004l"


def send(child: pexpect.spawn, keys: str) -> None:
    child.send(keys)
    child.expect_exact(SENT)


def leave(child: pexpect.spawn, keys: str) -> None:
    send(child, keys)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_conversation_in_a_terminal(model_path):
    child = terminal(model_path, "--temp", "0", "-n", "12")
    send(child, "in the end\r")
    child.expect(r"12 tokens · [\d.]+ tok/s · hits \d+ % · [\d.]+ [kM]?B read")
    child.expect_exact(PROMPT)
    send(child, "one\x1b\rtwo\r")  # Alt-Enter, then Enter
    child.expect("12 tokens · ")
    child.expect_exact(PROMPT)
    send(child, "\x1b[200~/frob\nnicate\x1b[201~\r")  # a paste of two lines is one input
    child.expect("There is no command /frob")
    child.expect_exact(PROMPT)
    send(child, "/save " + str(model_path.parent / "talk.json") + "\r")
    child.expect("Saved 2 exchanges")
    child.expect_exact(PROMPT)
    leave(child, "/quit\r")
    saved = json.loads((model_path.parent / "talk.json").read_text())
    assert [message["content"] for message in saved["messages"]][::2] == ["in the end", "one\ntwo"]


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(model_path):
    child = terminal(model_path, "--temp", "0")
    for _ in range(2):
        send(child, "in the end\r")
        child.expect("[a-z ]{40}")  # longer than what is said while the prompt is read
        child.send("\x03")
        child.expect(r"\d+ tokens? · .*stopped")
        child.expect_exact(PROMPT)
    send(child, "/stats\r")
    child.expect(r"\d+ of 100000 tokens")
    child.expect_exact(PROMPT)
    for _ in range(2):
        send(child, "half a li\x03")
        child.expect("Ctrl-C once more, or Ctrl-D, quits.")
        child.expect_exact(PROMPT)
    leave(child, "\x03")


def test_an_error_in_a_terminal_ends_but_one_turn(model_path):
    child = terminal(model_path, "-n", "4")
    send(child, "/load /nowhere/talk.json\r")
    child.expect("/nowhere/talk.json: cannot be read: No such file or directory")
    child.expect_exact(PROMPT)
    send(child, "in the end\r")
    child.expect("4 tokens · ")
    child.expect_exact(PROMPT)
    leave(child, "\x04")


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colour", "NO_COLOR"])
def test_no_color_is_respected(model_path, environment):
    child = terminal(model_path, "-n", "4", **environment)
    send(child, "/frob\r")
    child.expect("no command")
    written = child.before
    child.expect_exact(PROMPT)
    leave(child, "\x04")
    coloured = re.search(r"\x1b\[[\d;]*\b(3\d|9\d)[\d;]*m", written + child.before)
    assert bool(coloured) == (not environment)


# The main job


@pytest.fixture(scope="module")
def tiny_llama4(shared_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "tiny.gguf"
    source = shared_data / "weights" / "tiny-llama4"
    convert(source, path, type="q8_0", expert_type="q4_0")
    return path


def test_a_trained_model_talks_the_same_with_a_quarter_of_its_experts(tiny_llama4):
    dialogue = (
        "What is the weather going to be like in Berkeley tomorrow?\n"
        "And in San Jose?\n"
        "Thank you, that is all.\n"
    )
    options = ["--temp", "0", "--context", "1024"]
    resident = invoke("chat", tiny_llama4, *options, "--ram-budget", "1G", stdin=dialogue)
    assert resident.exit_code == 0
    assert "128 of 128 experts" in resident.stderr
    assert "percent chance of rain" in resident.stdout
    assert len(resident.stdout.splitlines()) >= 3

    with q4run.load(tiny_llama4, context=1024, ram_budget="1G") as model:
        plan = model.plan
    quarter = plan.total - plan.slots + plan.n_experts // 4 * plan.slot_bytes
    streamed = invoke("chat", tiny_llama4, *options, "--ram-budget", f"{quarter}", stdin=dialogue)
    assert streamed.exit_code == 0
    assert "128 of 128" not in streamed.stderr
    assert streamed.stdout == resident.stdout
    assert re.search(r"hits \d+ % · [\d.]+ MB read", streamed.stderr)
