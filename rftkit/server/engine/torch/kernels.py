"""Loops that numba compiles for a CPU: what torch computes in several operators, in one pass.

Each takes and gives bfloat16, which numba does not know: its bits are read as integers. Numbers are
float32 inside, and rounded where torch's own operators would round them. A loop goes over rows and
computes each by itself, so the number of threads changes no result. Not here: tensors, and when
these loops are taken (`passes.py`).

numba compiles a loop when it is first needed, which takes about half a second, and keeps it for the
next process, beside this file or in the user's cache folder. It brings its own compiler.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

__all__ = ["start_threads"]

NUM_ARGUMENTS = 20  # numbers of a task: the next stretch, the rows, those of a stretch, and others
F32, U16, I64 = types.float32, types.uint16, types.int64
TASK = types.CPointer(types.int64)
FAST = {"contract", "reassoc", "nsz", "arcp"}  # sums in vectors; no number is assumed to be finite
inline = numba.njit(inline="always", error_model="numpy")
LEAST_NUMBERS = 2**14  # in a loop that is worth waking other threads
CHUNKS = 4  # of a thread: one that is held up leaves its rows to the others


class Kernel:
    """A loop over rows. Its arguments are addresses and sizes, as 64-bit integers."""

    def __init__(self, loop: Callable[..., None]) -> None:
        self._loop = loop

    def __call__(self, rows: int, each: int, threads: int, *numbers: int) -> None:
        """Compute `rows` rows of about `each` numbers."""
        alone = threads == 1 or rows * each < LEAST_NUMBERS
        share = rows if alone else -(-rows // (threads * CHUNKS))
        task = (ctypes.c_int64 * NUM_ARGUMENTS)(0, rows, share, *numbers)
        if alone:
            self._entry(task)
        else:
            start_threads()(self._address, task, threads, 0)

    @functools.cached_property
    def _address(self) -> int:
        options = {"nopython": True, "fastmath": FAST, "error_model": "numpy"}
        try:
            compiled = numba.cfunc(types.void(TASK), cache=True, **options)(self._loop)
        except RuntimeError:  # there is no folder in which numba may write
            compiled = numba.cfunc(types.void(TASK), **options)(self._loop)
        self._compiled = compiled  # the address is valid as long as this exists
        return int(compiled.address)

    @functools.cached_property
    def _entry(self) -> Any:
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address)


@functools.cache
def start_threads() -> Any:
    """OpenMP's function that runs another in several threads, those in which torch computes; None
    where there is no such function.
    """
    start = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
    if start is not None:
        start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        start.restype = None
    return start


@intrinsic
def _next(_context: Any, _task: Any) -> Any:
    """Which stretch of rows is next: counts up, for all threads together."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(TASK), generate


@intrinsic
def _at(_context: Any, _address: Any, dtype: Any) -> Any:
    """The address of an array of a dtype as a pointer."""
    pointer = types.CPointer(dtype.dtype)

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, dtype), generate


# numba would compute with 64-bit integers below, half as many in a vector.
SHORT, INT, FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic
def wide(_context: Any, _bits: Any) -> Any:
    """A bfloat16 number as float32, whose upper sixteen bits it is."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.shl(builder.zext(args[0], INT), ir.Constant(INT, 16))
        return builder.bitcast(bits, FLOAT)

    return types.float32(types.uint16), generate


@intrinsic
def narrow(_context: Any, _number: Any) -> Any:
    """The bits of a number rounded to bfloat16, to the nearest, ties to even; NaN stays NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        sixteen = ir.Constant(INT, 16)
        bits = builder.bitcast(args[0], INT)
        odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(INT, 1))
        bits = builder.add(builder.add(bits, odd), ir.Constant(INT, 0x7FFF))
        rounded = builder.trunc(builder.lshr(bits, sixteen), SHORT)
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.select(is_nan, ir.Constant(SHORT, 0x7FC0), rounded)

    return types.uint16(types.float32), generate


def _turned(builder: Any, bits: Any) -> Any:
    """Turn over all bits of a negative number but its sign: integers are then in the order of the
    numbers. Its own inverse.
    """
    sign = builder.ashr(bits, ir.Constant(INT, 31))
    return builder.xor(bits, builder.and_(sign, ir.Constant(INT, 0x7FFFFFFF)))


