"""Causality of choices: which later tokens decide what a query sees (of the choice: the mask itself is always causal).

    strict    none do: no earlier row changes when later tokens change
    block     those of the query's own block, or near it
    sequence  any: the last queries, or the whole sequence, decide for all rows
    none      the mixer sees later tokens anyway (`causal = false`)

Strict choices may be trained, prefilled in chunks, and have their prefixes cached. Others leak, and are refused there unless
the spec says `selection = noncausal`; a block's choice is the same in chunks that are whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from attnc.compiler.mixer import CLASSES, Causality, Selection
from attnc.compiler.mixers import MIXERS
from attnc.compiler.origin import span_of
from attnc.compiler.previous import makes_choice
from attnc.compiler.selectors import ranges
from attnc.compiler.spec import (
    PHASES,
    Attention,
    Context,
    Mixer,
    Mixing,
    Route,
    Spec,
    When,
)
from attnc.compiler.value import Origin, Value
from attnc.compiler.walk import children, kinds, reachable
from attnc.dsl.diagnostic import Diagnostic, SpecError

Use = Literal["training", "chunked_prefill", "prefix_cache"]
USES: dict[Use, str] = {"training": "A301", "chunked_prefill": "A302", "prefix_cache": "A303"}
"""What refuses a choice that leaks, each with its code."""


NAMES: dict[Use, str] = {"training": "training", "chunked_prefill": "prefill in chunks", "prefix_cache": "a cached prefix"}
PHASE_OF: dict[Use, str] = {"training": "train", "chunked_prefill": "prefill", "prefix_cache": "prefill"}
"""The phase that meets each use."""


class Choice(Value):
    """Something that decides what some layers see, those of one rule.

    `phases`: where it may run; `accepted`: by the spec, for these uses; `drops`: it drops keys.
    """

    layers: tuple[int, ...] = ()
    causality: Causality
    reason: str
    multiple: int | None
    phases: tuple[str, ...]
    accepted: tuple[Use, ...] = ()
    drops: bool = False
    origin: Origin


class Refusal(Value):
    """A use that a choice forbids; chunks and cached prefixes of multiples of `multiple` tokens are allowed all the same."""

    use: Use
    code: str
    layers: tuple[int, ...]
    message: str
    multiple: int | None
    origin: Origin


def worst(found: Iterator[Causality] | list[Causality]) -> Causality:
    """The class that promises least; strict for nothing."""
    return max(found, key=CLASSES.index, default="strict")


def choices(spec: Spec) -> tuple[Choice, ...]:
    """All that decide, in the order of the layers; those of one rule share them."""
    rules: dict[tuple[int, Causality], list[int]] = {}
    left: dict[tuple[int, Causality], Causality] = {}
    earlier: Causality = "strict"
    for layer in spec.layers:
        key = (id(layer.mixer), earlier)
        rules.setdefault(key, []).append(layer.index)
        if key not in left:
            left[key] = _left(layer.mixer, earlier)
        earlier = left[key]
    return tuple(
        replace(choice, layers=tuple(layers))
        for (_, before), layers in rules.items()
        for choice in _of_mixer(spec.layers[layers[0]].mixer, frozenset(PHASES), before)
    )


def _left(mixer: Mixer, earlier: Causality) -> Causality:
    """The class of the choice that layers after this one may take over."""
    own = [MIXERS[kind.kind].selection(kind, earlier) for kind, _ in kinds(mixer) if makes_choice(kind)]
    return worst([one.causality if one else "strict" for one in own]) if own else earlier


def causality(spec: Spec) -> Causality:
    """The class of a spec: of its worst choice."""
    return worst([one.causality for one in choices(spec)])


def by_layer(spec: Spec) -> tuple[Causality, ...]:
    """The class of each layer."""
    found: dict[int, list[Causality]] = {layer.index: [] for layer in spec.layers}
    for one in choices(spec):
        for layer in one.layers:
            found[layer].append(one.causality)
    return tuple(worst(here) for here in found.values())


def refusals(spec: Spec) -> tuple[Refusal, ...]:
    """Which uses the choices of a spec forbid (rule 3), once for each place in the file."""
    found: dict[tuple[Use, Origin, str], Refusal] = {}
    for choice in choices(spec):
        for use in _forbidden(choice):
            key = (use, choice.origin, choice.reason)
            before = found[key].layers if key in found else ()
            multiple = choice.multiple if use != "training" else None
            layers = tuple(sorted({*before, *choice.layers}))
            found[key] = Refusal(
                use=use, code=USES[use], layers=layers, message=choice.reason, multiple=multiple, origin=choice.origin
            )
    return tuple(found.values())


def refuse(spec: Spec, use: Use) -> None:
    """Raises SpecError with a diagnostic for each choice that forbids a use."""
    found = [_diagnostic(one) for one in refusals(spec) if one.use == use]
    if found:
        raise SpecError(found)


def _diagnostic(one: Refusal) -> Diagnostic:
    whole = f"in multiples of {one.multiple} tokens, " if one.multiple else ""
    message = f"{NAMES[one.use]} of layers {ranges(list(one.layers))} would change what is chosen: {one.message}"
    if one.use == "training":
        message = f"training of layers {ranges(list(one.layers))} would see ahead: {one.message}"
    expected = f"{whole}a choice that looks back, or `selection = noncausal`"
    help_line = f"decide by `phase`: `when {{ phase == {PHASE_OF[one.use]}: full, else: ... }}`"
    return Diagnostic(one.code, message, span_of(one.origin), expected, help=help_line)


def _forbidden(choice: Choice) -> Iterator[Use]:
    """A cached prefix is that of a prefill, unless decoding dropped some of it."""
    if choice.causality not in ("block", "sequence"):
        return
    met: dict[Use, bool] = {
        "training": "train" in choice.phases,
        "chunked_prefill": "prefill" in choice.phases,
        "prefix_cache": "prefill" in choice.phases or choice.drops,
    }
    yield from (use for use, meets in met.items() if meets and use not in choice.accepted)


def _of_mixer(mixer: Mixer, phases: frozenset[str], earlier: Causality) -> Iterator[Choice]:
    """The choices in a mixer, with every alternative of a `choose`: the tuner may take any."""
    if isinstance(mixer, Attention | Mixing | Context) and not mixer.attributes.causal:
        found = Selection("none", "`causal = false` sees later tokens")
        yield _choice(found, phases, mixer.origin)
        return
    match mixer:
        case Attention(keys=keys):
            for kind in keys:
                chosen = MIXERS[kind.kind].selection(kind, earlier)
                if chosen is not None:
                    yield _choice(chosen, phases, mixer.origin, tuple(USES) if chosen.accepted else ())
        case Route(per="layer" | "head"):
            found = Selection("sequence", f"`route(per = {mixer.per})` decides once for the whole prompt")
            yield _choice(found, phases, mixer.origin, ("training",))
        case _:
            pass
    if isinstance(mixer, When):
        for case, left in reachable(mixer.cases, phases):
            yield from _of_mixer(case.mixer, left, earlier)
    else:
        for inner in children(mixer):
            yield from _of_mixer(inner, phases, earlier)


def _choice(found: Selection, phases: frozenset[str], origin: Origin, accepted: tuple[Use, ...] = ()) -> Choice:
    return Choice(
        causality=found.causality,
        reason=found.reason,
        multiple=found.multiple,
        phases=tuple(phase for phase in PHASES if phase in phases),
        accepted=accepted,
        drops=found.drops,
        origin=origin,
    )
