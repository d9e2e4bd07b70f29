"""The small kernels between the matrix products, against float64 and bit against bit."""

import subprocess
import sys

import numpy as np
import pytest

from q4run.kernels.elementwise import (
    add_into,
    add_scaled_rows,
    gather_scaled,
    scale_tokens,
    silu_mul,
)
from q4run.kernels.norm import rms_norm, rms_norm_heads
from q4run.kernels.rope import rotate_adjacent
from q4run.kernels.routing import top_k

WIDTHS = [1, 7, 8, 9, 64, 333]  # around the eight lanes of a vector


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


# Norms.


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("n_tokens", [0, 1, 3])
def test_rms_norm(n, n_tokens):
    x, weight = normal(n_tokens, n) * np.float32(30), normal(n, seed=1)
    out = np.full_like(x, np.nan)
    rms_norm(x, weight, np.float32(1e-3), out)
    mean_square = (wide(x) ** 2).mean(axis=1, keepdims=True)
    expected = wide(x) / np.sqrt(mean_square + np.float32(1e-3)) * weight
    np.testing.assert_allclose(out, expected, rtol=2e-6)


def test_rms_norm_of_zeros_is_zero():
    out = np.full((2, 9), np.nan, np.float32)
    rms_norm(np.zeros((2, 9), np.float32), np.ones(9, np.float32), np.float32(1e-5), out)
    assert not out.any()


@pytest.mark.parametrize("head_dim", [1, 5, 8, 12, 64])
def test_rms_norm_of_heads(head_dim):
    x = normal(3, 4, head_dim) * np.float32(5)
    expected = wide(x) / np.sqrt((wide(x) ** 2).mean(axis=2, keepdims=True) + np.float32(1e-5))
    rms_norm_heads(x, np.float32(1e-5))
    np.testing.assert_allclose(x, expected, rtol=2e-6)


# RoPE.


@pytest.mark.parametrize("head_dim", [2, 8, 14])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rotation_is_a_complex_product(head_dim, share):
    n_pairs = max(1, int(head_dim * share) // 2)
    angles = normal(3, n_pairs, seed=2) * np.float32(10)
    x = normal(3, 5, head_dim)
    pairs = wide(x[:, :, : 2 * n_pairs]).reshape(3, 5, n_pairs, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * wide(angles))[:, None]
    expected = wide(x)
    expected[:, :, : 2 * n_pairs : 2] = turned.real
    expected[:, :, 1 : 2 * n_pairs : 2] = turned.imag
    rotate_adjacent(x, np.cos(angles), np.sin(angles))
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_position_zero_is_not_rotated():
    x = normal(1, 3, 8)
    before = x.copy()
    rotate_adjacent(x, np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32))
    np.testing.assert_array_equal(x, before)


# Activations.


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("n_tokens", [0, 1, 2, 5])
def test_silu_mul(n, n_tokens):
    gate, up = normal(n_tokens, n) * np.float32(8), normal(n_tokens, n, seed=1)
    expected = wide(gate) / (1 + np.exp(-wide(gate))) * up
    given, up_before = gate.copy(), up.copy()
    assert silu_mul(given, up) is given
    np.testing.assert_allclose(given, expected, rtol=2e-6)
    np.testing.assert_array_equal(up, up_before)


def test_silu_mul_of_large_gates():
    """In the eight lanes and in the tail: no overflow either way."""
    gate = np.tile(np.array([-1000, -100, -88, -87, 87, 88, 100, 1000], np.float32), 2)
    gate = gate[None, :15].copy()
    expected = np.where(gate > 0, gate, 0)
    got = silu_mul(gate, np.ones_like(gate))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-34)


def test_silu_mul_of_a_token_alone_equals_the_batch():
    gate, up = normal(6, 77) * np.float32(4), normal(6, 77, seed=1)
    alone = [silu_mul(gate[i : i + 1].copy(), up[i : i + 1])[0] for i in range(6)]
    np.testing.assert_array_equal(silu_mul(gate.copy(), up), np.stack(alone))


# Sums.


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("n_tokens", [0, 1, 3])
def test_add_into(n, n_tokens):
    x, y = normal(n_tokens, n), normal(n_tokens, n, seed=1)
    expected = x + y
    add_into(x, y)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("rows", [[], [2], [0, 3, 3, 1]])
