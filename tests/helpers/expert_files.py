"""Files of made-up experts, without a model around them, and what a store must make of them."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from q4run.experts.layout import read_layout
from q4run.experts.store import ExpertStore
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.gguf_file.metadata import Metadata
from q4run.kernels.formats import Format, find_format
from q4run.kernels.products.strips import interleave, padded_rows
from q4run.models import parts
from q4run.models.config import ModelConfig
from q4run.models.parts import Attention, DenseFeedForward, Layer, Router
from q4run.models.rope import Rope

Q8_0, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
IQ2_XXS = gguf.GGMLQuantizationType.IQ2_XXS

# Layers with experts: (n_expert, n_ff, types of gate, up and down); a dense one is None.
Layers = Sequence[tuple[int, int, tuple[gguf.GGMLQuantizationType, ...]] | None]
# Layer 0: an expert's matrix is 6528 bytes, no whole number of pages. Layer 2: 24576 bytes, six
# pages. Layer 3 mixes types and has an odd number of rows.
LAYERS: Layers = (
    (6, 96, (Q8_0, Q8_0, Q8_0)),
    None,
    (6, 96, (F32, F32, F32)),
    (3, 101, (Q8_0, F32, F32)),
)


class Experts:
    """Two files of random bytes, and where the experts of MoE layers lie in them."""

    def __init__(
        self, folder: Path, alignment: int, layers: Layers = LAYERS, n_embd: int = 64
    ) -> None:
        self.alignment = alignment
        self.n_embd = n_embd
        self.paths = [folder / "part1", folder / "part2"]
        self.tensors: dict[str, TensorInfo] = {}
        sizes = [alignment, 3 * alignment]
        moes = []
        for i, layer in enumerate(layers):
            moes.append(layer and moe(layer[0], layer[1]))
            if layer:
                self._add_layer(i, *layer, 1 if i == 3 else 0, sizes)
        rng = np.random.default_rng(alignment)
        self.contents = {}
        for path, size in zip(self.paths, sizes, strict=True):
            self.contents[path] = rng.integers(0, 256, size).astype(np.uint8)
            path.write_bytes(self.contents[path].tobytes())
        self.config = made_up_config(moes, n_embd)
        self.layout = read_layout(self.file(), self.config)

    def _add_layer(self, layer, n_expert, n_ff, types, part, sizes) -> None:
        shapes = {"gate": (n_ff, self.n_embd), "up": (n_ff, self.n_embd)}
        shapes["down"] = (self.n_embd, n_ff)
        for (name, shape), kind in zip(shapes.items(), types, strict=True):
            block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
            n_bytes = n_expert * shape[0] * shape[1] // block_size * type_size
            full_name = f"blk.{layer}.ffn_{name}_exps.weight"
            self.tensors[full_name] = TensorInfo(
                full_name, (n_expert, *shape), kind, self.paths[part], sizes[part], n_bytes
            )
            # The last tensor ends with its file, as the last of a GGUF may.
            sizes[part] += n_bytes
            if (layer, name) not in ((2, "down"), (3, "down")):
                sizes[part] += -n_bytes % self.alignment

    def file(self) -> GGUFFile:
        size = sum(len(content) for content in self.contents.values())
        parts = tuple(self.paths)
        return GGUFFile(parts[0], parts, 3, self.alignment, size, Metadata({}), self.tensors)

    def rows(self, layer: int, expert: int, name: str) -> tuple[Format, np.ndarray]:
        """A matrix as it is in the file: its format, and uint8 (n_rows, row_bytes)."""
        tensor = self.tensors[f"blk.{layer}.ffn_{name}_exps.weight"]
        fmt = find_format(tensor.type)
        assert fmt is not None
        n_expert, n_rows, _ = tensor.shape
        n_bytes = tensor.n_bytes // n_expert
        begin = tensor.offset + expert * n_bytes
        return fmt, self.contents[tensor.path][begin : begin + n_bytes].reshape(n_rows, -1)

    def check(self, layer: int, expert: int, begin: int) -> None:
        """This expert is at that address, interleaved, with zeros after each matrix's last row."""
        assert begin != 0
        matrices = self.layout.layers[layer]
        for name, matrix in zip(("gate", "up", "down"), matrices, strict=True):
            address = begin + matrix.slot_offset
            fmt, rows = self.rows(layer, expert, name)
            padded = np.zeros((padded_rows(len(rows)), rows.shape[1]), np.uint8)
            padded[: len(rows)] = rows
            expected = np.empty_like(padded)
            interleave(fmt, padded, expected)
            assert address % 64 == 0
            np.testing.assert_array_equal(memory_at(address, expected.shape), expected)

    def expert_bytes(self, layer: int) -> int:
        """What an expert takes in the file."""
        return sum(matrix.n_bytes for matrix in self.layout.layers[layer])


def memory_at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes at an address, not copied."""
    n_bytes = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(int(address))).reshape(
        shape
    )


def moe(n_expert: int, n_ff: int = 96) -> parts.Experts:
    return parts.Experts(n_expert, 1, n_ff, Router())


def made_up_config(layers: list[parts.Experts | None], n_embd: int = 64) -> ModelConfig:
    attention = Attention(1, 1, 64, 64, Rope(64, 10000.0))
    return ModelConfig(
        architecture="llama",
        n_vocab=1,
        n_embd=n_embd,
        rms_norm_eps=1e-5,
        context_length=64,
        tied_embeddings=False,
        layers=tuple(Layer(attention, layer or DenseFeedForward(96)) for layer in layers),
    )


def fetch(experts: Experts, store: ExpertStore, layer: int, wanted: list[int]) -> list[list[int]]:
    """Requests experts, checks the bytes of each and returns them as they were handed out."""
    lists = []
    with store.request(layer, wanted) as request:
        for ready in request:
            for expert in ready:
                experts.check(layer, expert, store.addresses(layer)[expert])
            lists.append(ready)
    assert sorted(expert for ready in lists for expert in ready) == sorted(wanted)
    return lists
