"""What the layers of `stack.py` compute element by element, each in one pass over memory.

On a CPU in bfloat16 a pass is one compiled loop (`kernels.py`), elsewhere a few of torch's
operators, with the same roundings. Products of matrices are not here.

Many passes fill a block's *room*: rows of inputs (N, in + ranks), of which the last columns are for
x Aᵀ and become zeros (`lora.Block.room`).
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch.nn.functional import silu

__all__ = [
    "add",
    "collect",
    "compiler",
    "copy",
    "exponentials",
    "gate",
    "gate_gradient",
    "gather",
    "has_kernels",
    "norm",
    "norm_gradient",
    "place",
    "rotate",
    "scatter",
    "softmax",
    "softmax_gradient",
    "unit_norm",
]

CACHED_ROWS = 256  # float32 states that a processor's cache holds a few times


@functools.cache
def _loops() -> Any:
    """The module of kernels; None without numba, or where these cannot use torch's threads."""
    # numba obeys a .numba_config.yaml in the current folder, which may be anybody's, and would
    # unpickle what is in the `cache_dir` named there. The environment goes before that file.
    os.environ.setdefault("NUMBA_CACHE_DIR", "")
    try:
        from rftkit.server.engine.torch import kernels
    except ImportError:
        return None
    return kernels if kernels.start_threads() is not None else None


def has_kernels(x: torch.Tensor) -> bool:
    """Whether passes over such numbers are compiled loops."""
    return x.dtype == torch.bfloat16 and x.is_cpu and _loops() is not None


def compiler(x: torch.Tensor) -> str | None:
    """What compiles the passes over such numbers; None: they are torch's operators."""
    return f"numba {_loops().numba.__version__}" if has_kernels(x) else None


def _run(kernel: str, rows: int, each: int, *arguments: torch.Tensor | int | None) -> None:
    """Run a kernel over rows of `each` numbers; a tensor is given as its address, None as 0."""
    numbers = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            assert argument.stride(-1) == 1, "a kernel sees addresses only"
            argument = argument.data_ptr()
        numbers.append(argument or 0)
    getattr(_loops(), kernel)(rows, each, torch.get_num_threads(), *numbers)


def add(x: torch.Tensor, change: torch.Tensor) -> None:
    """Add a change to x (N, W), float32 because adding in bfloat16 would lose small changes."""
    if has_kernels(change) and x.is_contiguous() and change.is_contiguous():
        _run("add", *x.shape, x, change, x.shape[1])
    else:
        x.add_(change)


