"""The state of a training run in one file, replaced whole or not at all."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from q4run.bench.tiny_llama4.model import ModelConfig
from q4run.bench.tiny_llama4.parameters import Parameters

# What a training's output folder holds.
CHECKPOINT, LOG, PIDS, TOKENIZER = "checkpoint.pt", "log.jsonl", "pids", "tokenizer.json"


@dataclass
class TrainingState:
    """After `step` steps: the parameters and the optimizer's two moments (parameters,) float32."""

    parameters: Parameters
    first: Tensor
    second: Tensor
    step: int = 0

    @classmethod
    def new(cls, config: ModelConfig, dtype: torch.dtype, seed: int) -> "TrainingState":
        """The state before the first step."""
        parameters = Parameters.random(config, dtype, seed)
        trained = parameters.trained
        return cls(parameters, torch.zeros_like(trained), torch.zeros_like(trained))

    def share(self) -> None:
        """Moves all tensors to memory that processes forked from here share."""
        for tensor in (self.parameters.trained, self.parameters.computed, self.first, self.second):
            tensor.share_memory_()


def save_checkpoint(state: TrainingState, run: dict[str, Any], path: Path) -> None:
    """`run` is what the run was started with, compared when it goes on."""
    content = {
        "model": asdict(state.parameters.config),
        "run": run,
        "step": state.step,
        "trained": state.parameters.trained,
        "first": state.first,
        "second": state.second,
    }
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path, dtype: torch.dtype) -> tuple[TrainingState, dict[str, Any]]:
    """(state, run); what is computed with, in `dtype`, is made anew from what is trained."""
    content = torch.load(path, weights_only=True)
    config = ModelConfig(**content["model"])
    trained = content["trained"]
    parameters = Parameters(config, trained, torch.empty(len(trained), dtype=dtype))
    parameters.refresh()
    state = TrainingState(parameters, content["first"], content["second"], content["step"])
    return state, content["run"]
