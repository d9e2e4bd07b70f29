"""Models of any size with random weights: for what depends on shapes and bytes, not on sense.

    python -m q4run.bench.synthetic scout-slice.gguf --layers 6

writes a slice of Llama 4 Scout's geometry in Q4_0; uniformly random weights route almost
uniformly, which is the worst case for a cache of experts.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

from q4run.kernels.formats import find_format_named
from q4run.kernels.formats.base import Format


@dataclass(frozen=True)
class Geometry:
    """A Llama 4 text model; the defaults are Scout's, but for its vocabulary and depth."""

    n_layers: int = 6
    n_embd: int = 5120
    n_head: int = 40
    n_head_kv: int = 8
    head_dim: int = 128
    n_ff: int = 8192
    n_expert: int = 16
    n_vocab: int = 4096


def write_model(path: Path, geometry: Geometry, type_name: str = "q4_0", seed: int = 0) -> None:
    """Writes a GGUF whose matrices are of ``type_name`` and whose values have unit-scale sums."""
    fmt = find_format_named(type_name)
    if fmt is None:
        raise ValueError(f"no such type: {type_name}")
    writer = gguf.GGUFWriter(path, "llama4")
    _add_metadata(writer, geometry)
    rng = np.random.default_rng(seed)
    tensors = _tensors(geometry)
    for name, shape in tensors.items():
        if len(shape) == 1 or "ffn_gate_inp" in name:
            n_bytes, raw_type = 4 * int(np.prod(shape)), gguf.GGMLQuantizationType.F32
        else:
            n_bytes, raw_type = int(np.prod(shape[:-1])) * fmt.row_bytes(shape[-1]), fmt.ggml_type
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    for name, shape in tensors.items():
        writer.write_padding(file, file.tell())
        if len(shape) == 1:
            file.write(np.ones(shape, np.float32).tobytes())
        elif "ffn_gate_inp" in name:
            router = rng.normal(size=shape) / shape[-1] ** 0.5
            file.write(router.astype(np.float32).tobytes())
        else:
            _write_in_slices(file, fmt, shape, rng)
    writer.write_padding(file, file.tell())
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, geometry: Geometry) -> None:
    writer.add_custom_alignment(4096)
    writer.add_block_count(geometry.n_layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(geometry.n_embd)
    writer.add_feed_forward_length(2 * geometry.n_ff)
    writer.add_expert_feed_forward_length(geometry.n_ff)
    writer.add_head_count(geometry.n_head)
    writer.add_head_count_kv(geometry.n_head_kv)
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim)
    writer.add_rope_dimension_count(geometry.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(geometry.n_expert)
    writer.add_expert_used_count(1)
    writer.add_interleave_moe_layer_step(1)
    writer.add_vocab_size(geometry.n_vocab)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"▁{number}" for number in range(geometry.n_vocab - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *words])
    writer.add_token_scores([0.0] * geometry.n_vocab)
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_token_types([*types, *[gguf.TokenType.NORMAL] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    g = geometry
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (g.n_vocab, g.n_embd)}
    for i in range(g.n_layers):
        layer = {
            "attn_norm": (g.n_embd,),
            "attn_q": (g.n_head * g.head_dim, g.n_embd),
            "attn_k": (g.n_head_kv * g.head_dim, g.n_embd),
            "attn_v": (g.n_head_kv * g.head_dim, g.n_embd),
            "attn_output": (g.n_embd, g.n_head * g.head_dim),
            "ffn_norm": (g.n_embd,),
            "ffn_gate_inp": (g.n_expert, g.n_embd),
            "ffn_gate_exps": (g.n_expert, g.n_ff, g.n_embd),
            "ffn_up_exps": (g.n_expert, g.n_ff, g.n_embd),
            "ffn_down_exps": (g.n_expert, g.n_embd, g.n_ff),
            "ffn_gate_shexp": (g.n_ff, g.n_embd),
            "ffn_up_shexp": (g.n_ff, g.n_embd),
            "ffn_down_shexp": (g.n_embd, g.n_ff),
        }
        tensors |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return tensors | {"output_norm.weight": (g.n_embd,), "output.weight": (g.n_vocab, g.n_embd)}


def _write_in_slices(
    file: BinaryIO, fmt: Format, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Writes a matrix 1024 rows at a time; each slice permutes the rows of one quantised sample."""
    sample = rng.normal(size=(1024, shape[-1])).astype(np.float32) / shape[-1] ** 0.5
    raw = fmt.quantize(sample)
    n_rows = int(np.prod(shape[:-1]))
    for first in range(0, n_rows, 1024):
        file.write(raw[rng.permutation(1024)][: n_rows - first].tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    geometry = Geometry(n_layers=arguments.layers)
    write_model(arguments.out, geometry, arguments.type, arguments.seed)


if __name__ == "__main__":
    main()
