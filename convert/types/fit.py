"""The best type for each tensor within a size: what ``convert --fit`` chooses.

A group is the tensors of one use in one layer, which get one type. What a type costs a group is
measured: a sample of rows is quantised, and the squared error, relative to the rows' own squares,
is taken times the ``SENSITIVITY`` of the tensor's use, which for the embedding and the output
matrix counts as often as there are layers. For small errors the loss of a model grows with the sum
of these over all tensors (Malinovskii et al., Pushing the Limits of LLM Quantization via the
Linearity Theorem, arXiv:2411.17525). Every group begins with its smallest type; then the step that
saves most loss per byte is taken, again and again, while it fits.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from q4run.convert.tensors import OutputTensor, PlannedTensor
from q4run.convert.types.importance import Importance
from q4run.convert.types.recipe import HeaderBytes, first_that_fits, is_vector, named
from q4run.convert.types.sampling import relative_error, sample_rows
from q4run.errors import Error
from q4run.gguf_file.borders import padded
from q4run.kernels.formats import Format
from q4run.models.parts import Role
from q4run.sizes import format_size

CANDIDATES = ("f16", "q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q3_k", "q2_k", "q4_0", "iq4_nl")
# Where the routed experts are ternary already, these lose nothing.
EXPERT_CANDIDATES = (*CANDIDATES, "tq2_0", "tq1_0")
# Loss per relative squared error by the use of a tensor: of one in every layer, in units of
# attn_v's, and of what there is once, in as many as there are layers. Means over two models of 30
# and 22 M parameters (python -m q4run.bench.measure.sensitivity).
UNIT = "attn_v"
SENSITIVITY = {
    "attn_q": 0.4,
    "attn_k": 0.3,
    UNIT: 1.0,
    "attn_output": 0.65,
    "ffn_gate": 0.35,
    "ffn_up": 0.25,
    "ffn_down": 0.5,
    "token_embd": 1.0,
    "output": 2.0,
}
ONCE = ("token_embd", "output")
_NAME = re.compile(
    r"(?:blk\.(\d+)\.)?((attn|ffn|token_embd|output)[a-z_]*?)(_exps|_shexp)?\.weight"
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """What a type makes of a group: formats by tensor, bytes in the file, the loss expected."""

    formats: dict[str, Format]
    n_bytes: int
    loss: float


@dataclass(frozen=True)
class Fit:
    """Types such that the file is at most ``size`` bytes, for tensors that were measured.

    ``hulls``: of each group the choices worth making, from the smallest to the best.
    """

    size: int
    hulls: Sequence[Sequence[Choice]]

    @property
    def name(self) -> str:
        return "fit"

    def plan(
        self, tensors: Sequence[OutputTensor], header_bytes: HeaderBytes | None = None
    ) -> tuple[list[PlannedTensor], list[str]]:
        """The tensors with their types, and no notes; ``tensors`` as they were measured.

        Raises ``Error`` with the least that would do where nothing fits.
        """
        n_header = 0
        while True:
            planned = self._plan_beside(n_header, tensors)
            needed = header_bytes(planned) if header_bytes else 0
            if needed <= n_header:
                return planned, []
            n_header = needed

    def _plan_beside(self, n_header: int, tensors: Sequence[OutputTensor]) -> list[PlannedTensor]:
        """Plans with ``n_header`` bytes that are not for tensors."""
        formats = {tensor.name: named("f32") for tensor in tensors if is_vector(tensor)}
        room = self.size - n_header - _size(tensors, formats)
        for choice in _climb(self.hulls, room):
            formats |= choice.formats
            room -= choice.n_bytes
        _take_the_faster(tensors, formats, room)
        return [PlannedTensor(tensor, formats[tensor.name]) for tensor in tensors]


def measure_fit(
    size: int,
    tensors: Sequence[OutputTensor],
    importance: Mapping[str, Importance],
    progress: Progress | None = None,
) -> Fit:
    """Reads samples of all matrices and quantises them to every type, to fit ``size`` bytes.

    importance: by tensor name; the columns of a tensor without one count alike. progress is called
    with the groups done, and all of them.
    """
    groups = _groups(tensors)
    n_layers = len({match[1] for t in tensors if (match := _NAME.fullmatch(t.name))} - {None})
    hulls = []
    for done, group in enumerate(groups, 1):
        hulls.append(_hull(_choices(group, n_layers, importance)))
        if progress:
            progress(done, len(groups))
    return Fit(size, hulls)


def _take_the_faster(
    tensors: Sequence[OutputTensor], formats: dict[str, Format], room: int
) -> None:
    """TQ1_0 becomes TQ2_0, which holds the same values, while there is room."""
    for tensor in tensors:
        if formats[tensor.name].name == "tq1_0":
            faster = named("tq2_0")
            more = padded(PlannedTensor(tensor, faster).n_bytes) - _size([tensor], formats)
            if more <= room:
                formats[tensor.name] = faster
                room -= more


def _groups(tensors: Sequence[OutputTensor]) -> list[list[OutputTensor]]:
    groups: dict[tuple[str | None, ...], list[OutputTensor]] = {}
    for tensor in tensors:
        if not is_vector(tensor):
            match = _NAME.fullmatch(tensor.name)
            key = (match[1], match[3], match[4]) if match else (tensor.name,)
            groups.setdefault(key, []).append(tensor)
    return list(groups.values())


def _choices(
    group: list[OutputTensor], n_layers: int, importance: Mapping[str, Importance]
) -> list[Choice]:
    samples = {}
    for tensor in group:
        known = importance.get(tensor.name)
        samples[tensor.name] = sample_rows(tensor, None if known is None else known.columns)
    is_expert = all(tensor.role is Role.EXPERT for tensor in group)
    choices = []
    for name in EXPERT_CANDIDATES if is_expert else CANDIDATES:
        formats = {tensor.name: first_that_fits(name, tensor.n_cols) for tensor in group}
        loss = sum(
            _sensitivity(tensor, n_layers)
            * relative_error(formats[tensor.name], *samples[tensor.name])
            for tensor in group
        )
        choices.append(Choice(formats, _size(group, formats), loss))
    return choices


def _size(tensors: Sequence[OutputTensor], formats: Mapping[str, Format]) -> int:
    return sum(
        padded(PlannedTensor(tensor, formats[tensor.name]).n_bytes)
        for tensor in tensors
        if tensor.name in formats
    )


def _sensitivity(tensor: OutputTensor, n_layers: int) -> float:
    """Of this one tensor's error, in units of one layer's attn_v."""
    use = use_of(tensor)
    return SENSITIVITY.get(use, 1.0) * (n_layers if use in ONCE else 1)


def use_of(tensor: OutputTensor) -> str:
    """What `SENSITIVITY` calls the tensor; its experts' and shared experts' forms go together."""
    match = _NAME.fullmatch(tensor.name)
    return match[2] if match else tensor.name


def _hull(choices: list[Choice]) -> list[Choice]:
    """Those that no mixture of two others beats, from the smallest to the best."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.n_bytes, choice.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(smaller: Choice, larger: Choice) -> float:
    """The loss saved per byte."""
    return (smaller.loss - larger.loss) / (larger.n_bytes - smaller.n_bytes)


def _climb(hulls: Sequence[Sequence[Choice]], most_bytes: int) -> list[Choice]:
    chosen = [hull[0] for hull in hulls]
    used = sum(choice.n_bytes for choice in chosen)
    if used > most_bytes:
        raise Error(
            f"this model does not fit: its matrices take {format_size(used)} at least, and"
            f" {format_size(max(0, most_bytes))} are left for them; give a larger --fit"
        )
    steps = [(i, pair) for i, hull in enumerate(hulls) for pair in pairwise(hull)]
    # Within a group gains fall from step to step, so that this order never skips one.
    for i, (smaller, larger) in sorted(steps, key=lambda step: -_gain(*step[1])):
        more = larger.n_bytes - smaller.n_bytes
        if chosen[i] is smaller and used + more <= most_bytes:
            chosen[i] = larger
            used += more
    return chosen