def test_gather_scaled(n, rows):
    x, weights = normal(4, n), normal(len(rows), seed=1)
    out = np.full((len(rows), n), np.nan, np.float32)
    gather_scaled(x, np.array(rows, np.int64), weights, out)
    np.testing.assert_array_equal(out, x[rows] * weights[:, None])


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_add_scaled_rows(n, k):
    x, rows, weights = normal(3, n), normal(3, k, n, seed=1), normal(3, k, seed=2)
    expected = wide(x) + np.einsum("tk,tkn->tn", wide(weights), wide(rows))
    together = x.copy()
    add_scaled_rows(together, rows, weights)
    np.testing.assert_allclose(together, expected, atol=2e-6)
    for i in range(3):
        alone = x[i : i + 1].copy()
        add_scaled_rows(alone, rows[i : i + 1], weights[i : i + 1])
        np.testing.assert_array_equal(alone[0], together[i])


def test_rows_of_weight_one_are_added_exactly():
    x, rows = normal(2, 20), normal(2, 1, 20, seed=1)
    expected = x + rows[:, 0]
    add_scaled_rows(x, rows, np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("n_tokens", [0, 1, 3])
def test_scale_tokens(n_tokens):
    x, factors = normal(n_tokens, 21), normal(n_tokens, seed=1)
    expected = x * factors[:, None]
    scale_tokens(x, factors)
    np.testing.assert_array_equal(x, expected)


# Routing.


def largest(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(logits), k), -1, np.int64)
    values = np.full((len(logits), k), np.nan, np.float32)
    top_k(logits, ids, values)
    return ids, values


@pytest.mark.parametrize(("n_expert", "k"), [(1, 1), (4, 1), (4, 2), (4, 4), (128, 8)])
def test_top_k(n_expert, k):
    logits = normal(50, n_expert)
    ids, values = largest(logits, k)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, axis=1))


def test_ties_go_to_the_lower_expert():
    rng = np.random.default_rng(5)
    logits = rng.integers(0, 3, (200, 9)).astype(np.float32)
    ids, _ = largest(logits, 4)
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=1, kind="stable")[:, :4])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_still_name_experts(value):
    """A damaged router must not send a token to an expert that does not exist."""
    logits = normal(40, 6)
    logits[np.random.default_rng(6).random((40, 6)) < 0.4] = value
    logits[0] = value
    ids, _ = largest(logits, 3)
    assert ((ids >= 0) & (ids < 6)).all()
    assert all(len(set(row)) == 3 for row in ids.tolist())


# Warming up.

USE_A_MODEL = """
import sys
from pathlib import Path

import numpy as np
from numba.core.registry import CPUDispatcher
from q4run.bench.synthetic import Geometry, write_model
from q4run.experts.layout import read_layout
from q4run.experts.methods import METHODS
from q4run.experts.store import ExpertStore
from q4run.gguf_file import open_gguf
from q4run.kernels.compile import Threaded
from q4run.kernels.formats import find_format
from q4run.kernels.warmup import warm_up
from q4run.kv_cache import KV_TYPES, KVCache
from q4run.models import read_config
from q4run.transformer import Transformer


def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("q4run.kernels")]
    values = [value for module in modules for value in vars(module).values()]
    forms = [form for value in values if isinstance(value, Threaded)
             for form in (value._serial, value._parallel)]
    functions = {value for value in [*values, *forms]
                 if isinstance(value, CPUDispatcher) and value.targetoptions.get("nogil")}
    return sorted((function.__qualname__, len(function.signatures)) for function in functions)


path = Path(sys.argv[1]) / "model.gguf"
write_model(path, Geometry(4, 64, 4, 2, 16, 64, 4, 300), "q8_0")
file = open_gguf(path)
config = read_config(file)
steps = []
formats = {find_format(tensor.type) for tensor in file.tensors.values()}
warm_up(formats, KV_TYPES["f16"], lambda *step: steps.append(step))
assert [done for done, _ in steps] == list(range(1, len(steps) + 1)), steps
assert {total for _, total in steps} == {len(steps)}, steps
before = compiled()
assert before.count(("_matmul_int8", 1)) == before.count(("attend", 1)) == 2, before
store = ExpertStore(read_layout(file, config), 2, METHODS["pread"](file.parts))
transformer = Transformer(file, config, store, 16, 1)
cache = KVCache(config, 64, "f16")
transformer.forward(list(range(40)), cache, all_logits=True)
transformer.forward([7], cache)
assert compiled() == before, (before, compiled())
store.close()
"""


def test_after_warming_up_nothing_is_compiled(tmp_path):
    """Or the first token would wait for it, without a word."""
    run = subprocess.run(
        [sys.executable, "-c", USE_A_MODEL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
