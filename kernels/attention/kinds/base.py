"""What a kind of keys and values is: how a cache stores one head's key or value of one position.

A kind's file makes one instance of a subclass of ``KVKind``, its ``KIND``. Kernels take it beside
the array (see ``attention.rows``) and are compiled for each kind, whatever the array's dtype.
"""

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import NativeValue, models, overload, register_model, typeof_impl, unbox
from numba.np.numpy_support import as_dtype

from q4run.kernels.attention.kinds import find_kind


class KVKindType(types.Type):
    """The numba type of one kind: a kernel that takes a ``KVKind`` is compiled for each."""

    def __init__(self, kind: "KVKind") -> None:
        self.kind = kind
        super().__init__(name=f"KVKind({kind.name})")


register_model(KVKindType)(models.OpaqueModel)


class KVKind:
    """One kind. A cache of it is ``dtype`` (n_head_kv, capacity, row_length), C-contiguous.

    Behind the values of a head a row holds zeros, up to ``padded_dim`` values: whole vectors of 8.
    The static methods are compiled into kernels, where ``kind`` has no value; ``row`` counts the
    rows of all heads, ``row = head * capacity + position``.
    """

    dtype: np.dtype

    def __init__(self) -> None:
        self.name = type(self).__module__.rpartition(".")[2]
        self.numba_type = KVKindType(self)

    def __repr__(self) -> str:
        return f"<KVKind {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Numba tells cached kernels apart by the pickled types they were made for.
        return _find_or_none, (self.name,)

    def row_length(self, head_dim: int) -> int:
        """Returns how many elements of ``dtype`` a row of ``head_dim`` values takes."""
        raise NotImplementedError

    def row_bytes(self, head_dim: int) -> int:
        """Returns how many bytes a row of ``head_dim`` values takes."""
        return self.row_length(head_dim) * self.dtype.itemsize

    def has_overflowed(self, rows: np.ndarray) -> bool:
        """Returns whether a value was larger than this kind holds, in rows (..., row_length)."""
        return False

    @staticmethod
    def padded_dim(kind, array):
        """Returns how many values a row holds, the zeros behind the head included."""
        raise NotImplementedError

    @staticmethod
    def save_row(kind, values, source, n_values, array, row):
        """Writes flat float32 ``values[source : source + n_values]`` and zeros behind them."""
        raise NotImplementedError

    @staticmethod
    def rows_as_floats(kind, array, row, n_rows, scratch):
        """Returns a pointer to ``n_rows`` rows from ``row`` on, ``padded_dim`` float32 each.

        scratch: a float32 pointer with room for them. Float32 rows may be read where they are.
        """
        raise NotImplementedError


def _find_or_none(name: str) -> KVKind | None:
    """Returns the kind of that name; None where its file is gone since a kernel was compiled."""
    try:
        return find_kind(name)
    except KeyError:
        return None


def padded_dim(kind, array):
    """Is ``KVKind.padded_dim`` in kernels."""
    raise NotImplementedError


def save_row(kind, values, source, n_values, array, row):
    """Is ``KVKind.save_row`` in kernels."""
    raise NotImplementedError


def rows_as_floats(kind, array, row, n_rows, scratch):
    """Is ``KVKind.rows_as_floats`` in kernels."""
    raise NotImplementedError


@overload(padded_dim)
def _padded_dim(kind, array):
    return kind.kind.padded_dim if _fits(kind, array) else None


@overload(save_row)
def _save_row(kind, values, source, n_values, array, row):
    return kind.kind.save_row if _fits(kind, array) else None


@overload(rows_as_floats)
def _rows_as_floats(kind, array, row, n_rows, scratch):
    return kind.kind.rows_as_floats if _fits(kind, array) else None


def _fits(kind: types.Type, array: types.Type) -> bool:
    """Rows are counted flat: strides would be ignored silently."""
    return (
        isinstance(kind, KVKindType)
        and isinstance(array, types.Array)
        and array.layout == "C"
        and as_dtype(array.dtype) == kind.kind.dtype
    )


@typeof_impl.register(KVKind)
def _typeof_kind(value, context):
    return value.numba_type


@unbox(KVKindType)
def _unbox_kind(kind_type, value, context):
    return NativeValue(context.context.get_dummy_value())
