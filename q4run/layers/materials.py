"""What the parts of layers are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from q4run.experts.store import ExpertStore
from q4run.layers.workspace import Workspace
from q4run.models.config import ModelConfig
from q4run.weights import WeightReader

if TYPE_CHECKING:
    from q4run.layers.experts import MixtureOfExperts


class Materials(NamedTuple):
    """``following``: the next experts that a pass comes to; None behind the last."""

    weights: WeightReader
    config: ModelConfig
    store: ExpertStore
    workspace: Workspace
    following: MixtureOfExperts | None = None