def copy(x: torch.Tensor, room: torch.Tensor) -> None:
    """Fill a room with inputs (N, in)."""
    width = x.shape[1]
    if has_kernels(x) and x.is_contiguous():
        _run("copy", *x.shape, x, room, width, room.shape[1])
    else:
        room[:, :width] = x
        room[:, width:] = 0


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    epsilon: torch.Tensor,
    room: torch.Tensor,
    *,
    change: torch.Tensor | None = None,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Fill a room with x / rms(x) · weight, where x (N, W) is float32; the change is added before.

    Returns:
        x / rms in the weight's dtype and 1 / rms, which backward needs, with `keep`.
    """
    width = x.shape[1]
    if has_kernels(room) and weight.dtype == room.dtype and x.is_contiguous():
        kept = None
        if keep:
            kept = torch.empty_like(x, dtype=weight.dtype), x.new_empty(len(x), 1)
        unit, inverse = kept or (None, None)
        _run(
            "norm", *x.shape, x, change, weight, epsilon, room, unit, inverse, width, room.shape[1]
        )
        return kept
    if change is not None:
        x.add_(change)
    room[:, width:] = 0
    return unit_norm(x, weight, epsilon, room[:, :width])


def unit_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: torch.Tensor, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill `out` with x / rms(x) · weight over the last axis; return x / rms and 1 / rms."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = torch.addcmul(epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
    unit = (wide * inverse).to(weight.dtype)
    torch.mul(unit, weight, out=out)
    return unit, inverse


def norm_gradient(
    into: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    unit: torch.Tensor,
    inverse: torch.Tensor,
) -> torch.Tensor:
    """Add to the gradient of x, (…, W) float32, what comes through a norm; return it in the
    dtype of `grad`.

    With u = x / rms and g = grad · weight, it is (g − u · mean(g · u)) / rms.
    """
    if has_kernels(grad) and grad.dim() == 2 and into.is_contiguous() and grad.is_contiguous():
        narrow = torch.empty_like(grad)
        _run("norm_gradient", *grad.shape, into, grad, weight, unit, inverse, narrow, grad.shape[1])
        return narrow
    wide_weight = weight.detach().float()
    # A few rows at a time: three passes over them then find them in the processor's cache.
    for start in range(0, len(grad), CACHED_ROWS):
        some = slice(start, start + CACHED_ROWS)
        wide, line = grad[some].float().mul_(wide_weight), unit[some].float()
        wide.addcmul_(line, (wide * line).mean(-1, keepdim=True), value=-1)
        into[some].addcmul_(wide, inverse[some])
    return into.to(grad.dtype)


def gate(gate_up: torch.Tensor, room: torch.Tensor, *, keep: bool) -> None:
    """Fill a room with silu(gate) · up, given gate | up (N, 2 F).

    With `keep`, the derivatives by gate and by up take the place of gate and up: backward needs
    them, and no longer the values.
    """
    width = gate_up.shape[1] // 2
    if has_kernels(gate_up):
        _run("gate", *gate_up.shape, gate_up, room, width, room.shape[1], int(keep))
        return
    some, up = gate_up.chunk(2, dim=-1)
    active = silu(some)
    torch.mul(active, up, out=room[:, :width])
    room[:, width:] = 0
    if keep:
        torch.ops.aten.silu_backward.grad_input(up, some, grad_input=some)
        up.copy_(active)


def gate_gradient(grad: torch.Tensor, derivatives: torch.Tensor) -> torch.Tensor:
    """The gradient of gate | up (N, 2 F), in the place of their derivatives; `grad` is (N, F)."""
    if has_kernels(grad):
        _run("gate_gradient", *derivatives.shape, grad, derivatives, grad.shape[1])
    else:
        both = derivatives.unflatten(1, (2, -1))
        torch.mul(grad[:, None], both, out=both)
    return derivatives


def rotate(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    back: bool = False,
) -> torch.Tensor:
    """Turn pairs (i, i + D/2) of each head (N, H, D) by their angles, or back by the same ones.

    It is x·cos + swapped x·sin, where sin (N, H, D) has the sign of the swap.
    """
    num, heads, size = x.shape
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if has_kernels(x) and _has_whole_rows(x) and _has_whole_rows(out):
        sign = -1 if back else 1
        strides = x.stride(0), out.stride(0)
        _run("rotate", num, heads * size, x, out, cos, sin, *strides, heads, size // 2, sign)
        return out
    sin = -sin if back else sin
    return torch.addcmul(x * cos, x.roll(size // 2, -1), sin, out=out)


def _has_whole_rows(x: torch.Tensor) -> bool:
    """Whether each row of (N, H, D) is without gaps."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2]


