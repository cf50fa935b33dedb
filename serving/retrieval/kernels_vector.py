# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload"
# mypy: disable-error-code="operator, no-untyped-call"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""What the kernels of the search for the largest inner products share: vector code, heaps, masks.

Inner products are bit for bit the same wherever they are computed: `dot` fixes the order of its sum, with
vector instructions spelled out, because a compiler that chooses the order itself chooses another one in
another loop. LLVM's vectors are those of no machine: what has narrower ones does the same in more steps.

numba's disk cache watches only the file of the kernel called. So every file whose kernels use this one holds
this one's digest, and a test compares: whoever changes this file has to touch those too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "CHUNK",
    "CODE_STEP",
    "above",
    "dot",
    "dot_integers",
    "kernel",
    "lowest_bit",
    "offer",
    "ones",
    "prefetch",
]
__all__ += ["servable", "sort_best_first"]

CHUNK = 64
"""Values compared at once, one bit of a word each."""
CODE_STEP = 5.0 / 127.0
"""Mean magnitudes of a residual that one step of its codes stands for: they end at four standard
deviations."""
_LANES = 16

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """numba.njit without the interpreter lock, cached on disk; division by zero gives inf instead of
    raising."""
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba.extending.intrinsic: the function gives a signature and what writes LLVM's code for it."""
    return cast(Callable[..., Any], intrinsic(function))


def _data(context: Any, builder: Any, array_type: Any, array: Any, start: Any) -> Any:
    """Address of element `start` of a C-contiguous array, counted over all its axes."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [start])


def _vector(builder: Any, address: Any, kind: Any, lanes: int, align: int) -> Any:
    vector = builder.bitcast(address, ir.VectorType(kind, lanes).as_pointer())
    loaded = builder.load(vector)
    loaded.align = align
    return loaded


def _folded(builder: Any, vector: Any) -> Any:
    """Sum of a vector's lanes: halves added to halves."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        half = [ir.Constant(ir.IntType(32), i + lanes) for i in range(lanes)]
        upper = ir.Constant(ir.VectorType(ir.IntType(32), lanes), half)
        rest = [ir.Constant(ir.IntType(32), i) for i in range(lanes)]
        lower = ir.Constant(ir.VectorType(ir.IntType(32), lanes), rest)
        none = ir.Constant(vector.type, ir.Undefined)
        add = builder.fadd if isinstance(vector.type.element, ir.FloatType) else builder.add
        vector = add(builder.shuffle_vector(vector, none, lower), builder.shuffle_vector(vector, none, upper))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _widened(builder: Any, value: Any) -> Any:
    """A float32 as it is, an integer as 32 bits."""
    kind = value.type.element if isinstance(value.type, ir.VectorType) else value.type
    if isinstance(kind, ir.FloatType):
        return value
    wide = ir.IntType(32)
    return builder.sext(value, ir.VectorType(wide, _LANES) if kind is not value.type else wide)


