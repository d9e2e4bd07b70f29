"""Which layers rotate, in families where every n-th knows no positions."""

from q4run.convert.config import Config
from q4run.errors import FormatError
from q4run.models.nope import INTERVAL, default_rope_layers


def read_rope_layers(config: Config, n_layer: int) -> list[int]:
    """Returns 1 for each layer with RoPE, 0 for one without, as ``no_rope_layers`` (sic) has it.

    Raises FormatError where the list has too few entries.
    """
    layers = config.items("no_rope_layers", int)
    if layers is None:
        return default_rope_layers(n_layer, config.integer("no_rope_layer_interval", INTERVAL))
    if len(layers) < n_layer:
        raise FormatError(
            f"{config.where}: no_rope_layers has {len(layers)} entries for {n_layer} layers"
        )
    return [int(layer != 0) for layer in layers[:n_layer]]
