"""The generated kernels of a launch of fast weights: a `Sweep` from chunk to chunk, with its gradients.

What a sequence knows before each chunk is found by the kernels, one chunk after another, and so are its gradients on the way
back; then those of what tokens brought, of single chunks side by side. What tokens read is plain PyTorch's (fast_torch.py).

The kernels are `torch.ops.attnc.fast_HASH_sweep` and `..._back`, HASH of the file's text.

Legend: R rows, the chunks of C tokens of S sequences, first ones before second ones; H heads; M numbers of a net, flat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fast import Learned, Rule, Teach, Weights
from .fast_rows import Rows, goals_of, maps_of
from .fast_step import Stepping, step_kernels
from .fast_sweep import Sweep, Swept, Tokens, amounts_of
from .fast_torch import Reader, teach_by, torch_teach, within
from .nets import Norm
from .operators import NAMESPACE, device_of

GROUP = 8192
"""Tokens of a group, at least: a text of one group computes nothing again on the way back."""

GIVEN = (
    "Tensor k, Tensor v, Tensor writes, Tensor? pushes, Tensor stays, Tensor? speed, Tensor? slows, Tensor? weight, "
    "Tensor? bias, Tensor? goals, int[] counts, int element_size"
)
SCHEMAS = {
    "sweep": f"({GIVEN}, Tensor known, Tensor? known_moment) -> (Tensor kept, Tensor kept_moment, Tensor after, "
    "Tensor after_moment, Tensor raw)",
    "back": (
        f"({GIVEN}, Tensor kept, Tensor? kept_moment, Tensor raw, Tensor kept_grad, Tensor? kept_moment_grad, "
        "Tensor after_grad, Tensor? after_moment_grad) -> Tensor[]"
    ),
}
"""What the operators take and give; what is not there is empty. `back` gives gradients of all tensors that `sweep` takes."""


class Given(NamedTuple):
    """What kernel files read of a group of chunks.

    tensors       k [R, H, C, D]; v [R, H, C, E]; `Amounts`; weight and bias [H, E] of the norm; dense, in fp32, or None
    begins        the first row of each chunk, int64
    chunks        [S], how many chunks each sequence has, int32
    counts        how many sequences have each chunk
    element_size  bytes of an element of q, k and v as they came
    rows          of rows that keep their norms: what `goals_of` gives; on the way back `Rows`; else nothing
    """

    tensors: tuple[Tensor | None, ...]
    begins: Tensor
    chunks: Tensor
    counts: tuple[int, ...]
    element_size: int
    rows: tuple[Tensor, ...] = ()

    @property
    def k(self) -> Tensor:
        """The keys."""
        keys = self.tensors[0]
        assert keys is not None, "there are keys"
        return keys


def fast_kernels(chunks: ModuleType | None, steps: ModuleType | None = None) -> Teach:
    """The provider `triton`, a `Teach` (fast.py), of a launch's kernel files: from chunk to chunk, where none does plain
    PyTorch, and token by token.
    """
    teach = torch_teach if chunks is None else teach_by(kernel_sweep(chunks), GROUP, kernel_reader(chunks))
    return teach if steps is None else Stepping(teach, step_kernels(steps))


def kernel_sweep(module: ModuleType) -> Sweep:
    """A `Sweep` of a kernel file; it has no second derivative."""
    operator = define(name_of(module), module)

    def sweep(
        rule: Rule, start: Weights, known: Learned, tokens: Tokens, counts: tuple[int, ...], learns: int, norm: Norm
    ) -> Swept:
        if tokens.k.dtype == torch.float64:
            raise ValueError("generated kernels have no float64: use('torch')")
        tokens = _learned(tokens, counts, learns)
        amounts = amounts_of(tokens)
        if amounts.stays is None:
            amounts = amounts._replace(stays=torch.ones_like(amounts.writes[..., 0]))
        shapes = {name: w.shape[2:] for name, w in known.weights.items()}
        now, moment = _flat(known.weights), None if known.moment is None else _flat(known.moment)
        plain = [None if x is None else x.contiguous() for x in (tokens.k, tokens.v, *amounts, *(norm or (None, None)))]
        goals = goals_of(start, tokens) if rule.weight_norm else None
        numbers = list(counts), 2 if tokens.narrow else 4
        *found, _ = operator(*plain, goals, *numbers, now.contiguous(), None if moment is None else moment.contiguous())
        kept, kept_moment, then, then_moment = (
            None if moment is None and n % 2 else _nets(x, shapes) for n, x in enumerate(found)
        )
        assert kept is not None, "weights are known before each chunk"
        assert then is not None, "and after"
        return Swept(Learned(kept, kept_moment), Learned(then, then_moment))

    return sweep


def kernel_reader(module: ModuleType) -> Reader | None:
    """A `Reader` of a kernel file, for what reads after its own write and nobody differentiates; None: it has none."""
    longest = getattr(module, "LONGEST", 0)

    def reader(rule: Rule, before: Learned, tokens: Tokens, q: Tensor, norm: Norm) -> Tensor | None:
        sources = (q, *tokens[:5], *before.weights.values(), *(before.moment or {}).values(), *(norm or ()))
        differentiates = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in sources)
        if not rule.after_write or rule.weight_norm or q.shape[2] > longest or differentiates or torch.compiler.is_compiling():
            return None
        numbers = [None if x is None else x.expand(*q.shape[:3], x.shape[3]).contiguous() for x in within(tokens)]
        weights = (_flat(before.weights), None if before.moment is None else _flat(before.moment))
        known = [None if x is None else x.contiguous() for x in (*(norm or (None, None)), *weights)]
        with device_of(q):
            given = q.contiguous(), tokens.k.contiguous(), tokens.v.contiguous()
            o: Tensor = module.read(*given, *numbers, known[:2], *known[2:], 2 if tokens.narrow else 4)
            return o

    return reader if longest else None


def _learned(tokens: Tokens, counts: tuple[int, ...], learns: int) -> Tokens:
    """Chunks that are not learned from are not whole."""
    if learns == len(counts):
        return tokens
    rows = sum(counts[:learns])
    whole = torch.ones_like(tokens.lr[:, 0, 0], dtype=torch.bool) if tokens.whole is None else tokens.whole
    return tokens._replace(whole=torch.cat((whole[:rows], torch.zeros_like(whole[rows:]))))


def _flat(weights: Weights) -> Tensor:
    parts = [w.flatten(2) for w in weights.values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _nets(flat: Tensor, shapes: dict[str, torch.Size]) -> Weights:
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()], dim=2)
    return {name: part.view(*part.shape[:2], *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def name_of(module: ModuleType) -> str:
    """A name for the operators of a kernel file: of its text, and of this one, which knows what operators take."""
    texts = [Path(str(file)).read_bytes() for file in (module.__file__, __file__)]
    return "fast_" + hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def define(name: str, module: ModuleType) -> Any:
    """The operator `name`_sweep; the first that asks for a name defines it, for the life of the process."""
    if not hasattr(torch.ops.attnc, f"{name}_sweep"):
        functions = {"sweep": (_sweep(module), _fake_sweep(module)), "back": (_back(module), _fake_back)}
        for kind, (function, fake) in functions.items():
            title = f"{NAMESPACE}::{name}_{kind}"
            torch.library.define(title, SCHEMAS[kind], tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.impl(title, "default", function)
            torch.library.register_fake(title, fake)
        back = getattr(torch.ops.attnc, f"{name}_back").default
        torch.library.register_autograd(f"{NAMESPACE}::{name}_sweep", _gradients(back), setup_context=_save)
        torch.library.register_autograd(f"{NAMESPACE}::{name}_back", _no_second_derivative)
    return getattr(torch.ops.attnc, f"{name}_sweep").default


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *given, counts, element_size, known, moment = inputs
    ctx.set_materialize_grads(False)
    ctx.numbers, ctx.momentum, ctx.sequences = (counts, element_size), moment is not None, len(known)
    ctx.save_for_backward(*given, output[0], output[1], output[4])


def _gradients(back: Any) -> Any:
    """Of what tokens bring, of the norm, and of what was known before the first chunk. Nothing reads momentum before its chunk
    but what reads after its own write: no zeros are made for it."""

    def gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *given, kept, kept_moment, raw = ctx.saved_tensors
        of_kept, of_kept_moment, of_after, of_after_moment = (None if x is None else x.contiguous() for x in grads[:4])
        none = kept.new_zeros(ctx.sequences, *kept.shape[1:])
        of = (
            torch.zeros_like(kept) if of_kept is None else of_kept,
            of_kept_moment if ctx.momentum else None,
            none if of_after is None else of_after,
            (none if of_after_moment is None else of_after_moment) if ctx.momentum else None,
        )
        found = back(*given, *ctx.numbers, kept, kept_moment if ctx.momentum else None, raw, *of)
        there = [None if x is None else grad for x, grad in zip(given, found, strict=False)]
        return *there, None, None, found[-2], found[-1] if ctx.momentum else None

    return gradients


def _no_second_derivative(*_anything: object) -> None:
    raise RuntimeError("the generated kernels have no second derivative: use('torch') or use('reference')")


@lru_cache(maxsize=256)
def _places(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """`begins` and `chunks` of a `Given`."""
    begins = torch.tensor([0, *accumulate(counts[:-1])], dtype=torch.int64, device=device)
    own = [sum(count > rank for count in counts) for rank in range(counts[0])]
    return begins, torch.tensor(own, dtype=torch.int32, device=device)


def _given(parts: Sequence[Any], sequences: int) -> Given:
    *tensors, goals, counts, element_size = parts
    begins, chunks = _places(tuple(counts), tensors[0].device)
    chunks = torch.cat((chunks, chunks.new_zeros(sequences - len(chunks)))) if sequences > len(chunks) else chunks
    return Given(tuple(tensors), begins, chunks, tuple(counts), element_size, () if goals is None else (goals,))


def _full(like: Tensor, found: Sequence[Tensor | None]) -> list[Tensor]:
    return [like.new_empty(0) if x is None else x for x in found]


def _sweep(module: ModuleType) -> Any:
    def sweep(*parts: Any) -> tuple[Tensor, ...]:
        *given, known, moment = parts
        with device_of(known):
            return tuple(_full(known, module.sweep(_given(given, len(known)), known, moment)))

    return sweep


def _back(module: ModuleType) -> Any:
    def back(*parts: Any) -> list[Tensor]:
        *tensors, kept, kept_moment, raw, kept_grad, kept_moment_grad, after_grad, after_moment_grad = parts
        grads = kept_grad, kept_moment_grad, after_grad, after_moment_grad
        given = _given(tensors, len(after_grad))
        with device_of(kept):
            begun, found = kept, None
            if given.rows:
                begun, found = Rows.of(kept, given.rows[0], maps_of(module))
                given = given._replace(rows=found)
            rows, rows_moment, *known = module.go_back(given, begun, raw, *grads)
            of_goals = None if found is None else found.of_goals(tensors[9])
            return _full(kept, [*module.lessons(given, begun, kept_moment, raw, rows, rows_moment), of_goals, *known])

    return back


def _fake_sweep(module: ModuleType) -> Any:
    """Results without numbers: what compilers ask for."""
    keeps = hasattr(module, "HIDDEN")

    def fake(*parts: Any) -> tuple[Tensor, ...]:
        k, v, *_, known, moment = parts
        kept, none = known.new_empty(len(k), *known.shape[1:]), known.new_empty(0)
        kept_moment, after_moment = (none, none) if moment is None else (torch.empty_like(kept), torch.empty_like(known))
        return kept, kept_moment, torch.empty_like(known), after_moment, torch.empty_like(v) if keeps else none

    return fake


def _fake_back(*parts: Any) -> list[Tensor]:
    *_, after_grad, after_moment_grad = parts
    like = (*parts[:10], after_grad, after_moment_grad)
    return _full(after_grad, [None if x is None else torch.empty_like(x) for x in like])
