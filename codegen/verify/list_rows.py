"""What of a built folder's kernels over lists is verified: attention and its gradients beside dense attention, and choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from attnc.codegen.importing import import_folder
from attnc.codegen.verify.cases import FULL, Case, Inputs, Union, build, poisoned
from attnc.codegen.verify.gradients import gradients, outer_gradients
from attnc.codegen.verify.judge import Verdict, judge, judge_gradients
from attnc.codegen.verify.lists import Chunked, Listed, lists_of
from attnc.codegen.verify.report import Row
from attnc.compiler.families import BACKWARD, Softmax
from attnc.runtime.asking import asking
from attnc.runtime.intervals import Form, HeadGroup, Near
from attnc.runtime.launch import Kernels
from attnc.runtime.list_call import Call, attend
from attnc.runtime.list_choice import chosen_by_kernels
from attnc.runtime.list_launch import LaunchLists
from attnc.runtime.pooled import run_keys
from attnc.runtime.selecting import Asked, choose
from attnc.runtime.selector import Selector
from attnc.runtime.sizes import UNBOUNDED
from attnc.runtime.spans import Numbers

READS, GOES_BACK, CHOOSES = "lists_attend", "lists_backward", "lists_choose"
KV_HEADS = 2


@dataclass(frozen=True)
class ListSubject:
    """A kernel file, the launches that run it, and the file that attends beside one that goes back.

    four: of a file that reads no lists but what a summary stands for, or tokens beside it, all four of its kernel
    """

    file: str
    module: ModuleType
    launches: tuple[str, ...]
    beside: ModuleType | None = None
    four: tuple[ModuleType, ...] = ()

    @property
    def skeleton(self) -> str:
        """Which of the skeletons it was made from."""
        return self.file.rpartition("_")[0]


def list_subjects(folder: Path) -> list[ListSubject]:
    """The kernel files over lists of a built folder; importing them needs triton."""
    package = import_folder(folder).__name__
    index = import_module(f"{package}.kernels")
    served: dict[str, list[str]] = {}
    for launch, names in getattr(index, "LISTS", {}).items():
        index.kernel(launch)  # tuned blocks are put into the files' tables
        for name in (*index.LISTS_IN_GLUON.get(launch, ()), *names):
            served.setdefault(name, []).append(launch)
    found = {name: import_module(f"{package}.kernels.{name}") for name in served}
    subjects = []
    for name, module in found.items():
        beside = None
        if name.startswith(GOES_BACK):
            alike = [one for other, one in found.items() if other.startswith(READS) and made_alike(one, module)]
            beside = alike[0]
        subjects.append(ListSubject(name, module, tuple(served[name]), beside))
    return [*subjects, *_summaries(package, getattr(index, "SUMMARIES", {}))]


def _summaries(package: str, launches: Mapping[str, Sequence[Sequence[str] | None]]) -> list[ListSubject]:
    """The files of what stands for chunks, and of tokens beside them."""
    served: dict[tuple[str, ...], list[str]] = {}
    for launch, kernels in launches.items():
        for names in kernels:
            if names is not None:
                served.setdefault(tuple(names), []).append(launch)
    found = []
    for names, several in served.items():
        four = tuple(import_module(f"{package}.kernels.{name}") for name in names)
        found += [ListSubject(name, one, tuple(several), None, four) for name, one in zip(names, four, strict=True)]
    return found


def made_alike(one: ModuleType, other: ModuleType) -> bool:
    """Whether two files were made for the same launch."""
    names = ("FORM", "HEAD_WIDTH", "VALUE_WIDTH", "GROUP", "MEMBERS", "UNIT", "CAP")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def list_rows(subject: ListSubject, dtype: str, device: str, begin: Callable[[tuple[str, str, str]], bool]) -> Iterator[Row]:
    """A row for each class of inputs that `begin` lets through."""
    classes = compared(subject, getattr(torch, dtype), device)
    for name, compare in classes.items():
        key = (subject.file, dtype, name)
        if begin(key):
            yield _row(key, compare())


def compared(subject: ListSubject, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Verdict]]:
    """How each class of inputs is compared."""
    if subject.skeleton == CHOOSES:
        return {
            "integers": lambda: chosen(subject.module, dtype, device, 0),
            "packed": lambda: chosen(subject.module, dtype, device, 7),
        }
    if subject.four:
        chosen_cases = summary_cases(subject, dtype, device)
        return {name: partial(summed, subject, case) for name, case in chosen_cases.items()}
    run = gone_back if subject.skeleton == GOES_BACK else attended
    return {name: partial(run, subject, case) for name, case in cases(subject.module, dtype, device).items()}


def _row(key: tuple[str, str, str], verdict: Verdict) -> Row:
    kernel, dtype, name = key
    error, own, allowed = (x if math.isfinite(x) else None for x in (verdict.error, verdict.torch_error, verdict.allowed))
    return Row(
        kernel=kernel, dtype=dtype, inputs=name, cases=1, error=error, torch_error=own, allowed=allowed,
        verdict="wrong" if verdict.wrong else "right", reason=verdict.wrong,
    )  # fmt: skip


def cases(module: ModuleType, dtype: torch.dtype, device: str) -> dict[str, Case]:
    """Rows of one query, of a block, of all; packed sequences, one without tokens; steps on a cache; large logits; integers."""
    kernel, rest = made_for(module), beside(module, (1, 0, 5, 0))
    unit, long = module.UNIT, 12 if device == "cpu" else 200
    far = 2 * unit if device != "cpu" or unit <= 256 else unit + 8  # the interpreter is slow

    def made(many: int, sizes: tuple[int, ...], pasts: tuple[int, ...], **more: object) -> Case:
        unions = tuple(listed_for(module, rest, many, salt) for salt in range(KV_HEADS))
        return Case(kernel, unions, sizes, pasts, dtype, cache=True, device=device, **more)  # type: ignore[arg-type]

    if hasattr(module, "serves"):  # in Gluon: rows of many queries, numbers of two bytes
        return (
            {}
            if dtype.itemsize > 2
            else {
                "blocks": made(128, (long, 0, 5), (unit + 1, 3, 0)),
                "one row": made(UNBOUNDED, (long // 2, 3), (unit, 0)),
                "large": made(256, (3 * long,), (far,), magnitude=30.0),
                "integers": made(128, (3 * long,), (far,), magnitude=0.0, integers=True),
            }
        )
    return {
        "queries": made(1, (long // 2, 1), (far + 3, 0)),
        "blocks": made(8, (long, 0, 5), (unit + 1, 3, 0)),
        "one row": made(UNBOUNDED, (long // 2, 3), (unit, 0)),
        "steps": made(1, (1, 1), (far + unit // 2, unit // 2)),
        "large": made(8, (long,), (far,), magnitude=30.0),
        "integers": made(8, (long,), (far,), magnitude=0.0, integers=True),
    }


def summary_cases(subject: ListSubject, dtype: torch.dtype, device: str) -> dict[str, Case]:
    """Packed sequences, one without tokens; steps on a cache; large logits; integers: few queries where a file is for few."""
    kernel, rest = made_for(subject.module), beside(subject.module, (3, 0, 6, 0))
    long = 12 if device == "cpu" or subject.skeleton == "softmax_decode" else 200
    chunks = getattr(subject.module, "CHUNKS", None)
    union = rest if chunks is None else Chunked(rest, *chunks)
    far = 60 if chunks is None else 2 * chunks[0] + 60 // chunks[1]

    def made(sizes: tuple[int, ...], pasts: tuple[int, ...], **more: object) -> Case:
        return Case(kernel, (union,) * KV_HEADS, sizes, pasts, dtype, cache=True, device=device, **more)  # type: ignore[arg-type]

    return {
        "packed": made((long, 0, 5), (far, 3, 0)),
        "steps": made((1, 1), (far, 0)),
        "large": made((long,), (far,), magnitude=30.0),
        "integers": made((long,), (far,), magnitude=0.0, integers=True),
    }


def summed(subject: ListSubject, case: Case) -> Verdict:
    """Of a file that reads no lists."""
    inputs = build(case)
    if subject.skeleton not in BACKWARD:
        with poisoned():
            o, lse = subject.module.attend(*inputs.arguments)
        return judge(inputs, o, lse)
    kernels, given = Kernels.of(*subject.four), outer_gradients(inputs)
    verdicts = judge_gradients(inputs, gradients(kernels, inputs, *given), *given)
    return max(verdicts.values(), key=Verdict.rank)


def made_for(module: ModuleType) -> Softmax:
    """What a launch's file was emitted for, from its constants."""
    nears, strides, powers, causal = module.FORM
    widths = module.HEAD_WIDTH, getattr(module, "VALUE_WIDTH", module.HEAD_WIDTH)
    return Softmax(nears, strides, powers, causal, *widths, module.GROUP, module.CAP, getattr(module, "SINK_LOGIT", False))


