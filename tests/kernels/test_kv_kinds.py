"""The kinds of keys and values: one file adds one, even beside another of the same dtype."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import int8_rows

from q4run.kernels.attention import kinds
from q4run.kernels.attention.attend import NO_SINKS, attend
from q4run.kernels.attention.rows import NO_WINDOW, KVRows, write_cache
from q4run.kernels.threads.pool import ALONE


@pytest.fixture
def made_up_kind(tmp_path, monkeypatch) -> str:
    """The name of a kind whose file lies in the folder of kinds, as it were.

    The name tells its content: numba keeps what it compiles for a kind under the name.
    """
    source = Path(int8_rows.__file__)
    name = f"int8_rows_{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}"
    shutil.copy(source, tmp_path / f"{name}.py")
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    return name


def test_a_file_is_all_that_a_kind_takes(made_up_kind):
    assert kinds.kind_names() == ["f16", "f32", made_up_kind, "q8_0"]
    kind = kinds.find_kind(made_up_kind)
    assert kind is kinds.find_kind(made_up_kind)
    assert kind.name == made_up_kind


def test_unknown_kinds():
    for name in ("base", "q9", ""):
        with pytest.raises(KeyError):
            kinds.find_kind(name)


def test_listing_the_kinds_imports_no_numba():
    program = (
        "import sys; from q4run.kernels.attention.kinds import kind_names;"
        "print(kind_names(), 'numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "['f16', 'f32', 'q8_0'] False\n", done.stderr


@pytest.mark.parametrize("name", ["f16", "f32", "q8_0"])
def test_row_bytes(name):
    kind = kinds.find_kind(name)
    for head_dim in (1, 8, 31, 32, 33, 128):
        assert kind.row_bytes(head_dim) == kind.row_length(head_dim) * kind.dtype.itemsize


def test_two_kinds_of_one_dtype_run_side_by_side(made_up_kind):
    """Each within its precision of a softmax in float64 over the values as they were given."""
    rng = np.random.default_rng(5)
    n_keys, head_dim = 600, 33
    q = rng.standard_normal((2, 4, head_dim), dtype=np.float32)
    k, v = rng.standard_normal((2, n_keys, 2, head_dim), dtype=np.float32)
    scale = head_dim**-0.5
    expected = np.empty(q.shape, np.float64)
    for token, n_seen in enumerate((n_keys - 1, n_keys)):
        for head in range(4):
            scores = k[:n_seen, head // 2].astype(np.float64) @ q[token, head] * scale
            weights = np.exp(scores - scores.max())
            expected[token, head] = weights / weights.sum() @ v[:n_seen, head // 2]
    results: dict[str, np.ndarray] = {}
    for name in (made_up_kind, "q8_0", made_up_kind):
        kind = kinds.find_kind(name)
        caches = []
        for rows in (k, v):
            array = np.zeros((2, n_keys, kind.row_length(head_dim)), kind.dtype)
            caches.append(KVRows(kind, array))
            write_cache(rows, caches[-1], 0, NO_WINDOW)
        out = np.empty_like(q)
        attend(ALONE, q, *caches, n_keys - 1, np.float32(scale), NO_WINDOW, NO_SINKS, out)
        assert np.abs(out - expected).max() < 0.01 * np.abs(v).max()
        results[name] = out
    assert (results["q8_0"] != results[made_up_kind]).any()