def place(
    qk: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    row_of_cell: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """Rotate queries and keys (R, H + K, D) of rows in a grid of (block, slot) cells.

    Keys, and values (R, K, D), go to the S places of lines (B, K, T, D) that begin at `first`. Only
    where there are kernels.

    Returns:
        The queries (B, K, S·rep, D).
    """
    num, both, size = qk.shape
    blocks, heads, room, _ = keys.shape
    rep = both // heads - 1
    cells = len(row_of_cell)
    slots = cells // blocks
    queries = qk.new_empty(blocks, heads, slots * rep, size)
    _run(
        "place", cells, (both + heads) * size, qk, v, cos, sin, row_of_cell, queries, keys, values,
        slots, first, room, heads, rep, size // 2, qk.stride(0), v.stride(0), num,
    )  # fmt: skip
    return queries


def collect(
    attended: torch.Tensor, slots: int, cell_of_row: torch.Tensor, room: torch.Tensor
) -> None:
    """Fill a room with what attention gave for the queries of `place`, in any order in memory.

    Only where there are kernels.
    """
    _, heads, queries, size = attended.shape
    rows = len(cell_of_row)
    rep = queries // slots
    _run(
        "collect", rows, heads * rep * size, attended, cell_of_row, room, slots, heads, rep, size,
        *attended.stride()[:3], room.shape[1],
    )  # fmt: skip


def gather(line: torch.Tensor, places: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Take tokens of a line (N, K, rep, D) into (B·K, G, rep, T, D).

    `places` (B·G·T,) is the row of each cell, -1 where it is to be zeros; `shape` is B, G and T.
    Only where there are kernels.
    """
    _, heads, rep, size = line.shape
    blocks, groups, steps = shape
    out = line.new_empty(blocks * heads, groups, rep, steps, size)
    _move("gather", line, places, shape, out)
    return out


def scatter(
    line: torch.Tensor, places: torch.Tensor, shape: tuple[int, int, int], heads: torch.Tensor
) -> None:
    """Write what `gather` gives back to its places, except to -1. Only where there are kernels."""
    _move("scatter", line, places, shape, heads.contiguous())


def _move(
    kernel: str,
    line: torch.Tensor,
    places: torch.Tensor,
    shape: tuple[int, int, int],
    heads: torch.Tensor,
) -> None:
    _, num, rep, size = line.shape
    _, groups, steps = shape
    assert line.stride(3) == 1
    _run(
        kernel, len(places), num * rep * size, line, places, heads,
        *line.stride()[:3], groups, steps, num, rep, size,
    )  # fmt: skip


def softmax(
    scores: torch.Tensor,
    own: torch.Tensor | None = None,
    *,
    steps: int,
    seen: int,
    limits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax of scores in place: rows (..., S), or one over each row of these and of `own`.

    Rows are those of queries, `steps` of them after each other. Query t sees the first `seen` + t
    + 1 keys of `own`, or of `scores` where they are alone; `limits` (B,) is how many keys of
    `scores` each B-th of the rows sees, where that is not all. Only where there are kernels.
    """
    width = scores.shape[-1]
    rows = scores.numel() // width
    more = 0 if own is None else own.shape[-1]
    each = rows if limits is None else rows // len(limits)
    _run("softmax", rows, width + more, scores, own, limits, width, more, each, steps, seen + 1)
    return scores


def softmax_gradient(
    grad: torch.Tensor,
    weights: torch.Tensor,
    own_grad: torch.Tensor | None = None,
    own_weights: torch.Tensor | None = None,
) -> None:
    """The gradient of the scores of `softmax` in the place of that of the weights.

    Only where there are kernels.
    """
    width = grad.shape[-1]
    more = 0 if own_grad is None else own_grad.shape[-1]
    _run(
        "softmax_gradient", grad.numel() // width, width + more,
        grad, weights, own_grad, own_weights, width, more,
    )  # fmt: skip


def exponentials(
    values: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights (N, V) of a dtype in proportion to exp(values), which are float32.

    Returns:
        These, what each row of them sums to (N, 1), and the log of the sum of exp(values), (N,).
    """
    if has_kernels(weights := torch.empty_like(values, dtype=dtype)):
        largest, sums = values.new_empty(len(values)), values.new_empty(len(values))
        _run("exponentials", *values.shape, values, weights, largest, sums, values.shape[1])
        return weights, sums[:, None], largest + torch.log(sums)
    probs = torch.softmax(values, dim=-1)
    # The largest prob is 1 / Σ exp(value − max), so no second pass of exponentials is needed.
    total = values.amax(dim=-1) - torch.log(probs.amax(dim=-1))
    return probs.to(dtype), probs.new_ones(len(probs), 1), total