def beside(module: ModuleType, near: tuple[int, int, int, int]) -> Union:
    """Some first keys, and a part of each sort that the file knows beside lists."""
    nears, strides, powers, _ = module.FORM
    return Union(3, (near,) * min(1, nears), (7,) * min(1, strides), (4,) * min(1, powers and not strides))


def listed_for(module: ModuleType, rest: Union, many: int, salt: int) -> Listed:
    """Lists of the sort that the file reads."""
    return Listed(rest, module.UNIT, many, salt, getattr(module, "DISTANCES", False), getattr(module, "BESIDE", 0))


def attended(subject: ListSubject, case: Case) -> Verdict:
    """Of the forward kernels; where every query head has lists of its own, all of them differ."""
    case, sets = by_heads(case, subject.module.GROUP // subject.module.MEMBERS)
    inputs = build(case)
    with poisoned():
        o, lse = subject.module.attend(*inputs.arguments, lists_of(case, sets))
    return judge(inputs, o, lse)


def by_heads(case: Case, choosers: int) -> tuple[Case, tuple[Listed, ...]]:
    """The case with different sets for each of so many query heads of a KV head, or one set for all; and these sets."""
    sets = tuple(one for one in case.unions if isinstance(one, Listed))
    assert len(sets) == len(case.unions), "lists are read"
    if choosers == 1:
        return case, sets
    own = tuple(replace(one, salt=place * choosers + member) for place, one in enumerate(sets) for member in range(choosers))
    return replace(case, own=own), own


def gone_back(subject: ListSubject, case: Case) -> Verdict:
    """Of the gradients; where every query head has lists of its own, all of them differ."""
    module, reads = subject.module, subject.beside
    assert reads is not None, "a file that goes back has one that attends beside it"
    case, sets = by_heads(case, module.GROUP // module.MEMBERS)
    inputs, lists = build(case), lists_of(case, sets)

    def launch(q: Tensor, part, rows, form, batch, scale, cap, sink) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        return attend(q, sink, Call(reads, module, part, rows, form, batch, scale, cap, lists))

    given = outer_gradients(inputs)
    verdicts = judge_gradients(inputs, gradients(launch, inputs, *given), *given)
    return max(verdicts.values(), key=Verdict.rank)


def chosen(module: ModuleType, dtype: torch.dtype, device: str, other: int) -> Verdict:
    """How many rows differ from what plain torch keeps of small integers: of scores that are exact none may.

    Shares of a mass are rounded: there a row may, where two units are as near as that; allowed is one of 16.
    """
    unit, score = module.SELECTOR[0], module.SELECTOR[4]
    sizes = (4 * unit + 3, *((unit + other,) if other else ()))
    choose_, one, group, inputs, cap = drawn_choice(module, dtype, device, sizes, max(8, 1 << (unit // 2).bit_length()))
    with poisoned():
        found = choose_()
    wrong = rows = 0
    for s, queries in enumerate(torch.split(inputs.q, list(sizes))):
        stands = run_keys(one, inputs.keys[s].transpose(0, 1), 0, KV_HEADS - 1, s, inputs.batch, None)
        asks = asking(one, queries.transpose(0, 1), 0, False, None)
        lists = choose(one, asks, stands, Asked(0, sizes[s], sizes[s], Numbers.of(group, sizes[s], True), 0.25, cap))
        at, count = int(found.row_begin[s]), lists.count
        own = found.index[:, at : at + count.shape[1], : lists.index.shape[2]]
        inside = torch.arange(lists.index.shape[2], device=device) < count.unsqueeze(-1)
        differ = ((own != lists.index) & inside).any(-1) | (found.count[:, at : at + count.shape[1]] != count)
        wrong, rows = wrong + int(differ.sum()), rows + differ.numel()
    allowed = rows / 16 if score == "softmax" else 0.0
    return Verdict(float(wrong), 0.0, allowed, "" if wrong <= allowed else f"{wrong} of {rows} rows keep other units")


def drawn_choice(
    module: ModuleType, dtype: torch.dtype, device: str, sizes: tuple[int, ...], many: int
) -> tuple[Callable[[], LaunchLists], Selector, HeadGroup, Inputs, float | None]:
    """What chooses two units for every `many` queries of small integers, and what it is given.

    Another branch's chunk keys are runs like means, which stand for them here.
    """
    unit, keys, span, step, score, lse, shared, heads, fold, overlap = module.SELECTOR
    one = Selector(
        unit, keys=keys, span=span, step=step, score=score, lse=lse, shared=shared, heads=heads, fold=fold, overlap=overlap,
        asks="block", many=many, top_k=2,
    )  # fmt: skip
    one = replace(one, keys="mean") if keys == "summary" else one
    nears, strides, powers, causal = module.FORM
    kernel = Softmax(nears, strides, powers, causal, module.HEAD_WIDTH, module.HEAD_WIDTH, module.GROUP)
    unions = (Union(nears=(FULL,)),) * KV_HEADS
    inputs = build(Case(kernel, unions, sizes, (0,) * len(sizes), dtype, integers=True, device=device))
    parts = (inputs.batch.keys(torch.cat(inputs.keys), torch.cat(inputs.values)),)
    group = HeadGroup(0, KV_HEADS - 1, 3, (Near(back=5),) * min(1, nears))
    cap, form = 5.0 if module.CAP else None, Form(nears, strides, powers, causal)
    rest = (parts, group, form, inputs.batch, 0.25, cap, None)
    return lambda: chosen_by_kernels(module, one, inputs.q, *rest), one, group, inputs, cap
