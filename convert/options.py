"""What a person asks of a conversion, checked before anything is opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q4run.convert.types.recipe import Recipe, make_recipe
from q4run.errors import Error
from q4run.text.pre_tokenizers import check_name


@dataclass(frozen=True)
class ConversionOptions:
    """How to convert; each has a default but for the types, of which ``fit`` is another way.

    ``type`` is for the always-used matrices and, unless ``expert_type`` is given, for the routed
    experts; router, norms and vectors are f32. ``recipe`` names a pair of types (`RECIPES`);
    ``tensor_types`` are pairs of a pattern and the type of the tensors in whose names it is found.
    ``fit`` in bytes chooses the types instead, so that the file is at most that large. ``imatrix``:
    an importance matrix of this model, made by q4run or llama.cpp, that says which columns matter.
    ``calibrate``: a UTF-8 text of which up to ``calibrate_chunks`` windows run through the model
    meanwhile, so that what some weights lose in rounding others make up for. ``split_max_size`` in
    bytes makes several files.

    ``max_ram`` bounds the memory of the whole process, in bytes (default: what it holds now and a
    quarter of what is free). ``threads`` quantise (default: one per core); their number changes no
    byte of the result. ``dry_run`` plans and writes nothing, whatever memory there is. ``force``
    replaces an existing output. ``resume`` keeps what is finished when the conversion is
    interrupted, even by a crash, and goes on from there when called again with the same source and
    options. ``pre`` names the pre-tokenizer to write, one of ``PRE_TOKENIZERS``, in place of what
    the source says.

    Raises ``Error`` for types that are missing or beside ``fit``, and for a pattern or a
    pre-tokenizer that is none; ``UnsupportedError`` for a type or recipe that is not known.
    """

    type: str | None = None
    expert_type: str | None = None
    recipe: str | None = None
    tensor_types: Sequence[tuple[str, str]] = ()
    fit: int | None = None
    imatrix: str | Path | None = None
    calibrate: str | Path | None = None
    calibrate_chunks: int | None = None
    split_max_size: int | None = None
    max_ram: int | None = None
    threads: int | None = None
    dry_run: bool = False
    force: bool = False
    resume: bool = False
    pre: str | None = None

    def __post_init__(self) -> None:
        if self.pre is not None:
            check_name(self.pre)
        if self.fit is None:
            self.make_recipe()
        elif self.type or self.expert_type or self.recipe or self.tensor_types:
            raise Error("a size to fit into chooses the types: give either types or the size")

    def make_recipe(self) -> Recipe:
        """The types that are asked for, where no size is."""
        return make_recipe(self.type, self.expert_type, self.recipe, self.tensor_types)
