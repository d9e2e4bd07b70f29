"""What a token takes: bytes of weights by type, experts by layer, keys and values, operations."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from q4run.cache.keys_values import cache_bytes
from q4run.experts.layout import ExpertLayout
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.kernels.formats import find_format
from q4run.kernels.products.strips import padded_rows
from q4run.models.config import ModelConfig
from q4run.models.names import role_of
from q4run.models.parts import Role


@dataclass(frozen=True)
class Experts:
    """The routed experts of one layer; sizes of one of them by type, in RAM and in the file."""

    n_expert: int
    n_used: int
    ram_bytes: Mapping[str, int]
    file_bytes: int
    n_weights: Mapping[str, int]
    meanwhile: Mapping[str, int]  # the shared expert's bytes: computed while experts are read


@dataclass(frozen=True)
class Work:
    """A model's work. Types are those of the file, sizes those in RAM.

    dense: bytes that every decoded token is multiplied with; prompt_weights: weights that every
    token of a prompt is (the head only sees the last); n_bytes: of the file.
    """

    config: ModelConfig
    kv_type: str
    dense: Mapping[str, int]
    prompt_weights: Mapping[str, int]
    experts: tuple[Experts, ...]
    file_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Of weights that a decoded token is multiplied with, wherever they come from."""
        routed = sum(layer.n_used * sum(layer.ram_bytes.values()) for layer in self.experts)
        return sum(self.dense.values()) + routed

    @property
    def cold_bytes(self) -> int:
        """What a token reads from disk when none of its experts is in RAM."""
        return sum(layer.n_used * layer.file_bytes for layer in self.experts)

    def kv_bytes(self, length: int) -> int:
        """Keys and values that a token sees behind so many others."""
        return cache_bytes(self.config, max(1, length), self.kv_type)

    def attention_operations(self, length: int) -> int:
        """Of all queries of a prompt of so many tokens with the keys and values before them."""
        parts = (layer.attention for layer in self.config.layers)
        return sum(2 * (a.q_width + a.attended_width) * a.n_pairs(length) for a in parts)

    def main_types(self, share: float = 0.01) -> list[str]:
        """The types that hold at least this share of a token's weights, most bytes first."""
        by_type = Counter(self.dense)
        for layer in self.experts:
            by_type.update({name: layer.n_used * n for name, n in layer.ram_bytes.items()})
        least = share * by_type.total()
        return [name for name, n_bytes in by_type.most_common() if n_bytes >= least]


def count_work(file: GGUFFile, config: ModelConfig, layout: ExpertLayout, kv_type: str) -> Work:
    """Counts; reads nothing but the directory of tensors."""
    dense: Counter[str] = Counter()
    prompt: Counter[str] = Counter()
    for name, tensor in file.tensors.items():
        if not config.is_resident(name) or find_format(tensor.type) is None:
            continue
        if len(tensor.shape) < 2 or role_of(name, len(tensor.shape)) is Role.BIAS:
            continue
        kind = tensor.type.name.lower()
        dense[kind] += _ram_bytes(tensor)
        if name != config.head.matrix(config.n_embd).name:
            prompt[kind] += tensor.n_elements
    experts = []
    for i, matrices in layout.layers.items():
        part = config.experts[i]
        shared: Counter[str] = Counter()
        for declared in part.shared.tensors(config.n_embd, i) if part.shared else ():
            tensor = file.tensor(declared.name)
            shared[tensor.type.name.lower()] += _ram_bytes(tensor)
        ram_bytes: Counter[str] = Counter()
        n_weights: Counter[str] = Counter()
        for matrix in matrices:
            ram_bytes[matrix.fmt.name] += matrix.slot_bytes
            n_weights[matrix.fmt.name] += matrix.n_rows * matrix.n_cols
        file_bytes = sum(matrix.n_bytes for matrix in matrices)
        experts.append(
            Experts(part.n_expert, part.n_expert_used, ram_bytes, file_bytes, n_weights, shared)
        )
    return Work(config, kv_type, dense, prompt, tuple(experts), file.size)


def _ram_bytes(tensor: TensorInfo) -> int:
    fmt = find_format(tensor.type)
    assert fmt is not None
    n_rows = tensor.n_elements // tensor.shape[-1]
    return fmt.in_ram.row_bytes(tensor.shape[-1]) * padded_rows(n_rows)
