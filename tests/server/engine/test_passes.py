"""Passes of the layers over memory: compiled loops compute what torch's operators do."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from hypothesis import given, settings
from hypothesis import strategies as st
from server.engine.test_torch import groups_from, moved_policy, requests

from rftkit.server.engine.torch import passes
from rftkit.server.engine.torch.decode import Decode
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.values import TrainSettings

needs_kernels = pytest.mark.skipif(
    not passes.has_kernels(torch.zeros(1, dtype=torch.bfloat16)), reason="no kernels here"
)
EPSILON = torch.full((1,), 1e-5)
RANKS = 3
Make = Callable[..., torch.Tensor]


def test_loops_are_compiled_where_numba_is_installed() -> None:
    """A missing numba would be seen by nothing else: torch's operators give the same numbers."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert passes._loops() is not None, "numba is missing, or OpenMP's GOMP_parallel"


def no_kernels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(passes, "has_kernels", lambda _x: False)


def maker(seed: int, scale: float) -> tuple[Make, Make]:
    chance = torch.Generator().manual_seed(seed)

    def wide(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) * scale

    def narrow(*shape: int) -> torch.Tensor:
        return wide(*shape).bfloat16()

    return wide, narrow


def add(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    x, change = wide(rows, width), narrow(rows, width)
    passes.add(x, change)
    return x


def copy(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    room = narrow(rows, width + RANKS)
    passes.copy(narrow(rows, width), room)
    return room


def norm(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    room, x = narrow(rows, width + RANKS), wide(rows, width)
    passes.norm(x, narrow(width), EPSILON, room, keep=False)
    return room


def norm_that_keeps(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    room, x = narrow(rows, width + RANKS), wide(rows, width)
    kept = passes.norm(x, narrow(width), EPSILON, room, change=narrow(rows, width), keep=True)
    assert kept is not None
    return room, x, *kept


def norm_gradient(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    into, inverse = wide(rows, width), wide(rows, 1)
    out = passes.norm_gradient(
        into, narrow(rows, width), narrow(width), narrow(rows, width), inverse
    )
    return into, out


def gate(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    room = narrow(rows, width + RANKS)
    passes.gate(narrow(rows, 2 * width), room, keep=False)
    return room


def gate_that_keeps(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    room, both = narrow(rows, width + RANKS), narrow(rows, 2 * width)
    passes.gate(both, room, keep=True)
    return room, both


def gate_gradient(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    return passes.gate_gradient(narrow(rows, width), narrow(rows, 2 * width))


def rotate(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    x, cos, sin = narrow(rows, 5, 2 * width), narrow(rows, 3, 2 * width), narrow(rows, 3, 2 * width)
    out = torch.zeros_like(x)
    passes.rotate(x[:, :3], cos, sin, out[:, 2:], back=True)
    return passes.rotate(x[:, 1:4], cos, sin), out


def exponentials(rows: int, width: int, wide: Make, narrow: Make) -> Any:
    weights, sums, total = passes.exponentials(wide(rows, width), torch.bfloat16)
    return weights.float() / sums, total


PASSES = [
    add, copy, norm, norm_that_keeps, norm_gradient, gate, gate_that_keeps, gate_gradient, rotate,
    exponentials,
]  # fmt: skip


def parts(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@needs_kernels
@pytest.mark.parametrize("compute", PASSES)
@given(
    rows=st.integers(1, 70),
    width=st.sampled_from([1, 7, 32, 97, 576]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
@settings(max_examples=25, deadline=None)
def test_a_loop_computes_what_the_operators_compute(
    compute: Any, rows: int, width: int, seed: int, scale: float
) -> None:
    ours = parts(compute(rows, width, *maker(seed, scale)))
    with pytest.MonkeyPatch.context() as patch:
        no_kernels(patch)
        theirs = parts(compute(rows, width, *maker(seed, scale)))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        # A number between two bfloat16 numbers may be rounded either way.
        bound = 1e-2 if other.dtype == torch.bfloat16 or compute is exponentials else 1e-4
        largest = float(other.abs().max())
        torch.testing.assert_close(one.float(), other.float(), rtol=bound, atol=bound * largest)


@needs_kernels
@pytest.mark.parametrize("compute", PASSES)
def test_threads_do_not_change_a_number(compute: Any) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(parts(compute(201, 576, *maker(1, 1.0))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_do_not_become_finite(bad: float) -> None:
    """A diverged model must be seen as one."""
    x = torch.ones(2, 40)
    x[1, 33] = bad
    _, _, total = passes.exponentials(x, torch.bfloat16)
    assert total.isfinite().tolist() == [True, False]
    scores = x.bfloat16()
    passes.softmax(scores, steps=1, seen=39)
    assert scores.isfinite().all(1).tolist() == [True, False]
    room = torch.zeros(2, 40).bfloat16()
    passes.norm(x, torch.ones(40).bfloat16(), EPSILON, room, keep=False)
    assert room.isfinite().all(1).tolist() == [True, False]
    both = torch.ones(2, 80).bfloat16()
    both[1, 33] = torch.nan
    passes.gate(both, room, keep=True)
    assert room.isfinite().all(1).tolist() == [True, False]


@needs_kernels
@pytest.mark.parametrize("limits", [None, [3, 5]])
def test_a_softmax_over_two_parts_hides_later_and_missing_keys(limits: list[int] | None) -> None:
    _, narrow = maker(0, 3.0)
    steps, prompt = 4, 5
    scores, own = narrow(2, 3 * steps, prompt), narrow(2, 3 * steps, steps)
    hidden = torch.cat([torch.zeros(2, 3 * steps, prompt), torch.ones(2, 3 * steps, steps)], 2)
    hidden[..., prompt:] = torch.ones(steps, steps).triu(1).repeat(3, 1)
    if limits is not None:
        hidden[..., :prompt] = (torch.arange(prompt) >= torch.tensor(limits)[:, None])[:, None]
    joined = torch.cat([scores, own], 2).masked_fill(hidden.bool(), -torch.inf)
    expected = torch.softmax(joined, -1)
    given = None if limits is None else torch.tensor(limits)
    passes.softmax(scores, own, steps=steps, seen=0, limits=given)
    found = torch.cat([scores, own], 2)
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=1e-2)
    assert (found[hidden.bool()] == 0).all()

    grads = narrow(2, 3 * steps, prompt), narrow(2, 3 * steps, steps)
    wanted = torch._softmax_backward_data(torch.cat(grads, 2), found, -1, found.dtype)
    passes.softmax_gradient(grads[0], scores, grads[1], own)
    torch.testing.assert_close(torch.cat(grads, 2), wanted, atol=2e-2, rtol=1e-2)


@needs_kernels
@pytest.mark.parametrize("groups", [[0, 0, 0, 1, 1, 1], [0, 0, 1], [0], [0, 1, 1, 1, 1]])
def test_rows_that_decode_attend_as_they_do_by_torch(groups: list[int]) -> None:
    """A grid of rows, with empty cells too, and one row alone."""
    _, narrow = maker(3, 1.0)
    heads, kv, size, lengths = 6, 2, 8, [5, 3]
    prefill = Packed(lengths, [[], []], torch.device("cpu"), keep_keys=True)
    assert prefill.keys is not None
    prefill.keys.append(narrow(sum(lengths), kv, size))
    prefill.values.append(narrow(sum(lengths), kv, size))
    rows = len(groups)
    layouts = [Decode(prefill, lengths, groups) for _ in range(2)]
    for _ in range(3):
        tables = narrow(rows, heads + kv, size), narrow(rows, heads + kv, size)
        qkv = narrow(rows, heads + 2 * kv, size)
        qk, v = qkv[:, : heads + kv], qkv[:, heads + kv :]
        for layout in layouts:
            layout.take(1)
        room = torch.ones(rows, heads * size + RANKS).bfloat16()
        assert layouts[0].fills
        layouts[0].fill(0, qk, v, tables, room)
        q, k = passes.rotate(qk, *tables).split([heads, kv], dim=1)
        expected, _ = layouts[1].attend(0, q.unflatten(1, (kv, -1)), k, v)
        torch.testing.assert_close(room[:, :-RANKS], expected, atol=1e-2, rtol=1e-2)
        assert (room[:, -RANKS:] == 0).all()
        for layout in layouts:
            layout.advance()


@needs_kernels
@given(
    prompts=st.lists(st.integers(3, 150), min_size=1, max_size=4),
    completions=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=4, max_size=4),
    opening=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_attention_of_groups_is_that_of_torch_forward_and_backward(
    prompts: list[int], completions: list[list[int]], opening: int, seed: int
) -> None:
    """Prompts of one block and of two, with and without padding, an opening, completions."""
    heads, kv, size = 6, 2, 8

    def attended() -> list[torch.Tensor]:
        _, narrow = maker(seed, 1.0)
        layout = Packed(prompts, completions[: len(prompts)], torch.device("cpu"), opening=opening)
        num = len(layout.positions)
        qkv = narrow(num, heads + 2 * kv, size)
        q = qkv[:, :heads].unflatten(1, (kv, -1))
        out, kept = layout.attend(0, q, qkv[:, heads : heads + kv], qkv[:, heads + kv :])
        grads = torch.zeros_like(q), *(torch.zeros(num, kv, size).bfloat16() for _ in range(2))
        layout.backward(kept, narrow(num, kv, heads // kv, size), *grads)
        return [out, *grads]

    ours = attended()
    with pytest.MonkeyPatch.context() as patch:
        no_kernels(patch)
        theirs = attended()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


@needs_kernels
@pytest.mark.parametrize("form", ["Llama", "Qwen3"])
def test_a_model_learns_and_samples_as_it_does_by_torch(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are no farther from those of float32 than with torch's own operators."""
    folder = write(tmp_path, form)
    exact = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.bfloat16)
    assert engine._stack is not None
    for each in (exact, engine):
        moved_policy(each)
    groups = groups_from(asked := requests(exact), exact.sample(asked))

    def gradients(of: TorchEngine) -> torch.Tensor:
        of.train_step(groups, TrainSettings(0.0, max_grad_norm=1e9))
        return torch.cat([t.grad.flatten() for t in of.policies.trained()[0].values()])

    def gap() -> float:
        drawn = engine.sample(asked)
        with torch.no_grad():
            again = engine.logprobs(groups_from(asked, drawn))
        stored = torch.tensor([x for group in drawn for c in group for x in c.sampling_logprobs])
        return float((again - stored).abs().max())

    wanted = gradients(exact)
    ours, our_gap = (gradients(engine) - wanted).norm(), gap()
    loops = []
    with monkeypatch.context() as patch:
        patch.setattr(passes, "_run", lambda *given: loops.append(given))
        no_kernels(patch)
        theirs, their_gap = (gradients(engine) - wanted).norm(), gap()
    assert not loops
    assert ours < 1.2 * theirs < 0.2 * wanted.norm()
    assert our_gap < max(0.05, 1.5 * their_gap)


@needs_kernels
def test_the_facts_of_an_engine_name_what_compiled_its_loops(tmp_path: Path) -> None:
    folder = write(tmp_path, "Llama")
    fast = TorchEngine(folder, name="test", device="cpu", dtype=torch.bfloat16)
    plain = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    assert str(fast.facts["loops"]).startswith("numba ")
    assert plain.facts["loops"] is None


def test_without_numba_torch_computes(tmp_path: Path) -> None:
    code = """if True:
        import sys
        sys.modules["numba"] = None
        import torch
        from rftkit.server.engine.torch import passes
        x, change = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)
        assert not passes.has_kernels(change)
        passes.add(x, change)
        assert (x == 2).all()
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@needs_kernels
def test_a_folder_does_not_say_where_compiled_loops_are_read_from(tmp_path: Path) -> None:
    """numba unpickles them, and the current folder may be anybody's."""
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: theirs\n")
    code = """if True:
        import torch
        from rftkit.server.engine.torch import passes
        x, change = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)
        assert passes.has_kernels(change)
        passes.add(x, change)
        assert (x == 2).all()
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".numba_config.yaml"]
