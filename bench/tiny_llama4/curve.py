"""The training curve: means over some steps of the log, as JSON and as a page."""

from typing import Any

from q4run.bench.figures.tables import markdown_table

_EVERY = 50


def curve_of(log: list[dict[str, Any]]) -> dict[str, Any]:
    """The loss, in means over some steps, with the held-out perplexities on the way."""
    rows = []
    for start in range(0, len(log), _EVERY):
        some = log[start : start + _EVERY]
        last = some[-1]
        means = {key: sum(line[key] for line in some) / len(some) for key in ("loss", "imbalance")}
        held = {kind: last.get(f"perplexity_{kind}") for kind in ("dialogues", "stories")}
        rows.append({"step": last["step"], "epoch": last["epoch"]} | means | held)
    return {
        "command": "python -m q4run.bench.tiny_llama4.train",
        "steps": log[-1]["step"],
        "tokens": sum(line["tokens"] for line in log),
        "rows": rows,
    }


def markdown_of(curve: dict[str, Any]) -> str:
    """A page with a row for each mean."""
    header = ["step", "epoch", "loss, nats", "imbalance", "dialogues", "book"]
    rows = []
    for row in curve["rows"]:
        cells = [str(row["step"]), str(row["epoch"])]
        cells += [f"{row[key]:.3f}" for key in ("loss", "imbalance")]
        held = [row["dialogues"], row["stories"]]
        rows.append(cells + ["" if value is None else f"{value:.2f}" for value in held])
    return (
        "# Training of the model in the box\n\n"
        f"`{curve['command']}`: {curve['steps']} steps, {curve['tokens'] / 1e6:.1f} M tokens. Means"
        f" over {_EVERY} steps; the imbalance is 1 where all experts get as much. Held-out"
        " perplexities are of a part of the held-out texts.\n\n"
        f"{markdown_table(header, rows, n_left=0)}\n"
    )
