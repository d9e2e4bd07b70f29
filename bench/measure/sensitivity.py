"""How much a model's predictions suffer from errors in tensors of each use, for ``convert --fit``.

    python -m q4run.bench.measure.sensitivity CHECKPOINT -f TEXT [--type q3_k] [--chunks 40]

One use after another is quantised to the type, all else stays f16. Printed are the KL divergence
from f16, the relative squared errors of the use's tensors (as ``--fit`` measures them) added up,
and the quotient, the sensitivity, in units of attn_v's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich import box
from rich.table import Table

import q4run
from q4run.bench.figures.tables import console
from q4run.convert import convert
from q4run.convert.source.source import open_source
from q4run.convert.types.fit import SENSITIVITY, UNIT, use_of
from q4run.convert.types.recipe import named
from q4run.convert.types.sampling import relative_error, sample_rows
from q4run.errors import Error
from q4run.generation.perplexity import measure
from q4run.terminal import Waiting, describe
from q4run.text import DEFAULT_WINDOW
from q4run.text.files import read_text
from q4run.text.windows import cut_windows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("-f", "--file", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--type", default="q3_k", metavar="T")
    parser.add_argument("--context", type=int, default=DEFAULT_WINDOW, metavar="N")
    parser.add_argument("--chunks", type=int, default=40, metavar="N")
    try:
        _run(parser.parse_args(words))
    except KeyboardInterrupt:
        sys.exit(130)
    except (Error, OSError) as error:
        sys.exit(f"error: {describe(error)}")


def _run(arguments: argparse.Namespace) -> None:
    errors = _errors(arguments.checkpoint, arguments.type)
    with tempfile.TemporaryDirectory() as name, Waiting("measuring") as waiting:
        folder = Path(name)
        base_path, path = folder / "base.gguf", folder / "model.gguf"
        convert(arguments.checkpoint, base_path, type="f16")
        divergences = {}
        with q4run.load(base_path, context=arguments.context) as base:
            ids = base.tokenize(read_text(arguments.file), special=True)
            windows = cut_windows(base.tokenizer, ids, arguments.context, arguments.chunks)
            for done, use in enumerate(errors):
                waiting.update(use, done, len(errors))
                pattern = rf"(^|\.){use}(_exps|_shexp)?\.weight$"
                convert(
                    base_path, path, type="f16", tensor_types=[(pattern, arguments.type)],
                    force=True,
                )  # fmt: skip
                with q4run.load(path, context=arguments.context) as model:
                    report = measure(model.session, windows, base.session)
                assert report.kl is not None
                divergences[use] = report.kl
    quotients = {use: divergences[use].value / errors[use] for use in errors}
    unit = quotients[UNIT]
    table = Table("use", "KL, 1/1000", "errors, added up", "sensitivity", box=box.SIMPLE_HEAD)
    for use, quotient in quotients.items():
        kl = divergences[use]
        table.add_row(
            use,
            f"{1000 * kl.value:.3f} ± {1000 * kl.stderr:.3f}",
            f"{errors[use]:.4f}",
            f"{quotient / unit:.2f}",
        )
    console().print(table)


def _errors(checkpoint: Path, type_name: str) -> dict[str, float]:
    """By use, the relative squared errors of its tensors' samples, added up."""
    errors: dict[str, float] = {}
    for tensor in open_source(checkpoint).tensors:
        use = use_of(tensor)
        if use in SENSITIVITY and named(type_name).fits(tensor.n_cols):
            error = relative_error(named(type_name), *sample_rows(tensor))
            errors[use] = errors.get(use, 0.0) + error
    return errors


if __name__ == "__main__":
    main()
