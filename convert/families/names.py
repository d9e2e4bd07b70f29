"""What a checkpoint calls its tensors, by gguf's own table of names."""

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

import gguf
from gguf import MODEL_TENSOR

from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import OutputTensor, ReadRows, rows_of
from q4run.models.parts import BIAS, WEIGHT, Tensor

# The names of `transformers`, among those of other programs.
_OURS = ("model.", "lm_head")
# What follows such a name; parameters that are no module's have nothing or `_bias` behind theirs.
_ENDS = {WEIGHT: (".weight", ""), BIAS: (".bias", "_bias")}

# Architectures that gguf has no table for, and one whose tensors are called the same.
_NAMED_LIKE = {"hy_v3": "dots1"}
NO_MORE: Mapping[MODEL_TENSOR, str] = MappingProxyType({})


class SourceNames:
    """The names in one checkpoint of tensors that are declared by their GGUF names."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        architecture: str,
        n_layer: int,
        more: Mapping[MODEL_TENSOR, str] = NO_MORE,
    ) -> None:
        """more: names that gguf's table does not have, ``{bid}`` for the layer's number."""
        self._checkpoint = checkpoint
        architecture = _NAMED_LIKE.get(architecture, architecture)
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        self._names: dict[str, list[str]] = defaultdict(list)
        for name, (_, gguf_name) in gguf.get_tensor_name_map(arch, n_layer).mapping.items():
            if name.startswith(_OURS):
                self._names[gguf_name].append(name)
        for kind, name in more.items():
            for layer in range(n_layer):
                gguf_name = gguf.TENSOR_NAMES[kind].format(bid=layer)
                self._names[gguf_name].append(name.format(bid=layer))

    def of(self, tensor: Tensor) -> str:
        """Returns the name that the checkpoint has; where it has none, the likeliest one."""
        modules = self._names[tensor.name.removesuffix(f".{tensor.suffix}")]
        names = [f"{module}{end}" for end in _ENDS[tensor.suffix] for module in modules]
        stored = (name for name in names if self._checkpoint.has(name))
        beside = (f"{module}.{tensor.suffix}" for module in modules if self._is_beside(module))
        return next(stored, None) or next(beside, names[0])

    def _is_beside(self, module: str) -> bool:
        """Tells whether the checkpoint has anything where this module would be."""
        folder = module.rpartition(".")[0]
        return any(stored.startswith(f"{folder}.") for stored in self._checkpoint.tensors)


def stored(checkpoint: Checkpoint, tensor: Tensor, names: SourceNames) -> OutputTensor:
    """Claims what the checkpoint stores for a declared tensor, row by row.

    A vector may be stored as a matrix of one row.
    """
    name, shape = names.of(tensor), tensor.shape
    if len(shape) == 1 and name in checkpoint.tensors:
        one_row = (1, *shape)
        shape = one_row if checkpoint.tensors[name].shape == one_row else shape
    return output_tensor(tensor, rows_of(checkpoint.claim(name, shape)))


def output_tensor(tensor: Tensor, read: ReadRows, *, whole: bool = False) -> OutputTensor:
    """Makes a declared tensor one to be written, with what reads its rows."""
    return OutputTensor(tensor.name, tensor.shape, tensor.role, read, whole=whole)
