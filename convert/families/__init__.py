"""Which family a checkpoint belongs to, by the architecture its ``config.json`` names.

A file of this folder that names ``ARCHITECTURES`` is a family; its ``plan`` makes of a checkpoint
of theirs a `Plan`. `decoder` has what all decoders share, `names` what checkpoints call a tensor.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from q4run.convert.families.decoder import Plan
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError

__all__ = ["FAMILIES", "Plan", "plan_checkpoint"]


def _find_families() -> dict[str, Callable[[Checkpoint], Plan]]:
    modules = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    names = {name: m.plan for m in modules for name in getattr(m, "ARCHITECTURES", ())}
    return dict(sorted(names.items()))


FAMILIES = _find_families()


def plan_checkpoint(checkpoint: Checkpoint) -> Plan:
    """Tells what the checkpoint becomes.

    Raises ``UnsupportedError`` for an architecture or feature that is not known, ``FormatError``
    where configuration and tensors contradict each other.
    """
    names = checkpoint.config.items("architectures", str) or []
    if not names:
        raise UnsupportedError(f"{checkpoint.config.where}: names no architecture")
    family = FAMILIES.get(names[0])
    if family is None:
        raise UnsupportedError(
            f"{checkpoint.config.where}: the architecture '{names[0][:80]}' is not supported "
            f"(known: {', '.join(FAMILIES)})"
        )
    return family(checkpoint)
