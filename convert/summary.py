"""What a conversion did, or would do: figures for people and for ``--json``."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from q4run.convert.notes import planning_notes
from q4run.convert.plan import ConversionPlan
from q4run.convert.tensors import PlannedTensor
from q4run.models.parts import Role


@dataclass(frozen=True)
class TypeCount:
    """The tensors of one use and one type: how many, their values, the bytes those take."""

    use: str
    type: str
    n_tensors: int
    n_values: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.n_values


@dataclass(frozen=True)
class Summary:
    """One conversion. Sizes in bytes, of whole files; ``seconds`` is 0 for a dry run."""

    architecture: str
    outputs: list[Path]
    written: bool
    counts: list[TypeCount]
    size_before: int
    size_after: int
    seconds: float
    notes: list[str]

    @property
    def n_tensors(self) -> int:
        return sum(count.n_tensors for count in self.counts)

    @property
    def n_values(self) -> int:
        return sum(count.n_values for count in self.counts)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(count.n_bytes for count in self.counts) / self.n_values

    @property
    def expert_bytes(self) -> int:
        """What the routed experts take: the part that need not be in RAM."""
        return sum(count.n_bytes for count in self.counts if count.use == Role.EXPERT.value)

    @property
    def dense_bytes(self) -> int:
        """What all else takes."""
        return sum(count.n_bytes for count in self.counts) - self.expert_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {
            "outputs": [str(path) for path in self.outputs],
            "n_tensors": self.n_tensors,
            "n_values": self.n_values,
            "bits_per_weight": self.bits_per_weight,
            "dense_bytes": self.dense_bytes,
            "expert_bytes": self.expert_bytes,
        }


def summarize(plan: ConversionPlan) -> Summary:
    """What the plan would make, and what to tell about it. Reads samples of a few tensors."""
    return Summary(
        architecture=plan.source.architecture,
        outputs=[part.path for part in plan.parts],
        written=False,
        counts=count_types(plan.tensors),
        size_before=plan.source.n_bytes,
        size_after=sum(part.n_bytes for part in plan.parts),
        seconds=0.0,
        notes=planning_notes(plan),
    )


def count_types(tensors: Sequence[PlannedTensor]) -> list[TypeCount]:
    """The tensors by use and type, in the order of `Role`."""
    groups: dict[tuple[Role, str], list[PlannedTensor]] = defaultdict(list)
    for planned in tensors:
        groups[planned.tensor.role, planned.fmt.name].append(planned)
    order = list(Role)
    return [
        TypeCount(
            use=role.value,
            type=name,
            n_tensors=len(group),
            n_values=sum(planned.tensor.n_values for planned in group),
            n_bytes=sum(planned.n_bytes for planned in group),
        )
        for (role, name), group in sorted(
            groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        )
    ]
