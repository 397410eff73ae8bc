"""Tables of others as policies: MInference's patterns of heads, and DuoAttention's numbers of KV heads."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from attnc.compiler.mixer import Kind
from attnc.compiler.policies import rows, trouble
from attnc.compiler.policy import Machine, Policy, Setting, spec_digest
from attnc.compiler.spec import Attention, Spec
from attnc.compiler.tuning import TrainedGate
from attnc.compiler.unit_parts import chooses
from attnc.compiler.units import Candidate, Unit, Units
from attnc.compiler.walk import every, first_leaf

Format = Literal["minference", "duo"]


class Pattern(NamedTuple):
    """`lines`: so many columns and diagonals; `near`: so many first and last keys; `blocks`: so many blocks."""

    kind: Literal["lines", "near", "blocks"]
    first: int
    second: int


WORDS: dict[str, Literal["lines", "near", "blocks"]] = {
    "vertical_and_slash": "lines",
    "stream_llm": "near",
    "block_sparse": "blocks",
}
"""What MInference calls them."""


def imported(spec: Spec, path: Path, form: Format, machine: Machine, say: Callable[[str], None]) -> Policy:
    """The policy of a table. Raises SpecError A605 where it is of another model."""
    units = Units(spec)
    every_unit = [unit for unit in units.all() if unit.per == "head"]
    if len(every_unit) != spec.model.layers:
        message = f"{spec.model.name} has no choose(per = head) in every layer"
        raise trouble("A605", message, path, "the table decides about the heads of every layer")
    read = _duo if form == "duo" else _minference
    picks = read(spec, units, every_unit, path, say)
    settings: list[Setting] = []
    for unit, own in zip(every_unit, picks, strict=True):
        settings += rows(unit, own, units.shared)
    made_by = {"duo": "DuoAttention", "minference": "MInference"}[form]
    return Policy(
        model=spec.model.name,
        spec=spec_digest(spec),
        made_by=f"{made_by}, {path.name}",
        machine=machine,
        settings=tuple(settings),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise trouble("A605", f"{path.name} cannot be read: {error}", path, "name the table's file") from error


def _duo(
    spec: Spec, _units: Units, every_unit: Sequence[Unit], path: Path, say: Callable[[str], None]
) -> list[list[Candidate]]:
    """A line for each layer with a number for each KV head: the largest of all keep the first alternative."""
    try:
        table = [[float(word) for word in line.split()] for line in _text(path).splitlines() if line.strip()]
    except ValueError as error:
        raise trouble(
            "A605", f"{path.name} is no table of numbers: {error}", path, "such as full_attention_heads.tsv"
        ) from error
    if len(table) != len(every_unit) or any(len(row) != unit.kv_heads for row, unit in zip(table, every_unit, strict=True)):
        found = f"{len(table)} x {len(table[0]) if table else 0}"
        message = f"{path.name} has {found} numbers, {spec.model.name} {len(every_unit)} x {every_unit[0].kv_heads} KV heads"
        raise trouble("A605", message, path, "take the table of this model")
    ranked = sorted(((value, -layer, -head) for layer, row in enumerate(table) for head, value in enumerate(row)), reverse=True)
    method = every_unit[0].by
    share = method.share.percent / 100 if isinstance(method, TrainedGate) else 0.5
    kept = {(-layer, -head) for _, layer, head in ranked[: round(share * len(ranked))]}
    say(f"{len(kept)} of {len(ranked)} KV heads keep {every_unit[0].candidates[0].name}")
    return [
        [unit.candidates[0 if (layer, head) in kept else -1] for head in range(unit.kv_heads)]
        for layer, unit in enumerate(every_unit)
    ]


def _minference(
    spec: Spec, units: Units, every_unit: Sequence[Unit], path: Path, say: Callable[[str], None]
) -> list[list[Candidate]]:
    """A dictionary for each layer, query head -> [pattern, number, number, score]; a KV group does what most of its heads do.

    A pattern that the spec lacks becomes the nearest one of its sort, which is said.
    """
    try:
        table = [
            {int(head): Pattern(WORDS[row[0]], int(row[1]), int(row[2])) for head, row in layer.items()}
            for layer in json.loads(_text(path))
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        message = f"{path.name} is no table of patterns: {type(error).__name__} {error}"
        raise trouble("A605", message, path, 'such as [{"0": ["vertical_and_slash", 1000, 6096, 0.9], ...}, ...]') from error
    if len(table) != len(every_unit):
        message = f"{path.name} has {len(table)} layers, {spec.model.name} {len(every_unit)}"
        raise trouble("A605", message, path, "take the table of this model")
    replaced: Counter[tuple[Pattern, str]] = Counter()
    found, differing = [], 0
    for unit, row in zip(every_unit, table, strict=True):
        ratio = _heads(units, unit) // unit.kv_heads
        if sorted(row) != list(range(ratio * unit.kv_heads)):
            message = f"layer {unit.layer} of {path.name} has {len(row)} heads, the spec {ratio * unit.kv_heads}"
            raise trouble("A605", message, path, "take the table of this model")
        known = {one: pattern_of(units, unit, one) for one in unit.candidates}
        own = []
        for group in range(unit.kv_heads):
            heads = [_nearest(row[head], known, replaced, path) for head in range(group * ratio, (group + 1) * ratio)]
            best = Counter(heads).most_common(1)[0][0]
            differing += sum(one != best for one in heads)
            own.append(best)
        found.append(own)
    for (pattern, name), count in replaced.items():
        say(f"{count} heads: {pattern.kind} {pattern.first} + {pattern.second} becomes {name}, the nearest that the spec has")
    if differing:
        say(f"{differing} heads do what most heads of their KV group do")
    return found


def _heads(units: Units, unit: Unit) -> int:
    return first_leaf(units.mixer(unit.place, unit.candidates[0])).attributes.heads


def pattern_of(units: Units, unit: Unit, candidate: Candidate) -> Pattern:
    """What a candidate looks like in MInference's words."""
    mixer = units.mixer(unit.place, candidate)
    paths = dict(chooses(units.spec.layers[unit.layer].mixer))
    for path, name in candidate.choose:
        mixer = next(one.mixer for one in paths[path].alternatives if one.name == name) if path in paths else mixer
    keys: list[Kind] = [key for one in every(mixer) if isinstance(one, Attention) for key in one.keys]
    routed: dict[str, Any] = {_word(key): key for key in keys if key.kind == "routed"}
    if "columns" in routed or "diagonals" in routed:
        columns, diagonals = (getattr(routed.get(word), "top_k", 0) for word in ("columns", "diagonals"))
        return Pattern("lines", int(columns or 0), int(diagonals or 0))
    if routed:
        return Pattern("blocks", int(getattr(next(iter(routed.values())), "top_k", 0) or 0), 0)
    sizes = {key.kind: int(getattr(key, "n", 0) or 0) for key in keys}
    return Pattern("near", sizes.get("sink", 0), sizes.get("window", 0))


def _word(key: Any) -> str:
    unit = key.unit
    return unit if isinstance(unit, str) else str(unit.word)


def _nearest(wanted: Pattern, known: dict[Candidate, Pattern], replaced: Counter[tuple[Pattern, str]], path: Path) -> Candidate:
    alike = [one for one, pattern in known.items() if pattern.kind == wanted.kind]
    if not alike:
        message = f"the spec has no alternative of {wanted.kind}, as {path.name} has"
        raise trouble("A605", message, path, "add one to the spec's choose")
    best = min(alike, key=lambda one: _far(known[one], wanted))
    if wanted.kind != "blocks" and known[best] != wanted:
        replaced[wanted, best.name] += 1
    return best


def _far(one: Pattern, other: Pattern) -> float:
    pairs = ((one.first, other.first), (one.second, other.second))
    return sum(abs(math.log(1 + a) - math.log(1 + b)) for a, b in pairs)
