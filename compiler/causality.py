"""Causality of choices: which later tokens decide what a query sees (of the choice: the mask itself is always causal).

    strict    none do: no earlier row changes when later tokens change
    block     those of the query's own block, or near it
    sequence  any: the last queries, or the whole sequence, decide for all rows
    none      the mixer sees later tokens anyway (`causal = false`)

Strict choices may be trained, prefilled in chunks, and have their prefixes cached. Others leak, and are refused there unless
the spec says `selection = noncausal`; a block's choice is the same in chunks that are whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from attnc.compiler.mixers.full import Full
from attnc.compiler.mixers.routed.choice import Last, QueryBlock
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.mixers.routed.units import Clusters, Mean
from attnc.compiler.origin import span_of
from attnc.compiler.print_value import print_value
from attnc.compiler.selectors import ranges
from attnc.compiler.spec import (
    PHASES,
    Attention,
    Choose,
    Context,
    Mixer,
    Mixing,
    Route,
    Spec,
    When,
)
from attnc.compiler.value import Origin, Value
from attnc.compiler.walk import children, reachable
from attnc.dsl.diagnostic import Diagnostic, SpecError

Causality = Literal["strict", "block", "sequence", "none"]
CLASSES: tuple[Causality, ...] = ("strict", "block", "sequence", "none")
"""From the one that promises most."""

Use = Literal["training", "chunked_prefill", "prefix_cache"]
USES: dict[Use, str] = {"training": "A301", "chunked_prefill": "A302", "prefix_cache": "A303"}
"""What refuses a choice that leaks, each with its code."""


NAMES: dict[Use, str] = {"training": "training", "chunked_prefill": "prefill in chunks", "prefix_cache": "a cached prefix"}
PHASE_OF: dict[Use, str] = {"training": "train", "chunked_prefill": "prefill", "prefix_cache": "prefill"}
"""The phase that meets each use."""


class Found(NamedTuple):
    """The class of one choice and why; `multiple`: of how many tokens chunks must be multiples for it to be the same."""

    causality: Causality
    reason: str = ""
    multiple: int | None = None


STRICT = Found("strict")


class Choice(Value):
    """Something that decides what some layers see, those of one rule.

    `phases`: where it may run; `accepted`: by the spec, for these uses; `evicts`: it drops keys.
    """

    layers: tuple[int, ...] = ()
    causality: Causality
    reason: str
    multiple: int | None
    phases: tuple[str, ...]
    accepted: tuple[Use, ...] = ()
    evicts: bool = False
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


def of_kind(kind: Routed, earlier: Causality = "strict") -> Found:
    """The class of a selector; `earlier` is that of the choice which `from = previous` takes over."""
    if kind.from_ is not None:
        return Found(earlier, "`from = previous` takes over a choice that looks ahead" if earlier != "strict" else "")
    found = [_of_unit(kind), _of_queries(kind), _of_chunks(kind)]
    found += [of_kind(part, earlier) for part in kind.within or () if isinstance(part, Routed)]
    found = [one for one in found if one.causality != "strict"]
    if not found:
        return STRICT
    first = max(found, key=lambda one: CLASSES.index(one.causality))
    multiples = [one.multiple for one in found if one.multiple is not None]
    return first._replace(multiple=math.lcm(*multiples) if len(multiples) == len(found) else None)


def _of_unit(kind: Routed) -> Found:
    if isinstance(kind.unit, Clusters):
        return Found("sequence", "clusters take their best tokens of the whole sequence")
    return STRICT


def _of_queries(kind: Routed) -> Found:
    match kind.queries:
        case QueryBlock(n=n) if n > 1:
            return Found("block", f"`queries = {print_value(kind.queries)}`: a block of {n} queries asks as one", n)
        case Last():
            return Found("sequence", f"`queries = {print_value(kind.queries)}`: the last queries decide for all")
        case _:
            return STRICT


def _of_chunks(kind: Routed) -> Found:
    if isinstance(kind.unit_keys, Mean) and kind.unit_keys.chunks is not None:
        return Found("block", "`chunks = predicted(...)`: where a chunk ends depends on the tokens after it")
    return STRICT


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
        choice.model_copy(update={"layers": tuple(layers)})
        for (_, before), layers in rules.items()
        for choice in _of_mixer(spec.layers[layers[0]].mixer, frozenset(PHASES), before)
    )


def _left(mixer: Mixer, earlier: Causality) -> Causality:
    """The class of the choice that layers after this one may take over."""
    own = [of_kind(kind).causality for kind in _routed(mixer) if kind.from_ is None]
    return worst(own) if own else "strict" if _has_full(mixer) else earlier


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
        "prefix_cache": "prefill" in choice.phases or choice.evicts,
    }
    yield from (use for use, meets in met.items() if meets and use not in choice.accepted)


def _of_mixer(mixer: Mixer, phases: frozenset[str], earlier: Causality) -> Iterator[Choice]:
    """The choices in a mixer, with every alternative of a `choose`: the tuner may take any."""
    if isinstance(mixer, Attention | Mixing | Context) and not mixer.attributes.causal:
        found = Found("none", "`causal = false` sees later tokens")
        yield _choice(found, phases, mixer.origin)
        return
    match mixer:
        case Attention(keys=keys):
            for kind in keys:
                if isinstance(kind, Routed):
                    accepted = tuple(USES) if kind.selection == "noncausal" else ()
                    yield _choice(of_kind(kind, earlier), phases, mixer.origin, accepted, kind.evict)
        case Route(per="layer" | "head"):
            found = Found("sequence", f"`route(per = {mixer.per})` decides once for the whole prompt")
            yield _choice(found, phases, mixer.origin, ("training",))
        case _:
            pass
    if isinstance(mixer, When):
        for case, left in reachable(mixer.cases, phases):
            yield from _of_mixer(case.mixer, left, earlier)
    else:
        for inner in children(mixer):
            yield from _of_mixer(inner, phases, earlier)


def _choice(
    found: Found, phases: frozenset[str], origin: Origin, accepted: tuple[Use, ...] = (), evicts: bool = False
) -> Choice:
    return Choice(
        causality=found.causality,
        reason=found.reason,
        multiple=found.multiple,
        phases=tuple(phase for phase in PHASES if phase in phases),
        accepted=accepted,
        evicts=evicts,
        origin=origin,
    )


def _routed(mixer: Mixer) -> Iterator[Routed]:
    if isinstance(mixer, Attention):
        yield from (kind for kind in mixer.keys if isinstance(kind, Routed))
    for inner in children(mixer):
        yield from _routed(inner)


def _has_full(mixer: Mixer) -> bool:
    """Whether a layer sees everything, so that its largest weights are a choice; of a `choose` by default."""
    if isinstance(mixer, Attention):
        return any(isinstance(kind, Full) for kind in mixer.keys)
    inside = children(mixer)[:1] if isinstance(mixer, Choose) else children(mixer)
    return any(_has_full(inner) for inner in inside)
