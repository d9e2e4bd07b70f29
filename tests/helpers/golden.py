"""What models, files and plans are, as plain data: to be the same from one change to the next."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import q4run
from q4run.box import MODEL
from q4run.budget import least_budget, plan_memory
from q4run.convert import convert
from q4run.convert.preview import preview_geometry
from q4run.convert.types.recipe import make_recipe
from q4run.experts.layout import read_layout
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize
from q4run.models import FAMILIES, read_config
from q4run.models.published import GEOMETRIES
from q4run.planning.work import count_work

CASE_TYPES: dict[str, dict[str, Any]] = {
    "f32": {"type": "f32"},
    "q8_0, experts q4_0": {"type": "q8_0", "expert_type": "q4_0"},
    "fit": {"fit": 1_000_000},
}
BOX_TYPES: dict[str, dict[str, Any]] = {
    "q4_k": {"type": "q4_k"},
    "q8_0, experts tq1_0": {"type": "q8_0", "expert_type": "tq1_0"},
}
KV_TYPES = ("f32", "f16", "q8_0")
N_KEPT = 6  # logits of the last token


def converted(source: Path, kinds: dict[str, dict[str, Any]], folder: Path) -> dict[str, Path]:
    """Converts a checkpoint or a GGUF in each of the given ways."""
    folder.mkdir()
    paths = {}
    for i, (kind, options) in enumerate(kinds.items()):
        paths[kind] = folder / f"{i}.gguf"
        convert(source, paths[kind], **options)
    return paths


def digest(data: bytes) -> str:
    """Returns the beginning of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def facts_of_file(path: Path) -> dict[str, Any]:
    """Returns what inspector, layout, budget and plan say of a model file."""
    file = open_gguf(path)
    config = read_config(file)
    layout = read_layout(file, config)
    summary = summarize(file, list_tensors=True)
    for name in ("path", "parts", "name"):
        del summary[name]
    tensors = summary.pop("tensors")
    for tensor in tensors:
        del tensor["part"]
    plans = {}
    for context, kv_type in itertools.product((64, 500), KV_TYPES):
        asked = {"context": context, "kv_type": kv_type}
        least = least_budget(file, config, layout, **asked)
        plans[f"{context} {kv_type}"] = [least] + [
            _plan_figures(
                plan_memory(file, config, layout, ram_budget=budget, **asked, total_ram=2**40)
            )
            for budget in (least, 2 * least, 2**32)
        ]
    return {
        "bytes": digest(path.read_bytes()),
        "summary": summary,
        "tensors": digest(repr([sorted(tensor.items()) for tensor in tensors]).encode()),
        "layout": [
            [i, *[[m.fmt.name, m.n_rows, m.n_cols, m.slot_offset, m.slot_bytes] for m in matrices]]
            for i, matrices in layout.layers.items()
        ],
        "plans": plans,
        "work": _work_figures(count_work(file, config, layout, "f16")),
    }


def _plan_figures(plan: Any) -> list[int]:
    return [
        plan.dense, plan.tokenizer, plan.kv, plan.scratch, plan.slot_bytes, plan.n_slots,
        plan.n_batch, plan.n_long_batch, plan.n_lent_slots,
    ]  # fmt: skip


def _work_figures(work: Any) -> dict[str, Any]:
    return {
        "dense": dict(work.dense),
        "prompt": dict(work.prompt_weights),
        "experts": [
            [e.n_expert, e.n_used, dict(e.ram_bytes), e.file_bytes, dict(e.meanwhile)]
            for e in work.experts
        ],
        "kv": work.kv_bytes(100),
        "attention": work.attention_operations(100),
    }


def geometry_facts() -> dict[str, Any]:
    """Returns the tensors of each known shape that can be planned, in three recipes."""
    recipes = [("q4_0", None), ("q8_0", "tq2_0"), ("q4_k", None)]
    facts = {}
    for name, geometry in GEOMETRIES.items():
        if geometry.architecture not in FAMILIES:
            continue
        files = [
            preview_geometry(name, geometry, make_recipe(dense, experts, None, ()))
            for dense, experts in recipes
        ]
        told = [
            [(t.name, t.shape, t.type.name, t.offset) for t in f.tensors.values()] for f in files
        ]
        facts[name] = [[file.size for file in files], digest(repr(told).encode())]
    return facts


def logits_of(path: Path, ids: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the logits after each token, float32 (len(ids), n_vocab), by kind of keys and values
    and by budget: all in RAM, and as little as possible."""
    for kv_type in KV_TYPES:
        with q4run.load(path, context=64, kv_type=kv_type) as model:
            yield f"{kv_type} resident", model.logits(ids)
        file = open_gguf(path)
        config = read_config(file)
        layout = read_layout(file, config)
        least = least_budget(file, config, layout, context=64, kv_type=kv_type)
        with q4run.load(path, context=64, kv_type=kv_type, ram_budget=least) as model:
            yield f"{kv_type} streamed", model.logits(ids)


def box_ids() -> list[int]:
    """Returns tokens for the model in the box."""
    with q4run.load(MODEL, context=64) as model:
        return model.tokenize("Once upon a time there was a small fox who liked to read books.")
