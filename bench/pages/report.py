"""Rebuilds all figures that are shown from the measurements that are stored.

    python -m q4run.bench.pages.report [--check | --commands] [--root FOLDER]

Run at the top of the repository. bench/results/NAME.json are the measurements, each as the command
wrote it that it names; the pages bench/results/NAME.md and the blocks of README.md and docs/ that
stand between `<!-- figures: NAME -->` and `<!-- /figures -->` are made of them. To measure
something again: run its command (--commands lists them), put the JSON in the place of the old one,
and run this. Paths of the machine in a new JSON become names of files. --check writes nothing,
tells what is stale and then exits with status 1.

What the pages say is in results_pages.py, what README and docs say in readme_*.py and plan_page.py;
a new block is a function there and its name in documents.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q4run.bench.figures.provenance import without_paths
from q4run.bench.figures.stored import Record, Results
from q4run.bench.pages.documents import DOCUMENTS, Blocks
from q4run.bench.pages.recipes import preparation
from q4run.bench.pages.results_pages import PAGES
from q4run.errors import Error
from q4run.terminal import describe

_RESULTS = Path("bench/results")
_MARKER = re.compile(r"^<!-- (figures: (?P<name>[^>]*?)|/figures) -->\n", re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """A file that is not what the measurements make it, and what of it is not (none: all)."""

    path: Path
    text: str
    blocks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ": ".join([str(self.path), *filter(None, [", ".join(self.blocks)])])


def changes(root: Path) -> list[Change]:
    """What rebuilding would write below ``root``.

    Raises Error, of one line, for a measurement that is absent, not as its benchmark writes it or
    used by nothing, and for a document whose marks are not those of all its blocks.
    """
    results = Results(root / _RESULTS)
    pages = {name: "\n\n".join(make(results)) + "\n" for name, make in PAGES.items()}
    documents = [_document(root / name, blocks, results) for name, blocks in DOCUMENTS.items()]
    if results.unread:
        raise Error(
            f"{results.folder / results.unread[0]}.json: nothing is made of it; use it in"
            " bench/pages/results_pages.py or bench/pages/readme_figures.py, or delete it"
        )
    found = [Change(results.folder / f"{name}.md", text) for name, text in pages.items()]
    found += [_tidied(results.record(name)) for name in results.names]
    return [change for change in (*found, *documents) if _read(change.path) != change.text]


def _document(path: Path, blocks: Blocks, results: Results) -> Change:
    """A document with all its blocks made anew."""
    text = _read(path)
    if text is None:
        raise Error(f"{path}: there is no such file; run this at the top of the repository")
    parts, stale, end = [], [], 0
    for name, start, stop in _find(path, text, blocks):
        made = "\n\n".join(blocks[name](results)) + "\n"
        if text[start:stop] != made:
            stale.append(name)
        parts += [text[end:start], made]
        end = stop
    return Change(path, "".join([*parts, text[end:]]), tuple(stale))


def _find(path: Path, text: str, blocks: Blocks) -> Iterator[tuple[str, int, int]]:
    """Each block's name and where in the text its content begins and ends."""
    names: list[str] = []
    begun = None
    for mark in _MARKER.finditer(text):
        name = mark["name"]
        if (name is None) == (begun is None):
            raise Error(f"{path}: '{mark[0].strip()}' stands where the other mark should; mend it")
        if name is None:
            yield names[-1], begun or 0, mark.start()
            begun = None
        elif name not in blocks or name in names:
            why = "is there twice" if name in names else "is no block of bench/pages/documents.py"
            raise Error(f"{path}: '{mark[0].strip()}' {why}; take it out")
        else:
            names.append(name)
            begun = mark.end()
    if begun is not None:
        raise Error(f"{path}: '<!-- figures: {names[-1]} -->' has no '<!-- /figures -->' after it")
    if missing := [name for name in blocks if name not in names]:
        raise Error(
            f"{path}: has no '<!-- figures: {missing[0]} -->' with '<!-- /figures -->' after it;"
            " put both, each on a line of its own, where these figures belong"
        )


def _tidied(record: Record) -> Change:
    """The stored file without paths of the machine it was measured on."""
    tidy = _without_paths(record.content)
    text = _read(record.path) or ""
    if tidy != record.content:
        text = json.dumps(tidy, indent=1, ensure_ascii=False) + "\n"
    return Change(record.path, text)


def _without_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner, key) for inner in value]
    return without_paths(value) if isinstance(value, str) and key in ("model", "command") else value


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def print_commands(root: Path) -> None:
    """For every measurement its date and the commands that make it again."""
    results = Results(root / _RESULTS)
    for name in results.names:
        record = results.record(name)
        print(f"{record.path}: {record.get('date') or 'undated'}")
        for command in [*preparation(name), record.text("command")]:
            print(f"    {command}")


def main(words: list[str] | None = None) -> None:
    try:
        _run(_parser().parse_args(words))
    except (Error, OSError) as error:
        sys.exit(f"error: {describe(error)}")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.commands:
        print_commands(arguments.root)
        return
    found = changes(arguments.root)
    for change in found:
        if not arguments.check:
            change.path.write_text(change.text, encoding="utf-8")
        print(f"{'stale' if arguments.check else 'written'}: {change}")
    if found and arguments.check:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m q4run.bench.pages.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing, tell what is stale")
    what.add_argument(
        "--commands", action="store_true", help="list the commands that make each measurement"
    )
    parser.add_argument("--root", type=Path, default=Path(), metavar="FOLDER")
    return parser


if __name__ == "__main__":
    main()
