"""What of a built folder is verified: its kernel files, and the heads of every launch that they serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from attnc.codegen.importing import import_folder
from attnc.codegen.verify.cases import EMPTY, UNBOUNDED, KeySet, Union
from attnc.compiler.families import FAMILIES, Softmax
from attnc.runtime.softplus import SoftplusKernels


@dataclass(frozen=True)
class Own:
    """A head group of a built model: `row` is what its kernels read, `sees` the mask of the folder's reference.py."""

    group: Any
    form: Any
    numbers: Callable[[Any, Any, int], tuple[int, ...]] = field(compare=False)

    def row(self, kernel: Softmax, length: int = 0) -> tuple[int, ...]:  # noqa: ARG002 (the form is the launch's)
        """The numbers that the kernel reads."""
        return self.numbers(self.group, self.form, length)

    def sees(self, i: Tensor, j: Tensor, causal: bool, length: int = 0) -> Tensor:  # noqa: ARG002 (the mask says it)
        """[queries, keys]."""
        seen: Tensor = self.group.visible(i[:, None], j[None, :], length)
        return seen.expand(len(i), len(j))

    def reach(self) -> int:
        """Tokens after which no number of it matters any more; of a share, some."""
        return shorter(self, 1).reach()


@dataclass(frozen=True)
class Subject:
    """A kernel file: what it was made for, and the heads of each launch and variant that runs on it, each sort once; `whole`:
    one for every KV head of the first launch.

    softplus  the launch that it is one half of, where weights are softplus masses; `masses`: the file of its other half
    """

    file: str
    skeleton: str
    kernel: Softmax
    module: ModuleType
    launches: tuple[str, ...]
    heads: tuple[tuple[KeySet, ...], ...]
    whole: tuple[KeySet, ...]
    softplus: SoftplusKernels | None = None
    masses: str | None = None


def subjects(folder: Path, shortest: int) -> list[Subject]:
    """The kernel files of a built folder; importing them needs triton.

    Heads that reach further than `shortest` tokens are there a second time, with all their numbers made smaller.
    """
    package = import_folder(folder)
    index = import_module(f"{package.__name__}.kernels")
    launches = {**index.FILES, **{launch: files[4:] for launch, files in index.SOFTPLUS.items()}}
    for launch in launches:
        index.kernel(launch)  # tuned blocks are put into the files' tables
    numbers = import_module(f"{package.__name__}.runtime.intervals").row
    model = import_module(f"{package.__name__}.runtime.load").without_numbers(package.Model)
    mixes = {mix.name: mix for mix in model.launches()}
    served: dict[str, list[str]] = {}
    for launch, names in launches.items():
        for name in dict.fromkeys((*names, *index.GLUON.get(launch, ()))):
            served.setdefault(name, []).append(launch)
    found = []
    for name, several in served.items():
        own = [_heads(mixes[launch], numbers) for launch in several]
        every = list(dict.fromkeys(heads for variants in own for heads in variants))
        every += [small for heads in every if (small := _short(heads, shortest)) != heads]
        files = launches[several[0]]
        if name not in files:
            files = index.GLUON[several[0]]
        softplus = index.SOFTPLUS.get(several[0])
        modules = [import_module(f"{package.__name__}.kernels.{file}") for file in (*files, *(softplus or ())[:4])]
        at, first = files.index(name), mixes[several[0]]
        groups = [group for group in first.variants[0].groups for _ in range(group.first, group.last + 1)]
        found.append(
            Subject(
                file=name,
                skeleton=FAMILIES["softmax"][at],
                kernel=made_for(modules[0]),
                module=modules[at],
                launches=tuple(several),
                heads=tuple(every),
                whole=tuple(Own(group, first.form, numbers) for group in groups),
                softplus=SoftplusKernels.of([*modules[4:], *modules[:4]]) if softplus else None,
                masses=softplus[at] if softplus else None,
            )
        )
    return found


def made_for(prefill: ModuleType) -> Softmax:
    """What a launch's kernels were emitted for, from the constants of the prefill file."""
    nears, strides, powers, causal = prefill.FORM
    widths = (prefill.HEAD_WIDTH, prefill.VALUE_WIDTH, prefill.GROUP)
    return Softmax(nears, strides, powers, causal, *widths, prefill.CAP, prefill.SINK_LOGIT, prefill.EXPONENT)


def _heads(mix: Any, numbers: Callable[[Any, Any, int], tuple[int, ...]]) -> list[tuple[KeySet, ...]]:
    """The different heads of every variant of a launch."""
    return [tuple(dict.fromkeys(Own(group, mix.form, numbers) for group in variant.groups)) for variant in mix.variants]


def _short(heads: Sequence[KeySet], shortest: int) -> tuple[KeySet, ...]:
    reach = max(head.reach() for head in heads)
    divisor = 1
    while reach // divisor > shortest:
        divisor *= 2
    return tuple(heads) if divisor == 1 else tuple(dict.fromkeys(shorter(head, divisor) for head in heads))


def shorter(head: KeySet, divisor: int) -> Union:
    """The same parts with every number divided; shares as they are among 4096 tokens."""
    assert isinstance(head, Own)
    form = head.form
    sink, *rest = head.row(Softmax(form.nears), 4096)
    nears = tuple(tuple(rest[4 * at : 4 * at + 4]) for at in range(form.nears))
    far = rest[4 * form.nears :]
    strides, powers = ([number for number in part if number] for part in (far[: form.strides], far[form.strides :]))
    return Union(
        -(-sink // divisor),
        tuple(_shorter(near, divisor) for near in nears if near != EMPTY),
        tuple(max(2, number // divisor) for number in strides),
        tuple(max(1, number // divisor) for number in powers),
    )


def _shorter(near: tuple[int, ...], divisor: int) -> tuple[int, int, int, int]:
    align, shift, back, ahead = near
    smaller = max(1, align // divisor)
    back, ahead = (number if number >= UNBOUNDED else number // divisor for number in (back, ahead))
    return smaller, shift // divisor % smaller, back, ahead
