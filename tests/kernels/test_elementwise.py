"""The small kernels between the matrix products, against float64 and bit against bit."""

import subprocess
import sys

import numba
import numpy as np
import pytest
from helpers.activations import ACTIVATIONS

from q4run.kernels.attention.kinds import kind_names
from q4run.kernels.elementwise import activate, add_into
from q4run.kernels.norm import rms_norm, rms_norm_heads
from q4run.kernels.rope import rotate_adjacent

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


EACH = pytest.mark.parametrize("activation", ACTIVATIONS)


@numba.njit
def activate_range(activation, gate, up, begin, end):
    activate(activation, gate, up, begin, end)


@pytest.mark.parametrize("n", [0, *WIDTHS])
@pytest.mark.parametrize("begin", [0, 1, 24])
@EACH
def test_activations(activation, n, begin):
    gate, up = normal(begin + n + 9) * np.float32(8), normal(begin + n + 9, seed=1) * np.float32(6)
    given, up_before = gate.copy(), up.copy()
    activate_range(activation, given, up, begin, begin + n)
    inside = slice(begin, begin + n)
    expected = ACTIVATIONS[activation](wide(gate), wide(up))[inside]
    np.testing.assert_allclose(given[inside], expected, rtol=4e-6, atol=1e-9)
    np.testing.assert_array_equal(given[:begin], gate[:begin])
    np.testing.assert_array_equal(given[begin + n :], gate[begin + n :])
    np.testing.assert_array_equal(up, up_before)


@EACH
def test_activations_of_large_gates(activation):
    """In the eight lanes and in the tail: no overflow either way."""
    gate = np.tile(np.array([-1000, -100, -88, -87, 87, 88, 100, 1000], np.float32), 2)[:15].copy()
    with np.errstate(over="ignore"):
        expected = ACTIVATIONS[activation](wide(gate), np.ones(15))
    activate_range(activation, gate, np.ones_like(gate), 0, 15)
    np.testing.assert_allclose(gate, expected, rtol=1e-6, atol=1e-34)


@EACH
def test_activations_in_parts_are_the_same_bits(activation):
    """Parts of whole vectors, as threads take them."""
    gate, up = normal(77) * np.float32(4), normal(77, seed=1)
    whole, parts = gate.copy(), gate.copy()
    activate_range(activation, whole, up, 0, 77)
    for begin, end in ((32, 64), (64, 77), (0, 32)):
        activate_range(activation, parts, up, begin, end)
    np.testing.assert_array_equal(parts, whole)


# Sums.


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("n_tokens", [0, 1, 3])
def test_add_into(n, n_tokens):
    x, y = normal(n_tokens, n), normal(n_tokens, n, seed=1)
    expected = x + y
    add_into(x, y)
    np.testing.assert_array_equal(x, expected)


# Warming up.

USE_A_MODEL = """
import sys
from pathlib import Path

import numpy as np
from numba.core.registry import CPUDispatcher
from q4run.bench.models.synthetic import Geometry, write_model
from q4run.experts.layout import read_layout
from q4run.disk.methods import METHODS
from q4run.experts.store import ExpertStore
from q4run.gguf_file import open_gguf
from q4run.kernels.formats import find_format
from q4run.kernels.products.multiply import multiply_address
from q4run.kernels.warmup import warm_up
from q4run.cache.keys_values import KVCache
from q4run.kernels.attention.kinds import find_kind
from q4run.models import read_config
from q4run.layers.decoder import Transformer


def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("q4run.kernels")]
    functions = {value for module in modules for value in vars(module).values()
                 if isinstance(value, CPUDispatcher) and value.targetoptions.get("nogil")}
    return sorted((function.__qualname__, len(function.signatures)) for function in functions)


folder, kv_type = Path(sys.argv[1]), sys.argv[2]
write_model(folder / "moe", Geometry(4, 64, 4, 2, 16, 64, 4, 300), "q8_0")
write_model(folder / "dense", Geometry(4, 64, 4, 2, 16, 64, 4, 300, moe_step=2), "q4_0")
files = [open_gguf(folder / name) for name in ("moe", "dense")]
steps = []
formats = {find_format(tensor.type) for file in files for tensor in file.tensors.values()}
warm_up(formats, find_kind(kv_type), lambda *step: steps.append(step))
assert [done for done, _ in steps] == list(range(1, len(steps) + 1)), steps
assert {total for _, total in steps} == {len(steps)}, steps
before, n_formats = compiled(), multiply_address.cache_info().misses
assert n_formats == len(formats) == 3, formats
for name in (
    "attention_layer", "moe_layer", "route", "run_experts", "combine", "dense_layer", "output_head",
):
    assert before.count((name, 1)) == 1, (name, before)
for file in files:
    config = read_config(file)
    store = ExpertStore(read_layout(file, config), 2, METHODS["pread"](file.parts))
    transformer = Transformer(file, config, store, 16, 2)
    cache = KVCache(config, 64, kv_type)
    transformer.forward(list(range(40)), cache, consume=lambda logits: None)
    transformer.forward([7], cache)
    transformer.close()
    store.close()
assert compiled() == before, (before, compiled())
assert multiply_address.cache_info().misses == n_formats
"""


@pytest.mark.parametrize("kv_type", kind_names())
def test_after_warming_up_nothing_is_compiled(tmp_path, kv_type):
    """Or the first token would wait for it, without a word."""
    run = subprocess.run(
        [sys.executable, "-c", USE_A_MODEL, str(tmp_path), kv_type],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
