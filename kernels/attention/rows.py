"""The rows of a KV cache: an array, and the kind that says what it holds."""

import numpy as np
from numba import typeof
from numba.core import cgutils, types
from numba.extending import NativeValue, make_attribute_wrapper, models, register_model, unbox

from q4run.kernels.attention.kinds.base import KVKind, padded_dim, save_row
from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.simd.memory import u8_pointer

NO_WINDOW = 1 << 62


class KVRows:
    """Keys, or values: an array (n_head_kv, capacity, row), as ``kind`` describes it.

    Has a numba type of its own, found once: numba would look at a tuple with a kind in it anew, and
    slowly, at every call. For the same reason it is an argument by itself, in no tuple.
    """

    def __init__(self, kind: KVKind, array: np.ndarray) -> None:
        self.kind = kind
        self.array = array
        self._numba_type_ = KVRowsType(kind.numba_type, typeof(array))


class KVRowsType(types.Type):
    """The numba type of ``KVRows``."""

    def __init__(self, kind: types.Type, array: types.Type) -> None:
        self.kind, self.array = kind, array
        super().__init__(name=f"KVRows({kind}, {array})")


@register_model(KVRowsType)
class _KVRowsModel(models.StructModel):
    def __init__(self, manager, rows):
        super().__init__(manager, rows, [("kind", rows.kind), ("array", rows.array)])


make_attribute_wrapper(KVRowsType, "kind", "kind")
make_attribute_wrapper(KVRowsType, "array", "array")


@unbox(KVRowsType)
def _unbox_rows(rows_type, value, context):
    rows = cgutils.create_struct_proxy(rows_type)(context.context, context.builder)
    attribute = context.pyapi.object_getattr_string(value, "array")
    array = context.unbox(rows_type.array, attribute)
    context.pyapi.decref(attribute)
    rows.kind, rows.array = context.context.get_dummy_value(), array.value
    return NativeValue(rows._getvalue(), is_error=array.is_error, cleanup=array.cleanup)


@inline
def values_of_row(cache):
    """Returns how many values a row of the cache holds, the zeros behind the head included."""
    return padded_dim(cache.kind, cache.array)


@inline
def rows_ahead(array, row, first, end, n_rows):
    """Returns where up to ``n_rows`` rows begin, and their bytes.

    They are those from ``row + first`` on and before ``row + end``.
    """
    n_bytes = array.itemsize * array.shape[2]
    n_rows = max(0, min(n_rows, end - first))
    return u8_pointer(array.ctypes.data + (row + first) * n_bytes), n_rows * n_bytes


@kernel()
def write_cache(rows, cache, first, window):
    """Puts the keys or values of new tokens at positions ``first``, ``first + 1``, ... of a cache.

    rows: float32 (n_tokens, n_head_kv, head_dim), C-contiguous; cache: ``KVRows``. With a window,
    tokens past the last row go on at the first; ``NO_WINDOW`` allows none. Raises ValueError for
    tokens or heads that the cache has no room for.
    """
    n_tokens, n_head_kv, head_dim = rows.shape
    n_heads, capacity = cache.array.shape[:2]
    n_rows = n_tokens if window < NO_WINDOW else first + n_tokens
    if n_head_kv > n_heads or n_rows > capacity or head_dim > values_of_row(cache):
        raise ValueError("more tokens or larger heads than the cache has room for")
    flat = rows.ravel()
    for token in range(n_tokens):
        for head in range(n_head_kv):
            source = (token * n_head_kv + head) * head_dim
            row = head * capacity + (first + token) % capacity
            save_row(cache.kind, flat, source, head_dim, cache.array, row)
