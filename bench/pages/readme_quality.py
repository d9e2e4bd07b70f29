"""What docs/measured.md says of what quantising costs."""

from __future__ import annotations

from typing import Any

from q4run.bench.figures.stored import Results
from q4run.bench.figures.tables import markdown_table, span
from q4run.bench.pages.prose import paragraph

_TEXT = """ What quantising costs: a trained 30 M-parameter Llama 4, {tokens:,} held-out tokens,
excess perplexity over f16 and KL divergence from it, beside llama.cpp's quantiser with each tensor
of the same type and, where it helps it, the same importance matrix (`python -m
q4run.bench.measure.quality`; all of it in `bench/results/`)."""
_NOTES = """
Standard errors are {excess} %, and {kl} % of a KL (of that of {worst} {worst_kl} %). `--fit` at
{size_of}'s size, with an importance matrix: {fit_excess:+.2f} %, KL {fit_kl:.4f}."""
# It costs next to nothing whoever makes it.
_LEFT_OUT = {"f16", "q8_0"}
_COLUMNS = {
    "rounded": ["rounded"],
    "with `--calibrate`": ["calibrated"],
    "llama.cpp, the better": ["llama.cpp", "llama.cpp, imatrix"],
}


def quality_block(results: Results) -> list[str]:
    """Paragraphs and the table."""
    record, fit = results.record("quality-tiny-llama4"), results.record("quality-fit")
    return [
        paragraph(_TEXT, tokens=record.read_as(lambda c: c["rows"][0]["report"]["tokens"])),
        record.read_as(_table),
        paragraph(
            _NOTES,
            **record.read_as(_errors),
            size_of=fit.text("size_of"),
            fit_excess=100 * (fit.number("ppl_ratio") - 1),
            fit_kl=fit.number("kl_mean"),
        ),
    ]


def _table(content: dict[str, Any]) -> str:
    shown = _shown(content)
    kinds = dict.fromkeys(kind for kind, _ in shown)
    rows = [[_name(kind), *(_cell(shown[kind, column]) for column in _COLUMNS)] for kind in kinds]
    # The first cell says what the second number of all is.
    rows[0][1] = rows[0][1].replace(", ", ", KL ")
    return markdown_table(["type", *_COLUMNS], rows, 1 + len(_COLUMNS))


def _errors(content: dict[str, Any]) -> dict[str, str]:
    """Standard errors of what is shown: of the excess in percent, and of each KL's own size, the
    type with the largest by itself."""
    shown = _shown(content)
    excess = [100 * report["ratio"]["stderr"] for report in shown.values()]
    shares: dict[str, list[float]] = {}
    for (kind, _), report in shown.items():
        shares.setdefault(kind, []).append(100 * report["kl"]["stderr"] / report["kl"]["value"])
    worst = max(shares, key=lambda kind: max(shares[kind]))
    of_worst = shares.pop(worst)
    others = [share for some in shares.values() for share in some] or of_worst
    return {
        "excess": span(excess, "{:.2f}".format, " to "),
        "kl": span(others, "{:.0f}".format, " to "),
        "worst": _name(worst),
        "worst_kl": span(of_worst, "{:.0f}".format, " to "),
    }


def _shown(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The report for each type and column: of the methods it has, that of the least excess."""
    reports = {(row["type"], row["method"]): row["report"] for row in content["rows"]}
    kinds = [kind for kind in dict.fromkeys(kind for kind, _ in reports) if kind not in _LEFT_OUT]
    return {
        (kind, column): min(
            (reports[kind, method] for method in methods),
            key=lambda report: float(report["ratio"]["value"]),
        )
        for kind in kinds
        for column, methods in _COLUMNS.items()
    }


def _name(kind: str) -> str:
    dense, _, experts = kind.partition("+")
    return f"experts {experts}, the rest {dense}" if experts else dense


def _cell(report: dict[str, Any]) -> str:
    return f"{100 * (report['ratio']['value'] - 1):+.2f} %, {report['kl']['value']:.4f}"