@intrinsic
def larger(_context: Any, _key: Any, _number: Any) -> Any:
    """The larger of a key and that of a number. The largest integer of many takes one instruction
    a vector, the largest number several, because of NaN. Here NaN is above all numbers.
    """

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        key = _turned(builder, builder.bitcast(args[1], INT))
        return builder.select(builder.icmp_signed(">", args[0], key), args[0], key)

    return types.int32(types.int32, types.float32), generate


@intrinsic
def number_of(_context: Any, _key: Any) -> Any:
    """The number of a key of `larger`."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(_turned(builder, args[0]), FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def power_of_two(_context: Any, _exponent: Any) -> Any:
    """2ⁿ of a whole number n (float32) from -126 to 127."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        exponent = builder.add(builder.fptosi(args[0], INT), ir.Constant(INT, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(INT, 23)), FLOAT)

    return types.float32(types.float32), generate


ENDLESS = 2**48  # numbers of an array whose size does not matter, since nothing checks it
LEAST_KEY = np.int32(-(2**31))


@inline
def rounded(number: Any) -> Any:
    """A number rounded to bfloat16, as float32."""
    return wide(narrow(number))


@inline
def exp(x: Any) -> Any:
    """Exp, 0 below -87; Cephes' expf: 2ⁿ times a polynomial of what is left."""
    least, most = np.float32(-87.0), np.float32(88.0)
    bound = least if x < least else x
    bound = most if bound > most else bound
    n = np.floor(bound * np.float32(1.44269504) + np.float32(0.5))
    r = bound - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return np.float32(0) if x < least else p * power_of_two(n)


@numba.njit(error_model="numpy")
def rows_of(task: Any) -> Any:
    """The rows that this thread computes: one stretch of them after another, until none is left."""
    t = carray(task, (NUM_ARGUMENTS,))
    rows, share = t[1], t[2]
    start = _next(task) * share
    while start < rows:
        for row in range(start, min(rows, start + share)):  # noqa: UP028, unknown to numba
            yield row
        start = _next(task) * share


# A task of each loop has the number of rows, how many of them a thread takes at a time, and what is
# the loop's own: addresses and sizes.


@Kernel
def add(task: Any) -> None:
    """Add a change to x (N, W) float32."""
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width = t[1], t[5]
    x, change = carray(_at(t[3], F32), (rows, width)), carray(_at(t[4], U16), (rows, width))
    for n in rows_of(task):
        for i in range(width):
            x[n, i] += wide(change[n, i])


@Kernel
def copy(task: Any) -> None:
    """Write rows (N, W) into wider ones, and zeros after them."""
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width, stride = t[1], t[5], t[6]
    x, out = carray(_at(t[3], U16), (rows, width)), carray(_at(t[4], U16), (rows, stride))
    for n in rows_of(task):
        for i in range(width):
            out[n, i] = x[n, i]
        for i in range(width, stride):
            out[n, i] = 0


