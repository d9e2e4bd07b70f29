"""``bench/pages/report.py``: what is shown is what is stored, and says so where it is not."""

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import q4run
from q4run.bench.figures.stored import Results
from q4run.bench.figures.tables import markdown_table, span
from q4run.bench.pages import bench_runs, report
from q4run.bench.pages.documents import DOCUMENTS
from q4run.bench.pages.prose import code, how_often, in_words, paragraph
from q4run.bench.pages.recipes import preparation
from q4run.bench.pages.results_pages import PAGES

ROOT = Path(__file__).resolve().parents[2]
MEASURED = "docs/measured.md"
STORED = sorted(path.stem for path in (ROOT / "bench/results").glob("*.json"))


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of all that the report reads and writes."""
    shutil.copytree(ROOT / "bench/results", tmp_path / "bench/results")
    for name in DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def stored(root: Path, name: str) -> Path:
    return root / "bench/results" / f"{name}.json"


def change(root: Path, name: str, key: str, value: Any) -> None:
    """Puts another value at a key with dots."""
    content = json.loads(stored(root, name).read_text())
    inner, held = content, content
    for part in key.split("."):
        held, last = inner, int(part) if isinstance(inner, list) else part
        inner = inner[last] if isinstance(inner, list) else inner.get(last)
    held[last] = value
    stored(root, name).write_text(json.dumps(content, indent=1))


def page_of(root: Path, block: str) -> Path:
    """The first document that has the block."""
    return root / next(name for name, blocks in DOCUMENTS.items() if block in blocks)


def edit_measured(root: Path, old: str, new: str) -> None:
    page = root / MEASURED
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, new))


def error_of(root: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        report.main([*words, "--root", str(root)])
    message = str(ended.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


# What is checked in


def test_what_is_shown_is_what_is_stored():
    assert [str(one) for one in report.changes(ROOT)] == []


def test_every_page_is_made_by_the_report():
    assert {path.stem for path in (ROOT / "bench/results").glob("*.md")} == PAGES.keys()


@pytest.mark.parametrize("name", STORED)
def test_every_measurement_says_how_it_was_made(name):
    text = (ROOT / "bench/results" / f"{name}.json").read_text()
    assert json.loads(text)["command"].startswith(("q4run ", "python", "pytest"))
    assert not re.search(r"\"/|[ =]/\w", text), "a path of some machine"


FIGURE = re.compile(r"\d[\d.,]* ?(?:%|[kMG]B\b|GB/s|tok/s|tokens/s|times\b|seconds\b|minutes\b)")


@pytest.mark.parametrize("page", ["README.md", MEASURED])
def test_no_figure_is_typed_by_hand(page):
    whole = (ROOT / page).read_text()
    text = re.sub(r"<!-- figures: .*?<!-- /figures -->", "", whole, flags=re.S)
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    assert FIGURE.findall(prose) == []
    assert FIGURE.findall(whole)


# What changes with a measurement


@pytest.mark.parametrize(
    ("name", "key", "value", "block", "shown"),
    [
        ("first-start", "pip_s", 987, "first start", "987 of them `pip`"),
        ("first-start", "interpreter_bytes", [1e6, 987e6], "allowance", "1.00 to 987 MB"),
        ("speed-small-scout-q8_0", "decode.tok_s", 98.7, "speed", "| q8_0 | 98.7 |"),
        ("speed-small-scout-q8_0", "decode.tok_s", 98.7, "speed in brief", "q8_0 | 98.7 (1.89)"),
        ("speed-avx2", "rows.1.prefill.ratio", 9.87, "speed in brief", "145 (9.87)"),
        ("scout-109b-tq1_0-8G", "decode.tok_s", 98.7, "speed in brief", "within 8 GB | 98.7 |"),
        ("speed-small-scout-q8_0", "ratio_spread.decode", [0.5, 9.87], "speed", "(0.50–9.87)"),
        ("speed-slow-memory", "read_limit", 98e9, "speed", "of the 98 GB/s"),
        (
            "streaming-scout-slice-2048",
            "cases.0.limit",
            5e9,
            "streaming",
            "5 GB, cold: prompt of 2",
        ),
        ("scout-109b-tq1_0-8G", "decode.tok_s", 98.7, "scout", "98.7 within 8 GB"),
        ("quality-tiny-llama4", "rows.6.report.ratio.value", 1.5, "quality", "| q6_k | +50.00 %"),
        ("quality-fit", "kl_mean", 0.5, "quality", "KL 0.5000"),
        ("conversion", "checkpoint_bytes", 98.7e9, "conversion", "A 98.7 GB checkpoint"),
        ("correctness", "greedy.same", 63, "correctness", "63 are llama.cpp's"),
    ],
)
def test_a_changed_number_changes_its_block(root, capsys, name, key, value, block, shown):
    page = page_of(root, block)
    before = page.read_text()
    assert shown not in before
    change(root, name, key, value)
    with pytest.raises(SystemExit) as ended:
        report.main(["--check", "--root", str(root)])
    assert ended.value.code == 1
    assert f"stale: {page}: {block}\n" in capsys.readouterr().out
    assert page.read_text() == before
    report.main(["--root", str(root)])
    after = page.read_text()
    assert shown in " ".join(after.split())
    report.main(["--check", "--root", str(root)])
    # Nothing outside of the block.
    block_of = re.compile(rf"(?<=figures: {block} -->).*?(?=<!-- /figures)", re.S)
    assert block_of.sub("", after) == block_of.sub("", before)


def test_a_changed_number_changes_its_page(root, capsys):
    change(root, "quality-stories260K", "rows.1.n_bytes", 123_450_000)
    change(root, "streaming-scout-slice", "cases.0.programs.q4run.load_s", 1.0)
    report.main(["--root", str(root)])
    page = root / "bench/results/quality-stories260K.md"
    assert capsys.readouterr().out == f"written: {page}\n"  # medians are made of the runs
    assert "| 123.45 |" in page.read_text()


def test_a_new_type_gets_a_row(root):
    content = json.loads(stored(root, "speed-small-scout-q4_0").read_text())
    content["command"] = (
        "q4run bench some.gguf -p 512 -n 48 --runs 3 --threads 2 --vs llama.cpp --json"
    )
    del content["ratio_spread"]
    stored(root, "speed-small-scout-q5_1").write_text(json.dumps(content))
    report.main(["--root", str(root)])
    assert re.search(
        r"\| tq1_0 .*\n\| q5_1 \| 77.1 \| 56.6 \| 1.36 \| ", (root / MEASURED).read_text()
    )
    assert (
        "| small Scout, q5_1 | 77.1 (1.36) | 397 (2.56) | – | – |"
        in (root / "README.md").read_text()
    )
    assert "| q5_1 |" in (root / "bench/results/speed-small-scout.md").read_text()


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("command", "q4run bench s12-q4_k.gguf -p 64 -n 48", "command"),
        ("machine", "8 cores of another, 64.0 GB of RAM, Linux 6", "machine"),
    ],
)
def test_a_table_is_of_one_machine_and_one_command(root, key, value, what):
    change(root, "speed-small-scout-q4_k", key, value)
    assert f"its {what} is not that of speed-small-scout-q4_0.json" in error_of(root)


def test_paths_of_a_machine_are_taken_out(root):
    name = "speed-small-scout-q4_0"
    change(root, name, "model", "/home/somebody/s12-q4_0.gguf")
    change(root, name, "peer.model", "/home/somebody/s12-q4_0.gguf")
    command = (
        "q4run bench /home/somebody/s12-q4_0.gguf -p 512 -n 48 --runs 3 --threads 2 --vs llama.cpp"
    )
    change(root, name, "command", command)
    report.main(["--root", str(root)])
    assert "somebody" not in stored(root, name).read_text()
    assert stored(root, name).read_bytes() == stored(ROOT, name).read_bytes()
    assert report.changes(root) == []


# What is wrong


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"rows": 3}', '{"cases": []}', "\x00"])
def test_a_malformed_measurement_is_one_error_line(root, name, content):
    stored(root, name).write_text(content)
    assert f"{name}.json" in error_of(root)


@pytest.mark.parametrize(
    "name", [name for name in STORED if not name.startswith(("speed-sm", "sc"))]
)
def test_a_missing_measurement_is_one_error_line(root, name):
    stored(root, name).unlink()
    assert f"{name}.json: there is no such measurement" in error_of(root)


def test_no_measurement_at_all_is_one_error_line(tmp_path):
    assert "there is no such measurement" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decode.tok_s", None),
        ("decode.tok_s", "fast"),
        ("decode.tok_s", True),
        ("decode.tok_s", float("nan")),
        ("decode", 7),
        ("ratio", None),
        ("ratio_spread.decode", []),
        ("ratio_spread.decode", 3),
        ("ratio_spread.decode", ["a", 2]),
        ("peer", None),
        ("read_limit", "x"),
        ("versions", None),
        ("date", 7),
    ],
)
def test_a_figure_of_the_wrong_kind_is_one_error_line(root, key, value):
    change(root, "speed-small-scout-q4_0", key, value)
    assert "speed-small-scout-q4_0.json" in error_of(root)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every key within a JSON object, with dots."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        yield ".".join((*path, str(key)))
        if isinstance(one, dict | list):
            yield from leaves(one, (*path, str(key)))


@pytest.mark.parametrize("name", STORED)
def test_whatever_a_measurement_holds_it_is_one_error_line_or_none(root, name):
    numbers = random.Random(name)
    intact = stored(root, name).read_text()
    keys = [key for key in leaves(json.loads(intact)) if "llama.cpp" not in key]
    for key in numbers.choices(keys, k=12):
        values = (None, "x", [], {}, -1, 0, 10**400, float("nan"), True, "{a}", [3, "a"])
        change(root, name, key, numbers.choice(values))
        told = ""
        try:
            report.changes(root)
        except q4run.Error as error:
            told = str(error)
        assert "\n" not in told
        stored(root, name).write_text(intact)


@pytest.mark.parametrize("key", ["cases.0.programs.q4run.runs", "cases.0.programs", "date"])
def test_a_damaged_streaming_report_is_one_error_line(root, key):
    change(root, "streaming-scout-slice", key, [])
    assert "streaming-scout-slice.json" in error_of(root)


def test_what_nothing_is_made_of_is_one_error_line(root):
    stored(root, "left-over").write_text("{}")
    assert "left-over.json: nothing is made of it" in error_of(root)


def test_conversions_that_differ_are_no_figure(root):
    change(root, "conversion", "same_bytes", False)
    assert "not the same bytes" in error_of(root)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("<!-- figures: speed -->\n", "", "'<!-- /figures -->' stands where"),
        ("<!-- figures: speed -->\n", "<!-- figures: sped -->\n", "is no block of"),
        ("<!-- figures: scout -->\n", "<!-- figures: speed -->\n", "is there twice"),
        ("<!-- /figures -->\n", "", "stands where the other mark should"),
    ],
)
def test_marks_out_of_place_are_one_error_line(root, old, new, told):
    edit_measured(root, old, new)
    assert told in error_of(root, "--check")


def test_missing_marks_are_one_error_line(root):
    text = (root / MEASURED).read_text()
    without = re.sub(r"<!-- figures: scout -->.*?<!-- /figures -->\n", "", text, flags=re.S)
    (root / MEASURED).write_text(without)
    assert "has no '<!-- figures: scout -->' with" in error_of(root)
    head, _, _ = text.rpartition("<!-- /figures -->\n")
    (root / MEASURED).write_text(head)
    assert "'<!-- figures: correctness -->' has no '<!-- /figures -->'" in error_of(root)
    (root / MEASURED).unlink()
    assert f"{MEASURED}: there is no such file" in error_of(root)


# The commands


def test_the_commands_of_all_measurements_are_listed(capsys):
    report.main(["--commands", "--root", str(ROOT)])
    printed = capsys.readouterr().out
    for name in STORED:
        assert f"{name}.json: " in printed
    assert "q4run bench s12-q6_k.gguf -p 512" in printed
    assert "synthetic s12-q6_k.gguf --geometry small-scout --type q6_k\n" in printed


def test_preparations():
    assert preparation("conversion") == []
    assert preparation("scout-109b-tq1_0-8G")[0].split()[-3:] == ["tq1_0", "--vocab-size", "202048"]


def test_help_says_how_it_is_done(capsys):
    with pytest.raises(SystemExit) as ended:
        report.main(["--help"])
    assert ended.value.code == 0
    assert "--commands lists them" in capsys.readouterr().out


# Text


def test_paragraphs_keep_code_and_units_together():
    text = paragraph("{a} " * 30 + "`x  y` 5 % of 3 GB", a="word")
    assert all(len(line) <= 100 for line in text.splitlines())
    long = "`" + "code " * 30 + "`"
    assert paragraph("words " * 15 + "{code}", code=long).splitlines()[1] == " ".join(long.split())
    for n_words in range(15, 25):
        assert not re.search(r"5\n%", paragraph("word " * n_words + "5 % more"))
    assert paragraph("{not a placeholder}") == "{not a placeholder}"


def test_commands_are_continued_before_options():
    command = "python -m x " + " ".join(f"--option-{i} value" for i in range(9))
    lines = code(command).splitlines()
    assert lines[0] == "```bash"
    assert all(line.endswith(" \\") for line in lines[1:-2])
    assert all(line.startswith("    --") for line in lines[2:-1])
    assert " ".join(line.strip(" \\") for line in lines[1:-1]) == command


def test_small_numbers_are_words():
    assert [in_words(count) for count in (2, 2.0, 10, 11)] == ["two", "two", "ten", "11"]
    assert in_words(2.5) == "2.5"
    assert [how_often(count) for count in (1, 2, 3)] == ["once", "twice", "three times"]


def test_spans_and_tables():
    assert span([3.0, 1.0, 2.0]) == "1.00–3.00"
    assert span([1.001, 1.002]) == "1.00"
    assert markdown_table(["", "a"], [["x", "1"]]) == "| | a |\n|---|---:|\n| x | 1 |"


def test_types_keep_their_order():
    assert list(bench_runs.small_scouts(Results(ROOT / "bench/results")))[:2] == ["q4_0", "q8_0"]
    with pytest.raises(q4run.Error, match="there is no such measurement"):
        Results(ROOT / "bench/results").records("nameless")


def test_blocks_are_made_of_what_is_stored():
    results = Results(ROOT / "bench/results")
    blocks = [make for blocks in DOCUMENTS.values() for make in blocks.values()]
    for make in (*blocks, *PAGES.values()):
        assert all(make(results))
    assert results.unread == []
