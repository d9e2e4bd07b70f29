"""What a checkpoint calls its tensors, by gguf's own table of names."""

from collections import defaultdict

import gguf

from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import Tensor

# The names of `transformers`, among those of other programs.
_OURS = ("model.", "lm_head")


class SourceNames:
    """The names in one checkpoint of tensors that are declared by their GGUF names."""

    def __init__(self, checkpoint: Checkpoint, architecture: str, n_layer: int) -> None:
        self._checkpoint = checkpoint
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        self._names: dict[str, list[str]] = defaultdict(list)
        for name, (_, gguf_name) in gguf.get_tensor_name_map(arch, n_layer).mapping.items():
            if name.startswith(_OURS):
                self._names[f"{gguf_name}.weight"].append(f"{name}.weight")

    def of(self, tensor: Tensor) -> str:
        """Returns the name that the checkpoint has; where it has none, the likeliest one."""
        names = self._names[tensor.name]
        stored = (name for name in names if self._checkpoint.has(name))
        beside = (name for name in names if self._has_module_of(name))
        return next(stored, None) or next(beside, names[0])

    def _has_module_of(self, name: str) -> bool:
        module = name.removesuffix(".weight").rpartition(".")[0]
        return any(stored.startswith(f"{module}.") for stored in self._checkpoint.tensors)
