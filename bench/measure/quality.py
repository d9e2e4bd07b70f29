"""What quantising costs, beside llama.cpp's quantiser on the same source.

    python -m q4run.bench.measure.quality CHECKPOINT -f TEXT --calibration TEXT [--type q4_0]
                                  [--type q8_0+tq2_0] [--peer-python PATH] [--json FILE]
                                  [--table FILE.md] [--folder DIR]

CHECKPOINT (a folder, or a GGUF) is converted to each type: by q4run rounding alone, with an
importance matrix, and with error compensation, and by llama.cpp's quantiser (llama-cpp-python, in
the Python of --peer-python), each tensor to the same type, with and without the same importance
matrix. A type with a + is that of
the dense matrices and that of the routed experts. Every file is run by q4run over the windows of
the text, in turn with the f16 conversion, token by token: perplexity, the ratio to f16's, KL
divergence and top-token agreement. The calibration text must not be the text that is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import q4run
from q4run.bench.figures.provenance import command_line, computer
from q4run.bench.figures.tables import console
from q4run.bench.measure import compare
from q4run.bench.measure.quality_report import markdown_of, table_of
from q4run.bench.peer.llama_cpp_files import (
    quantize_with_llama_cpp,
    types_of,
)
from q4run.convert import convert
from q4run.convert.calibration.collect import make_imatrix
from q4run.errors import Error
from q4run.generation.perplexity import Report, measure
from q4run.terminal import Waiting, describe
from q4run.text import DEFAULT_WINDOW
from q4run.text.files import read_text
from q4run.text.windows import cut_windows

BASE = "f16"
DEFAULT_TYPES = ["q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "q3_k", "q2_k", "q8_0+tq2_0"]
OURS, PEERS = ("rounded", "imatrix", "calibrated"), ("llama.cpp", "llama.cpp, imatrix")


@dataclass(frozen=True)
class Row:
    """One file: how it was made, its bytes, and what it is worth."""

    type: str
    method: str
    n_bytes: int
    report: Report


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    try:
        _run(_parser().parse_args(words), words)
    except KeyboardInterrupt:
        sys.exit(130)
    except (Error, OSError) as error:
        sys.exit(f"error: {describe(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("-f", "--file", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--calibration", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--type", action="append", metavar="T[+T]", help="may be repeated")
    parser.add_argument("--context", type=int, default=DEFAULT_WINDOW, metavar="N")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    for name in ("--json", "--table"):
        parser.add_argument(name, type=Path, metavar="FILE")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for the files meanwhile")
    return parser


def _run(arguments: argparse.Namespace, words: list[str]) -> None:
    peer = compare.check_peer(arguments.peer_python)
    kinds = arguments.type or DEFAULT_TYPES
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        rows = _measure(arguments, kinds, Path(name))
    content: dict[str, Any] = {
        "model": arguments.checkpoint.name,
        "date": date.today().isoformat(),
        "machine": computer(),
        "command": command_line("python -m q4run.bench.measure.quality", words),
        "peer": peer,
        "rows": [asdict(row) for row in rows],
    }
    console().print(table_of(content["rows"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.table:
        arguments.table.write_text(markdown_of(content))


def _measure(arguments: argparse.Namespace, kinds: list[str], folder: Path) -> list[Row]:
    """The base's row, then each type's, each file deleted once it is measured."""
    base_path = folder / "base.gguf"
    imatrix = folder / "imatrix.gguf"
    text = read_text(arguments.file)
    with Waiting("converting") as waiting:
        convert(arguments.checkpoint, base_path, type=BASE)
        waiting.update("calibrating", 0, 1)
        make_imatrix(base_path, arguments.calibration, imatrix)
        rows = []
        types: dict[str, int] = {}
        with q4run.load(base_path, context=arguments.context) as base:
            ids = base.tokenize(text, special=True)
            windows = cut_windows(base.tokenizer, ids, arguments.context)
            rows.append(Row(BASE, "", base_path.stat().st_size, measure(base.session, windows)))
            cases = [(kind, method) for kind in kinds for method in (*OURS, *PEERS)]
            for done, (kind, method) in enumerate(cases):
                waiting.update(f"{kind}, {method}", done, len(cases))
                path = folder / "model.gguf"
                dense, _, experts = kind.partition("+")
                if method in PEERS:
                    quantize_with_llama_cpp(
                        arguments.peer_python,
                        base_path,
                        path,
                        dense,
                        types,
                        imatrix if method.endswith("imatrix") else None,
                    )
                else:
                    convert(
                        arguments.checkpoint,
                        path,
                        type=dense,
                        expert_type=experts or None,
                        imatrix=imatrix if method == "imatrix" else None,
                        calibrate=arguments.calibration if method == "calibrated" else None,
                    )
                    types = types_of(path)
                with q4run.load(path, context=arguments.context) as model:
                    rows.append(
                        Row(
                            kind,
                            method,
                            path.stat().st_size,
                            measure(model.session, windows, base.session),
                        )
                    )
                path.unlink()
    return rows


if __name__ == "__main__":
    main()
