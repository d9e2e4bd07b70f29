"""Models of real geometry with random weights: for what depends on shapes and bytes, not on sense.

    python -m q4run.bench.models.synthetic scout-slice.gguf --geometry scout --layers 6 --type q4_0

The weights are random blocks of the type asked for, written as they are: no quantiser runs, and
the disk sets the pace. Embeddings have unit size, matrices keep the size of their input, and those
that write to the residual stream add little to it, so that tokens stay apart and are routed almost
uniformly, which is the worst case for a cache of experts. Loads in llama.cpp (which wants at least
four layers of a Llama 4 model).
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import MODEL_TENSOR as T
from gguf.gguf_writer import GGUFValue

from q4run.bench.models.geometries import GEOMETRIES
from q4run.bench.models.random_blocks import TYPES, find_type, random_blocks
from q4run.convert.output.header import Entry, make_header
from q4run.convert.types.recipe import ALWAYS_F32
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.gguf_file.borders import in_file_order, padded
from q4run.gguf_file.described import tensor_bytes
from q4run.models.parts import Role, Tensor
from q4run.models.shapes import Geometry, hyperparameters, tensors_of

__all__ = ["GEOMETRIES", "Geometry", "write_model"]

# So many values are made at most; a longer tensor repeats them, each time from another block on.
_POOL_VALUES = 1 << 21
_RESIDUAL_WRITERS = {T.ATTN_OUT, T.FFN_DOWN, T.FFN_DOWN_SHEXP, T.FFN_DOWN_EXP}
_N_FIXED_TOKENS = 3 + 256
_METADATA_TYPES = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
}


def write_model(
    path: Path,
    geometry: Geometry,
    type_name: str = "q4_0",
    seed: int = 0,
    *,
    expert_type: str | None = None,
    vocab: Path | None = None,
) -> None:
    """Writes a GGUF file; the same arguments give the same bytes.

    type_name: lower-case GGUF type of the matrices (``random_blocks.TYPES``); expert_type: another
    for the routed experts. Router and norms are f32. vocab: a GGUF whose tokenizer is copied and
    sets ``n_vocab``; else one is made up. Raises Error where a type is unknown or does not divide
    a matrix's rows; no file is left then.
    """
    tokenizer = _copied_tokenizer(vocab) if vocab else _made_up_tokenizer(geometry.n_vocab)
    if vocab:
        n_tokens = len(tokenizer[gguf.Keys.Tokenizer.LIST].value)
        geometry = replace(geometry, n_vocab=n_tokens)
    types = _types(geometry, type_name, expert_type or type_name)
    sizes = {tensor: _n_bytes(tensor, types[tensor]) for tensor in types}
    tensors = in_file_order(types, lambda tensor: sizes[tensor])
    entries = [Entry(t.name, t.shape, sizes[t], find_type(types[t])) for t in tensors]
    values = _hyperparameters(geometry) | tokenizer
    n_largest = max(math.prod(tensor.shape) for tensor in tensors)
    weights = _Weights(geometry.n_layers, min(_POOL_VALUES, n_largest), seed)
    try:
        with path.open("wb") as file:
            file.write(make_header(geometry.architecture, values, entries))
            for tensor in tensors:
                weights.write(file, tensor, types[tensor])
                file.write(bytes(padded(sizes[tensor]) - sizes[tensor]))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _types(geometry: Geometry, dense: str, experts: str) -> dict[Tensor, str]:
    """Each tensor's type, by the model's order."""
    by_role = dict.fromkeys(ALWAYS_F32, "f32") | {Role.EXPERT: experts}
    return {tensor: by_role.get(tensor.role, dense) for tensor in tensors_of(geometry)}


def _n_bytes(tensor: Tensor, type_name: str) -> int:
    return tensor_bytes(tensor.name, tensor.shape, find_type(type_name))


class _Weights:
    """Random weights for tensors, each after its purpose."""

    def __init__(self, n_layers: int, n_pool: int, seed: int) -> None:
        """n_pool: how many random values of each type and size to make."""
        self._n_pool = n_pool
        self._rng = np.random.default_rng(seed)
        # As GPT-2 initialises: all updates together are about as large as what they add to.
        self._residual_scale = (2 * n_layers) ** -0.5
        self._pools: dict[tuple[str, float], memoryview] = {}

    def write(self, file: BinaryIO, tensor: Tensor, type_name: str) -> None:
        if len(tensor.shape) == 1:
            value = 0 if tensor.role is Role.BIAS else 1
            file.write(np.full(tensor.shape, value, np.float32).tobytes())
            return
        std = 1.0 if tensor.role is Role.EMBEDDING else tensor.shape[-1] ** -0.5
        if tensor.kind in _RESIDUAL_WRITERS:
            std *= self._residual_scale
        pool = self._pool(type_name, std)
        n_left = _n_bytes(tensor, type_name)
        block_bytes = gguf.GGML_QUANT_SIZES[find_type(type_name)][1]
        while n_left:
            begin = int(self._rng.integers(len(pool) // block_bytes)) * block_bytes
            n_left -= file.write(pool[begin:][:n_left])
            n_left -= file.write(pool[:begin][:n_left])

    def _pool(self, type_name: str, std: float) -> memoryview:
        if (type_name, std) not in self._pools:
            n_blocks = self._n_pool // gguf.GGML_QUANT_SIZES[find_type(type_name)][0]
            blocks = random_blocks(type_name, n_blocks, std, self._rng)
            self._pools[type_name, std] = blocks.reshape(-1).data
        return self._pools[type_name, std]


def _hyperparameters(geometry: Geometry) -> dict[str, GGUFValue]:
    return {
        f"{geometry.architecture}.{key}": GGUFValue(value, _METADATA_TYPES[type(value)])
        for key, value in hyperparameters(geometry).items()
    }


def _made_up_tokenizer(n_vocab: int) -> dict[str, GGUFValue]:
    """A SentencePiece vocabulary: three control tokens, the bytes, and numbers for words."""
    if n_vocab < _N_FIXED_TOKENS:
        raise Error(
            f"a vocabulary of {n_vocab} tokens is too small: give {_N_FIXED_TOKENS} or more"
        )
    array, kinds = gguf.GGUFValueType.ARRAY, gguf.TokenType
    n_words = n_vocab - _N_FIXED_TOKENS
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"▁{number}" for number in range(n_words)]
    types = [kinds.UNKNOWN, *[kinds.CONTROL] * 2, *[kinds.BYTE] * 256, *[kinds.NORMAL] * n_words]
    keys = gguf.Keys.Tokenizer
    return {
        keys.MODEL: GGUFValue("llama", gguf.GGUFValueType.STRING),
        keys.LIST: GGUFValue(tokens, array, gguf.GGUFValueType.STRING),
        keys.SCORES: GGUFValue([0.0] * n_vocab, array, gguf.GGUFValueType.FLOAT32),
        keys.TOKEN_TYPE: GGUFValue(types, array, gguf.GGUFValueType.INT32),
        keys.BOS_ID: GGUFValue(1, gguf.GGUFValueType.UINT32),
        keys.EOS_ID: GGUFValue(2, gguf.GGUFValueType.UINT32),
    }


def _copied_tokenizer(path: Path) -> dict[str, GGUFValue]:
    """The tokenizer of another GGUF file. Raises FormatError where it has none."""
    file = open_gguf(path)
    if not file.get_array(gguf.Keys.Tokenizer.LIST, str):
        raise Error(f"{path}: the vocabulary is empty")
    copied: dict[str, GGUFValue] = {}
    for key in file.metadata:
        if not key.startswith("tokenizer."):
            continue
        value, array = file.metadata[key], file.metadata.array(key)
        if array is None:
            copied[key] = GGUFValue(_as_bytes(value), _METADATA_TYPES[type(value)])
        elif array.count:  # gguf writes no empty arrays
            elements = [_as_bytes(element) for element in value]
            copied[key] = GGUFValue(elements, gguf.GGUFValueType.ARRAY, array.element_type)
    return copied


def _as_bytes(value: Any) -> Any:
    """Text as its bytes in the file, which need not be UTF-8; anything else as it is."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="scout")
    parser.add_argument("--layers", type=_positive, metavar="N", help="12 of small-scout, else 6")
    parser.add_argument("--type", default="q4_0", metavar="T", help=", ".join(TYPES))
    parser.add_argument("--expert-type", metavar="T", help="another type for the routed experts")
    parser.add_argument("--vocab", type=Path, metavar="FILE", help="a GGUF to copy a tokenizer of")
    parser.add_argument("--vocab-size", type=_positive, metavar="N", help="tokens to make up")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    geometry = GEOMETRIES[arguments.geometry]
    geometry = replace(
        geometry,
        n_layers=arguments.layers or geometry.n_layers,
        n_vocab=arguments.vocab_size or geometry.n_vocab,
    )
    try:
        write_model(
            arguments.out,
            geometry,
            arguments.type,
            arguments.seed,
            expert_type=arguments.expert_type,
            vocab=arguments.vocab,
        )
    except (Error, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)


if __name__ == "__main__":
    main()