@Kernel
def norm(task: Any) -> None:
    """Write x / rms(x) · weight of x (N, W) float32, and zeros after it up to the end of a row.

    Where there is a change, it is added to x before. Where there is a place for them, so are
    x / rms (N, W) and 1 / rms (N,) float32.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width, stride = t[1], t[10], t[11]
    x, change = carray(_at(t[3], F32), (rows, width)), carray(_at(t[4], U16), (rows, width))
    weight, epsilon = carray(_at(t[5], U16), (width,)), carray(_at(t[6], F32), (1,))[0]
    out, unit = carray(_at(t[7], U16), (rows, stride)), carray(_at(t[8], U16), (rows, width))
    inverse = carray(_at(t[9], F32), (rows,))
    for n in rows_of(task):
        if t[4] != 0:
            for i in range(width):
                x[n, i] += wide(change[n, i])
        squares = np.float32(0)
        for i in range(width):
            squares += x[n, i] * x[n, i]
        scale = np.float32(1) / np.sqrt(epsilon + squares / np.float32(width))
        for i in range(width):
            out[n, i] = narrow(rounded(x[n, i] * scale) * wide(weight[i]))
        for i in range(width, stride):
            out[n, i] = 0
        if t[8] != 0:
            for i in range(width):
                unit[n, i] = narrow(x[n, i] * scale)
            inverse[n] = scale


@Kernel
def norm_gradient(task: Any) -> None:
    """Add (g − u · mean(g · u)) / rms to the gradient of x (N, W) float32, with g = grad · weight
    and u = x / rms; and write the sum rounded.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width = t[1], t[9]
    into, grad = carray(_at(t[3], F32), (rows, width)), carray(_at(t[4], U16), (rows, width))
    weight, unit = carray(_at(t[5], U16), (width,)), carray(_at(t[6], U16), (rows, width))
    inverse, out = carray(_at(t[7], F32), (rows,)), carray(_at(t[8], U16), (rows, width))
    for n in rows_of(task):
        inner = np.float32(0)
        for i in range(width):
            inner += wide(grad[n, i]) * wide(weight[i]) * wide(unit[n, i])
        inner /= np.float32(width)
        scale = inverse[n]
        for i in range(width):
            g = wide(grad[n, i]) * wide(weight[i])
            into[n, i] += (g - wide(unit[n, i]) * inner) * scale
            out[n, i] = narrow(into[n, i])


@Kernel
def gate(task: Any) -> None:
    """Write silu(gate) · up of rows gate | up (N, 2 F), and zeros after it up to a row's end.

    With `keep`, the derivatives by gate and by up take the place of gate and up.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width, stride, keep = t[1], t[5], t[6], t[7]
    both, out = carray(_at(t[3], U16), (rows, 2 * width)), carray(_at(t[4], U16), (rows, stride))
    one = np.float32(1)
    for n in rows_of(task):
        for i in range(width):
            g, up = wide(both[n, i]), wide(both[n, width + i])
            s = one / (one + exp(-g))
            active = narrow(g * s)
            out[n, i] = narrow(wide(active) * up)
            if keep != 0:
                both[n, i] = narrow(up * s * (one + g * (one - s)))
                both[n, width + i] = active
        for i in range(width, stride):
            out[n, i] = 0


@Kernel
def gate_gradient(task: Any) -> None:
    """Multiply both halves of rows (N, 2 F) by those of a gradient (N, F), in place."""
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width = t[1], t[5]
    grad, both = carray(_at(t[3], U16), (rows, width)), carray(_at(t[4], U16), (rows, 2, width))
    for n in rows_of(task):
        for half in range(2):
            for i in range(width):
                both[n, half, i] = narrow(wide(grad[n, i]) * wide(both[n, half, i]))


@inline
def turn(
    x: Any, n: Any, h: Any, cos: Any, sin: Any, half: Any, sign: Any, out: Any, row: Any, at: Any
) -> None:
    """Write head h of row n into a row of `out`, its pairs (i, i + D/2) turned by their angles."""
    first = h * 2 * half
    second = first + half
    for i in range(half):
        a, b = wide(x[n, first + i]), wide(x[n, second + i])
        out[row, at + i] = narrow(
            rounded(a * wide(cos[n, h, 0, i])) + sign * b * wide(sin[n, h, 0, i])
        )
        out[row, at + half + i] = narrow(
            rounded(b * wide(cos[n, h, 1, i])) + sign * a * wide(sin[n, h, 1, i])
        )


@Kernel
def rotate(task: Any) -> None:
    """Turn pairs (i, i + D/2) of each head (N, H, D) by their angles; `sign` is that of the sines.

    Rows of x and of the result may have gaps between them.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    rows, x_stride, stride, heads, half = t[1], t[7], t[8], t[9], t[10]
    sign = np.float32(t[11])
    x, out = carray(_at(t[3], U16), (rows, x_stride)), carray(_at(t[4], U16), (rows, stride))
    cos = carray(_at(t[5], U16), (rows, heads, 2, half))
    sin = carray(_at(t[6], U16), (rows, heads, 2, half))
    for n in rows_of(task):
        for h in range(heads):
            turn(x, n, h, cos, sin, half, sign, out, n, h * 2 * half)


