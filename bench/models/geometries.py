"""Slices of known models: their shapes, but few layers and words, so that they can be measured."""

from dataclasses import replace

from q4run.models.published import GEOMETRIES as _WHOLE
from q4run.models.shapes import Geometry

_N_LAYERS, _N_VOCAB = 6, 4096


def _slice(name: str) -> Geometry:
    whole = _WHOLE[name]
    if whole.architecture != "llama4":
        return replace(whole, n_layers=_N_LAYERS)
    return replace(whole, n_layers=_N_LAYERS, n_vocab=_N_VOCAB)


GEOMETRIES = {name: _slice(name) for name in _WHOLE if name != "small-scout"} | {
    "small-scout": _WHOLE["small-scout"]
}
