"""All parameters in flat arrays: what is trained, what is computed with, and gradients.

Flat, so that processes can share them and a checkpoint is a few arrays.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from q4run.bench.tiny_llama4.model import ModelConfig
from q4run.bench.tiny_llama4.ops import Weight
from q4run.bench.tiny_llama4.ternary import ternarize


def is_ternary(name: str) -> bool:
    """Whether a parameter is the routed experts'."""
    return ".experts." in name


def is_float32(name: str) -> bool:
    """Norms and routers are computed with as they are trained."""
    return name.endswith(("norm", "router"))


@dataclass
class Parameters:
    """`trained` float32 and `computed` (the type of the matrix products), both (parameters,)."""

    config: ModelConfig
    trained: Tensor
    computed: Tensor

    @classmethod
    def random(cls, config: ModelConfig, dtype: torch.dtype, seed: int) -> "Parameters":
        """Initial values: normal; what is added to the residual stream begins small."""
        generator = torch.Generator().manual_seed(seed)
        n = sum(math.prod(shape) for shape in config.shapes().values())
        result = cls(config, torch.empty(n), torch.empty(n, dtype=dtype))
        for name, values in result.views(result.trained).items():
            if name.endswith("norm"):
                values.fill_(1.0)
            elif name.endswith(("embedding", "router")):
                values.normal_(0.0, 0.02, generator=generator)
            else:
                std = values.shape[-1] ** -0.5
                if name.endswith((".o", ".down")):
                    std /= math.sqrt(2 * config.n_layer)
                values.normal_(0.0, std, generator=generator)
        result.refresh()
        return result

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters of a flat array by name."""
        shapes = self.config.shapes()
        parts = flat.split([math.prod(shape) for shape in shapes.values()])
        return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}

    def weights(self, grads: Tensor) -> dict[str, Weight]:
        """What `model.forward` takes; gradients are added to `grads` (parameters,) float32."""
        trained, computed = self.views(self.trained), self.views(self.computed)
        return {
            name: Weight(trained[name] if is_float32(name) else computed[name], grad)
            for name, grad in self.views(grads).items()
        }

    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Makes what is computed with from what is trained: of `names`, or of all."""
        trained, computed = self.views(self.trained), self.views(self.computed)
        for name in names if names is not None else trained:
            if is_ternary(name):
                ternarize(trained[name], computed[name])
            else:
                computed[name].copy_(trained[name])