@Kernel
def place(task: Any) -> None:
    """Rotate queries and keys of rows (R, H + K, D), and put them where attention of blocks takes
    them, with v (R, K, D).

    Queries are (B, K, S·rep, D), lines of keys and values (B, K, T, D), written from `first` on.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    cells, slots, first, room = t[1], t[11], t[12], t[13]
    heads, rep, half, num = t[14], t[15], t[16], t[19]
    size, blocks, turned = 2 * half, cells // slots, heads * (rep + 1)
    x, v = carray(_at(t[3], U16), (num, t[17])), carray(_at(t[4], U16), (num, t[18]))
    cos = carray(_at(t[5], U16), (num, turned, 2, half))
    sin = carray(_at(t[6], U16), (num, turned, 2, half))
    row_of = carray(_at(t[7], I64), (cells,))
    queries = carray(_at(t[8], U16), (blocks * heads * slots * rep, size))
    keys = carray(_at(t[9], U16), (blocks * heads * room, size))
    values = carray(_at(t[10], U16), (blocks * heads * room, size))
    for cell in rows_of(task):
        row, block = row_of[cell], cell // slots
        slot = cell - block * slots
        for h in range(heads):
            line = (block * heads + h) * slots * rep + slot * rep
            for r in range(rep):
                turn(x, row, h * rep + r, cos, sin, half, np.float32(1), queries, line + r, 0)
            line = (block * heads + h) * room + first + slot
            turn(x, row, heads * rep + h, cos, sin, half, np.float32(1), keys, line, 0)
            for i in range(size):
                values[line, i] = v[row, h * size + i]


@Kernel
def collect(task: Any) -> None:
    """Take rows (R, K·rep·D) from what attention of blocks gave, (B, K, S·rep, D) with strides, and
    write zeros after them up to the end of a row.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    rows, slots, heads, rep, size = t[1], t[6], t[7], t[8], t[9]
    of_block, of_head, of_query, stride = t[10], t[11], t[12], t[13]
    attended = carray(_at(t[3], U16), (ENDLESS,))
    cell_of, out = carray(_at(t[4], I64), (rows,)), carray(_at(t[5], U16), (rows, stride))
    for row in rows_of(task):
        block = cell_of[row] // slots
        slot = cell_of[row] - block * slots
        for h in range(heads):
            for r in range(rep):
                source = block * of_block + h * of_head + (slot * rep + r) * of_query
                target = (h * rep + r) * size
                for i in range(size):
                    out[row, target + i] = attended[source + i]
        for i in range(heads * rep * size, stride):
            out[row, i] = 0


@inline
def cell_of(cell: Any, head: Any, groups: Any, steps: Any, heads: Any, rep: Any) -> Any:
    """Where query head k·rep + r of cell (b, g, t) is among (B, K, G, rep, T)."""
    row, step = cell // steps, cell % steps
    block, group = row // groups, row % groups
    k, r = head // rep, head % rep
    return (((block * heads + k) * groups + group) * rep + r) * steps + step


