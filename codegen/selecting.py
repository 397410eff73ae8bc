"""What content chooses, as source: the selectors of a head group, their formulas, and what a cache holds for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from attnc.compiler.families import Selector, Sublinear
from attnc.compiler.graph import HeadGroup, Mix
from attnc.compiler.mixer import Kind, Scores
from attnc.compiler.mixers import MIXERS
from attnc.compiler.part_names import part_names
from attnc.compiler.plan import meets
from attnc.compiler.spec import Model
from attnc.compiler.value import Share


def selector(kind: Kind) -> Selector:
    """How a kind chooses."""
    chooses = MIXERS[kind.kind].chooses
    assert chooses is not None, f"{kind.kind} chooses keys"
    return chooses(kind)


def selector_text(kind: Kind, held: str, reference: str) -> str:
    """The runtime's Selector; what is as its defaults is left out."""
    found = selector(kind)
    given = {one.name: getattr(found, one.name) for one in fields(found)}
    usual = {one.name: one.default for one in fields(found)}
    texts = [f"{name}={_value(value)}" for name, value in given.items() if value != usual[name]]
    texts += [f'held="{held}"'] if held else []
    return f"Selector({', '.join(texts)}, reference=reference.{reference})"


def _value(value: object) -> str:
    match value:
        case str():
            return f'"{value}"'
        case Share(percent=percent):
            return f"Share({percent!r})"
        case Sublinear(k=k, start=start, exponent=exponent):
            return f"Sublinear({k}, {start}, {exponent!r})"
        case _:
            return repr(value)


def held_names(mix: Mix) -> dict[Kind, str]:
    """The kinds of a launch that choose while decoding, and the names below which a cache holds what stands for their units."""
    kinds = dict.fromkeys(kind for _, kind in _decoding(mix) if not selector(kind).previous)
    names = part_names([kind.kind for kind in kinds])
    return dict(zip(kinds, names, strict=True))


def pooled_texts(mix: Mix, model: Model) -> list[str]:
    """The runtime's Pooled of a launch: what it keeps of runs of keys, for each run of KV heads that scores by them."""
    found = []
    for kind, name in held_names(mix).items():
        heads = sorted(
            {head for group, other in _decoding(mix) if other == kind for head in range(group.first, group.last + 1)}
        )
        starts = [head for head in heads if head - 1 not in heads]
        ends = [head for head in heads if head + 1 not in heads]
        for one in MIXERS[kind.kind].growing(kind, mix.attributes, model):
            if one.step == 0 or one.of is not None:  # one for the sequence, a state; or what another branch keeps
                continue
            pool = f', pool="{one.name}"' if one.name in ("min", "max", "indexer", "learned", "k", "v") else ""
            for first, last in zip(starts, ends, strict=True):
                at = "0, 0" if len(one.shape) == 1 else f"{first - mix.first}, {last - mix.first}"
                found.append(
                    f'Pooled("{name}.{one.name}.{first}", {at}, {one.shape[-1]}, span={one.span}, step={one.step}{pool})'
                )
    return found


def state_texts(mix: Mix, model: Model) -> list[str]:
    """The runtime's States of a launch: what queries of earlier calls ask."""
    found = []
    for kind, name in held_names(mix).items():
        states = MIXERS[kind.kind].state(kind, mix.attributes, model)
        found += [f'State("{name}.{key}", {shape!r}, torch.float32)' for key, shape in states.items()]
        growing = MIXERS[kind.kind].growing(kind, mix.attributes, model)
        found += [f'State("{name}.{one.name}", {one.shape!r}, torch.{one.dtype})' for one in growing if one.step == 0]
    return found


def scorers(mixes: Sequence[Mix], model: Model) -> list[Scores]:
    """What scores by weights of its own in some launches, each once."""
    found = [MIXERS[kind.kind].scores(kind, mix.attributes, model) for mix in mixes for kind in choices(mix)]
    return list({one.module: one for one in found if one is not None}.values())


def choices(mix: Mix) -> list[Kind]:
    """All that content chooses in a launch, each once."""
    return list(dict.fromkeys(kind for variant in mix.variants for group in variant.groups for kind in group.choices))


def takes(mix: Mix) -> set[str]:
    """What a launch takes over: the choice of an earlier layer, or the summary of another branch."""
    found = [selector(kind) for kind in choices(mix)]
    return {"choice" for one in found if one.previous} | {"summary" for one in found if one.keys == "summary"}


def _decoding(mix: Mix) -> Iterator[tuple[HeadGroup, Kind]]:
    """What the groups choose in variants that may decode."""
    for variant in mix.variants:
        if meets(variant.guards, "decode"):
            for group in variant.groups:
                yield from ((group, kind) for kind in group.choices)


def formulas(kind: Kind) -> tuple[Callable[..., Any], ...]:
    """The functions that say in plain tensors how a kind chooses; the last one is called."""
    return MIXERS[kind.kind].formulas


def chosen_text(name: str, kind: Kind, visible: str, ratio: int) -> str:
    """The function of reference.py that says which keys a kind chooses beside those that `visible` shows."""
    one = selector(kind)
    if one.keys == "chunks":
        formula = formulas(kind)[-1].__name__
        return (
            f"def {name}(k: Any, v: Any, i: Any, net: Any) -> Any:\n"
            f'    """A key and a value for each chunk beside {visible}: see {formula}."""\n'
            f"    return {formula}(k, v, i, net, ({one.span}, {one.step}))"
        )
    asks = ("joined", one.many, one.span) if one.keys == "joined" else (one.asks, one.many, one.every)
    values = {
        "asks": f'(("{asks[0]}", {asks[1]}, {asks[2]}), call)',
        "unit": '"diagonals"' if one.diagonals else f"{one.unit}",
        "runs": f'("{one.keys}", {one.span}, {one.step})',
        "score": f'("{one.score}", {one.lse})',
        "heads": f'("{one.shared}", {ratio}, "{one.heads}")',
        "fold": f'"{one.fold}"',
        "keep": f'(({_amount(one)}), {(one.at_least, one.at_most)}, "{one.overlap}")',
    }
    words = "".join(f"        {key}={value},\n" for key, value in values.items())
    formula = formulas(kind)[-1].__name__
    return (
        f"def {name}(q: Any, k: Any, i: Any, length: int, logit: Any, call: Any) -> Any:\n"
        f'    """What content chooses beside {visible}: see {formula}."""\n'
        f"    shown = functools.partial({visible}, length=length)\n"
        f"    return {formula}(\n        q,\n        k,\n        i,\n        shown,\n        logit=logit,\n{words}    )"
    )


def _amount(one: Selector) -> str:
    match one.top_k:
        case Share(percent=percent):
            return f'"top_k", share({percent!r}, length // {one.unit})'
        case Sublinear(k=k, start=start, exponent=exponent):
            return f'"top_k", {k} if length <= {start} else int({k} * (length / {start}) ** {exponent!r})'
        case int():
            return f'"top_k", {one.top_k}'
        case _:
            return f'"threshold", {one.threshold!r}' if one.top_p is None else f'"top_p", {one.top_p!r}'
