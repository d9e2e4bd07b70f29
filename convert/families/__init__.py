"""Which family a checkpoint belongs to, by the architecture its ``config.json`` names.

A family is one function: checkpoint in, `Plan` out. To add one, write its file here and enter it
in `FAMILIES`.
"""

from collections.abc import Callable

from q4run.convert.families.decoder import Plan
from q4run.convert.families.llama import plan_llama
from q4run.convert.families.llama4 import plan_llama4
from q4run.convert.families.mixtral import plan_mixtral
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError

__all__ = ["FAMILIES", "Plan", "plan_checkpoint"]

FAMILIES: dict[str, Callable[[Checkpoint], Plan]] = {
    "Llama4ForCausalLM": plan_llama4,
    "Llama4ForConditionalGeneration": plan_llama4,
    "LlamaForCausalLM": plan_llama,
    "MistralForCausalLM": plan_llama,
    "MixtralForCausalLM": plan_mixtral,
}


def plan_checkpoint(checkpoint: Checkpoint) -> Plan:
    """What the checkpoint becomes.

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