@Kernel
def gather(task: Any) -> None:
    """Take tokens of a line (N, K, rep, D) with strides into (B, K, G, rep, T, D), cell by cell.

    A cell (b, g, t) whose place is -1 is filled with zeros.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    cells, of_row, of_head, of_query = t[1], t[6], t[7], t[8]
    groups, steps, heads, rep, size = t[9], t[10], t[11], t[12], t[13]
    line, row_of = carray(_at(t[3], U16), (ENDLESS,)), carray(_at(t[4], I64), (cells,))
    out = carray(_at(t[5], U16), (cells * heads * rep, size))
    for cell in rows_of(task):
        row = row_of[cell]
        for head in range(heads * rep):
            to = cell_of(cell, head, groups, steps, heads, rep)
            if row >= 0:
                source = row * of_row + head // rep * of_head + head % rep * of_query
                for i in range(size):
                    out[to, i] = line[source + i]
            else:
                for i in range(size):
                    out[to, i] = 0


@Kernel
def scatter(task: Any) -> None:
    """Write (B, K, G, rep, T, D) to where `gather` takes it from; a place of -1 is left out."""
    t = carray(task, (NUM_ARGUMENTS,))
    cells, of_row, of_head, of_query = t[1], t[6], t[7], t[8]
    groups, steps, heads, rep, size = t[9], t[10], t[11], t[12], t[13]
    line, row_of = carray(_at(t[3], U16), (ENDLESS,)), carray(_at(t[4], I64), (cells,))
    given = carray(_at(t[5], U16), (cells * heads * rep, size))
    for cell in rows_of(task):
        row = row_of[cell]
        if row >= 0:
            for head in range(heads * rep):
                source = cell_of(cell, head, groups, steps, heads, rep)
                to = row * of_row + head // rep * of_head + head % rep * of_query
                for i in range(size):
                    line[to + i] = given[source, i]


@Kernel
def softmax(task: Any) -> None:
    """Softmax of each row in place; what is not among its first keys is hidden from it.

    Rows have one part (N, W) or two, (N, W) and (N, V), with one softmax over both. Row n sees
    `limits[n // each]` keys of the first part, or all of it, and n mod T more than `seen` keys of
    the last part.
    """
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width, more, each, steps, seen = t[1], t[6], t[7], t[8], t[9], t[10]
    first, second = carray(_at(t[3], U16), (rows, width)), carray(_at(t[4], U16), (rows, more))
    limits = carray(_at(t[5], I64), (rows,))
    numbers = np.empty(width + more, np.float32)
    for n in rows_of(task):
        a, b = width, seen + n % steps
        if t[5] != 0:
            a = limits[n // each]
        if more == 0:
            a, b = b, 0
        key = LEAST_KEY
        for i in range(a):
            key = larger(key, wide(first[n, i]))
        for i in range(b):
            key = larger(key, wide(second[n, i]))
        largest = number_of(key)
        total = np.float32(0)
        for i in range(a):
            numbers[i] = exp(wide(first[n, i]) - largest)
            total += numbers[i]
        for i in range(b):
            numbers[width + i] = exp(wide(second[n, i]) - largest)
            total += numbers[width + i]
        scale = np.float32(1) / total
        for i in range(a):
            first[n, i] = narrow(numbers[i] * scale)
        for i in range(a, width):
            first[n, i] = 0
        for i in range(b):
            second[n, i] = narrow(numbers[width + i] * scale)
        for i in range(b, more):
            second[n, i] = 0


@Kernel
def softmax_gradient(task: Any) -> None:
    """Write w · (g − Σ g · w) over g, in rows of one part or two, as in `softmax`."""
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width, more = t[1], t[7], t[8]
    g1, w1 = carray(_at(t[3], U16), (rows, width)), carray(_at(t[4], U16), (rows, width))
    g2, w2 = carray(_at(t[5], U16), (rows, more)), carray(_at(t[6], U16), (rows, more))
    for n in rows_of(task):
        inner = np.float32(0)
        for i in range(width):
            inner += wide(g1[n, i]) * wide(w1[n, i])
        for i in range(more):
            inner += wide(g2[n, i]) * wide(w2[n, i])
        for i in range(width):
            g1[n, i] = narrow(wide(w1[n, i]) * (wide(g1[n, i]) - inner))
        for i in range(more):
            g2[n, i] = narrow(wide(w2[n, i]) * (wide(g2[n, i]) - inner))


@Kernel
def exponentials(task: Any) -> None:
    """Write exp(x − max) of rows (N, V) float32, as bfloat16; the maxima and the sums, (N,)."""
    t = carray(task, (NUM_ARGUMENTS,))
    rows, width = t[1], t[7]
    x, out = carray(_at(t[3], F32), (rows, width)), carray(_at(t[4], U16), (rows, width))
    largest, totals = carray(_at(t[5], F32), (rows,)), carray(_at(t[6], F32), (rows,))
    for n in rows_of(task):
        key = LEAST_KEY
        for i in range(width):
            key = larger(key, x[n, i])
        most = number_of(key)
        total = np.float32(0)
        for i in range(width):
            number = exp(x[n, i] - most)
            total += number
            out[n, i] = narrow(number)
        largest[n], totals[n] = most, total