def _added(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """total + x y, rounded once."""
    if isinstance(x.type, ir.VectorType) and isinstance(x.type.element, ir.FloatType):
        kind = ir.FunctionType(x.type, (x.type, x.type, x.type))
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{_LANES}f32")
        return builder.call(fused, (x, y, total))
    if isinstance(x.type, ir.FloatType):
        return builder.fma(x, y, total)
    return builder.add(total, builder.mul(x, y))


def _dot_product(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Instructions of Σ_j a[a_start + j] b[b_start + j]: _LANES sums, folded, then the rest in order."""
    pair = ((signature.args[0], args[0], args[1]), (signature.args[2], args[2], args[3]))
    left, right = (_data(context, builder, *one) for one in pair)
    length, kind = args[4], context.get_value_type(signature.return_type)

    def element(base: Any, at: Any) -> Any:
        return _widened(builder, builder.load(builder.gep(base, [at])))

    def lanes(base: Any, at: Any) -> Any:
        address = builder.gep(base, [at])
        align = context.get_abi_alignment(address.type.pointee)
        return _widened(builder, _vector(builder, address, address.type.pointee, _LANES, align))

    sums = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(kind, _LANES), [0] * _LANES))
    whole = builder.udiv(length, length.type(_LANES))
    with cgutils.for_range(builder, whole) as loop:
        at = builder.mul(loop.index, length.type(_LANES))
        builder.store(_added(builder, builder.load(sums), lanes(left, at), lanes(right, at)), sums)
    total = cgutils.alloca_once_value(builder, _folded(builder, builder.load(sums)))
    with cgutils.for_range(builder, length, start=builder.mul(whole, length.type(_LANES))) as loop:
        x, y = element(left, loop.index), element(right, loop.index)
        builder.store(_added(builder, builder.load(total), x, y), total)
    return builder.load(total)


@instruction
def dot(typing: Any, a: Any, a_start: Any, b: Any, b_start: Any, length: Any) -> Any:
    """Σ_j a[a_start + j] b[b_start + j] over `length` float32 of C-contiguous arrays of any shape."""
    return types.float32(a, types.intp, b, types.intp, types.intp), _dot_product


@instruction
def dot_integers(typing: Any, a: Any, a_start: Any, b: Any, b_start: Any, length: Any) -> Any:
    """The same over integers of 8 and 16 bits, summed in 32."""
    return types.int32(a, types.intp, b, types.intp, types.intp), _dot_product


@instruction
def prefetch(typing: Any, values: Any, start: Any) -> Any:
    """Have element `start` of an array brought to the cache: nothing waits for it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _data(context, builder, signature.args[0], args[0], args[1])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), (byte, number, number, number))
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, (builder.bitcast(address, byte), number(0), number(3), number(1)))
        return context.get_dummy_value()

    return types.none(values, types.intp), code


@instruction
def above(typing: Any, values: Any, start: Any, thresholds: Any) -> Any:
    """Bit j of the result: values[start + j] >= thresholds[j], for CHUNK float32 values."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left = _data(context, builder, signature.args[0], args[0], args[1])
        right = _data(context, builder, signature.args[2], args[2], args[1].type(0))
        found, wanted = (_vector(builder, address, ir.FloatType(), CHUNK, 4) for address in (left, right))
        return builder.bitcast(builder.fcmp_ordered(">=", found, wanted), ir.IntType(CHUNK))

    return types.uint64(values, types.intp, thresholds), code


@instruction
def ones(typing: Any, word: Any) -> Any:
    """Number of bits set."""
    return types.uint64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])


@instruction
def lowest_bit(typing: Any, word: Any) -> Any:
    """Number of the lowest bit set; the word must not be 0."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), code


@kernel
def _is_better(score: float, row: int, other_score: float, other_row: int) -> bool:
    return score > other_score or (score == other_score and row < other_row)


@kernel
def _sink(scores: Floats, rows: Ints, size: int, score: float, row: int) -> None:
    """Replace the top (the worst) of a heap by (score, row)."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and _is_better(scores[child], rows[child], scores[child + 1], rows[child + 1]):
            child += 1
        if not _is_better(score, row, scores[child], rows[child]):
            break
        scores[parent], rows[parent] = scores[child], rows[child]
        parent = child
    scores[parent], rows[parent] = score, row


@kernel
def offer(scores: Floats, rows: Ints, size: int, score: float, row: int) -> int:
    """Offer (score, row) to a heap of the best len(rows); returns its size. Equal scores: lower row wins."""
    if size < rows.shape[0]:
        child = size
        while child > 0:
            parent = (child - 1) // 2
            if not _is_better(scores[parent], rows[parent], score, row):
                break
            scores[child], rows[child] = scores[parent], rows[parent]
            child = parent
        scores[child], rows[child] = score, row
        return size + 1
    if _is_better(score, row, scores[0], rows[0]):
        _sink(scores, rows, size, score, row)
    return size


@kernel
def sort_best_first(scores: Floats, rows: Ints, size: int) -> None:
    """Sort a heap best first; what it lacks is row -1 with score -inf."""
    for last in range(size - 1, 0, -1):
        score, row = scores[last], rows[last]
        scores[last], rows[last] = scores[0], rows[0]
        _sink(scores, rows, last, score, row)
    scores[size:], rows[size:] = -np.inf, -1


@kernel
def _contains(ascending: Ints, row: int) -> bool:
    low, high = 0, ascending.shape[0]
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low < ascending.shape[0] and ascending[low] == row


@kernel
def servable(row: int, mask: Bools, excluded: Ints) -> bool:
    if mask.shape[0] > 0 and (row >= mask.shape[0] or not mask[row]):
        return False
    return not _contains(excluded, row)
