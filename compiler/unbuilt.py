"""What a checked spec says that this version cannot build yet: kinds without a reference, values, combinations.

The language is wider than the compiler. `check` accepts all of it; whatever needs references asks here first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from attnc.compiler import unbuilt_states
from attnc.compiler.attributes import Attributes, LogPosition
from attnc.compiler.fields import fields
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS, stands
from attnc.compiler.origin import span_of
from attnc.compiler.overlay import block_size
from attnc.compiler.previous import held, in_branches
from attnc.compiler.print_value import print_value
from attnc.compiler.problems import words
from attnc.compiler.sharing import OWN_OF_CASES
from attnc.compiler.spec import (
    PHASES,
    Attention,
    Chain,
    Change,
    Choose,
    Context,
    Gate,
    Heads,
    Layer,
    Mixer,
    Mixing,
    Route,
    Select,
    Spec,
    When,
)
from attnc.compiler.taking import problems
from attnc.compiler.value import Origin, Share, Value
from attnc.compiler.walk import alternatives, children, default_leaves, leaves, parts
from attnc.dsl.diagnostic import Diagnostic, SpecError

CODE = "A101"

MOST = 50
"""Findings that anybody reads."""

LONGEST = 60
"""Characters of a value that a finding quotes."""

PLAIN_ROUTE: dict[str, object] = {
    "score": "softmax",
    "positions": "absolute",
    "sink_logit": None,
    "short_conv": None,
    "qk_from": None,
    "kv_latent": None,
    "input_ema": None,
}
"""Attributes that a route per token can have so far."""


BESIDE_LATENT: dict[str, object] = {
    "positions": "absolute",
    "qk_norm": None,
    "short_conv": None,
    "share_qk": False,
    "qk_from": None,
    "init_qk": None,
    "input_ema": None,
}
"""The only value, beside `kv_latent`, that each of these attributes can have so far."""


BESIDE_CHOICE: dict[str, object] = {
    "score": "softmax",
    "positions": "absolute",
    "qk_from": None,
    "causal": True,
}
"""The only value, beside a key set that content chooses, that each of these attributes can have so far."""


SHOWN = ("sink", "window", "block_local")
"""Key sets beside which something can stand for the others so far."""

BESIDE_CONDENSED: dict[str, object] = {"score": "softmax", "kv_latent": None, "qk_from": None, "causal": True}
"""The only value, beside something that stands for keys, that each of these attributes can have so far."""

BESIDE_CONTEXT: dict[str, object] = {
    "score": "softmax",
    "positions": "absolute",
    "kv_latent": None,
    "short_conv": None,
    "share_qk": False,
    "qk_from": None,
    "activation": None,
    "input_ema": None,
}
"""The only value, in the softmax of a context, that each of these attributes can have so far."""


class Finding(NamedTuple):
    """One thing that is not built yet: what, where, and what to write instead. `what` is a sentence without its end.

    A `kind` has other kinds in its place, which only a message names: to know them, the files of all kinds are read.
    """

    what: str
    origin: Origin
    expected: str
    help: str
    kind: str = ""


def unbuilt(spec: Spec) -> tuple[Diagnostic, ...]:
    """A diagnostic for each thing of the spec that is not built yet, in the order of its layers; empty if it builds."""
    return tuple(dict.fromkeys(map(_diagnostic, _findings(spec))))


def unbuilt_names(spec: Spec) -> tuple[str, ...]:
    """What is not built yet, each thing once."""
    return tuple(dict.fromkeys(one.what for one in _findings(spec)))


def _findings(spec: Spec) -> list[Finding]:
    found: dict[Finding, None] = {}
    seen: set[int] = set()
    built: set[int] = set()
    for layer in spec.layers:
        if id(layer.mixer) not in seen:  # layers of one rule hold the same mixer
            seen.add(id(layer.mixer))
            found |= dict.fromkeys(_of_mixer(layer.mixer, layer.origin, built))
            found |= dict.fromkeys(_of_decoding(layer.mixer, layer.origin))
            found |= dict.fromkeys(_of_summaries(layer.mixer, layer.origin))
    found |= dict.fromkeys(_taking_over(spec.layers))
    for layer, what, expected, help_line in problems(spec.layers):
        found[Finding(f"`from = previous` {what}", layer.origin, expected, help_line)] = None
    return list(found)[:MOST]


def refuse_unbuilt(spec: Spec) -> None:
    """Raises SpecError where something of the spec is not built yet."""
    found = unbuilt(spec)
    if found:
        raise SpecError(found)


def _diagnostic(one: Finding) -> Diagnostic:
    """The finding at its line, with the text that the spec holds of it."""
    expected, help_line = _other_kinds(one.kind) if one.kind else (one.expected, one.help)
    return Diagnostic(CODE, f"{one.what} is not built yet", span_of(one.origin), expected, help=help_line)


def _other_kinds(kind: str) -> tuple[str, str]:
    """What could stand for a kind, and the help line."""
    taken = {"keys": ("keys",), "mixer": ("keys", "mixer"), "change": ("change",)}[MIXERS[kind].type]
    built = [name for name, other in MIXERS.items() if other.built and other.type in taken]
    if not built:
        return "a layer without it", f"leave `{kind}` out"
    return f"a kind that this version builds: {words(built)}", f"write another kind for `{kind}`, or wait for it"


def _of_mixer(mixer: Mixer, at: Origin, built: set[int]) -> Iterator[Finding]:
    """The findings of a mixer and all inside; `at` is the nearest origin around it.

    `built`: the ids of values without a finding, which many heads share.
    """
    at = getattr(mixer, "origin", at)
    match mixer:
        case Attention(keys=keys, attributes=attributes):
            for kind in keys:
                yield from _of_kind(kind, at, built)
            yield from _of_values(attributes, "a mixer", at, built)
            if attributes.kv_latent is not None:
                yield from _of_latent(mixer, at)
            yield from _of_choice(mixer, at)
            yield from _of_condensed(mixer, at)
        case Mixing(kind=kind, attributes=attributes):
            yield from _of_kind(kind, at, built)
            yield from _of_values(attributes, "a mixer", at, built)
            if attributes.input_ema is not None:
                yield Finding(f"`input_ema` of `{kind.kind}`", at, "`input_ema` of key sets", "leave `input_ema` out")
        case Change(kind=kind):
            yield from _of_kind(kind, at, built)
        case Context() | Select():
            yield from _of_wrapped(mixer, at, built)
        case Heads() | When() | Choose() | Route():
            yield from _of_block(mixer, at, built)
            if isinstance(mixer, Heads):
                yield from _of_latent_heads(mixer, at)
                yield from _of_choosing_heads(mixer, at)
        case Chain() | Gate():
            yield from _of_several(mixer, at)
    for inner in children(mixer)[: 1 if isinstance(mixer, Choose) else None]:
        yield from _of_mixer(inner, at, built)


def _of_wrapped(mixer: Context | Select, at: Origin, built: set[int]) -> Iterator[Finding]:
    if isinstance(mixer, Select):
        yield Finding("`select`", at, "a layer without `select`", "write a mixer without `select`")
        return
    yield from _of_values(mixer.attributes, "a mixer", at, built)
    yield from _beside(mixer.attributes, BESIDE_CONTEXT, "context", at)


def _of_several(mixer: Chain | Gate, at: Origin) -> Iterator[Finding]:
    """What mixers cannot have together so far."""
    match mixer:
        case Chain(gated=True, parts=(*_, last)) if unbuilt_states.beside_states(last):
            help_line = "leave `output_gate` out, or write the state as a branch of its own"
            yield Finding(
                "`output_gate` around a chain that ends with states for some heads", at, "a chain without it", help_line
            )
        case Chain(gated=True, parts=(*_, last)) if not _is_softmax(last) and not isinstance(last, Mixing | Route):
            help_line = "set `output_gate` in the braces of the last mixer"
            yield Finding("`output_gate` around a chain that ends with several mixers", at, "one mixer at its end", help_line)
        case Gate(shared=shared, parts=parts) if shared and (
            not all(map(_is_softmax, parts)) or any(map(unbuilt_states.beside_states, parts))
        ):
            expected = "branches that are softmax over key sets"
            yield Finding("a gate that shares projections with a state", at, expected, "leave `shared` out")
        case Gate(shared=shared) if shared and any(one.attributes.kv_latent for one in held(mixer)):
            yield Finding("a gate that shares the projections of a `kv_latent`", at, "branches apart", "leave `shared` out")


def _of_latent(mixer: Attention, at: Origin) -> Iterator[Finding]:
    """What a latent of K and V cannot have beside it so far."""
    for key, value in BESIDE_LATENT.items():
        if getattr(mixer.attributes, key) != value:
            yield Finding(f"`{key}` beside `kv_latent`", at, f"`kv_latent` without `{key}`", f"leave `{key}` out")
    if any(MIXERS[kind.kind].own_keys(kind) for kind in mixer.keys):
        yield Finding("`persistent` beside `kv_latent`", at, "key sets of the sequence alone", "leave `persistent` out")


def _of_choice(mixer: Attention, at: Origin) -> Iterator[Finding]:
    """What keys that content chooses cannot have beside them so far."""
    chosen = [kind.kind for kind in mixer.keys if MIXERS[kind.kind].chooses is not None and not stands(kind)]
    if chosen:
        yield from _beside(mixer.attributes, BESIDE_CHOICE, chosen[0], at)
    for kind in mixer.keys if mixer.attributes.kv_latent is not None else ():
        if kind.kind in chosen and not MIXERS[kind.kind].own_scores(kind):
            what = f"`kv_latent = {mixer.attributes.kv_latent}` beside `{kind.kind}`"
            expected = f"`{kind.kind}` with queries and keys of its own to score by"
            yield Finding(what, at, expected, "leave `kv_latent` out, or write `keys = indexer(...)`")


def _beside(attributes: Attributes, only: dict[str, object], word: str, at: Origin) -> Iterator[Finding]:
    """Attributes that have another value than the only one that is built beside something."""
    for key, value in only.items():
        given = getattr(attributes, key)
        if given != value:
            shown = print_value(given) if isinstance(given, Value) else str(given).lower()
            yield Finding(f"`{key} = {shown}` beside `{word}`", at, f"`{word}` without `{key}`", f"leave `{key}` out")


def _of_summaries(mixer: Mixer, at: Origin) -> Iterator[Finding]:
    """Choices by the summary of a branch: one that comes before, and no other union has keys of its own beside it."""
    before: list[Kind] = []
    for part in parts(mixer):
        here = [kind for leaf in leaves(part.mixer) if isinstance(leaf, Attention) for kind in leaf.keys]
        pooled = [kind for kind in here if kind.kind == "summary" and not stands(kind)]
        for kind in here:
            asked = getattr(kind, "keys", None)
            if isinstance(asked, Kind) and asked not in before:
                what = f"`keys = {print_value(asked)}` of `{kind.kind}` without such a branch before it"
                yield Finding(what, at, "`gate(A, B, ...)` in which A is that summary", "let an earlier branch be the summary")
        own = [kind for kind in here if MIXERS[kind.kind].chooses is not None and kind not in pooled and not stands(kind)]
        if len(pooled) > 1 or (pooled and own):
            expected = "a summary beside key sets by position"
            yield Finding("a summary beside another one or beside `routed`", at, expected, "write them as branches of a gate")
        before += pooled


def _of_condensed(mixer: Attention, at: Origin) -> Iterator[Finding]:
    """What a union cannot have so far in which something stands for keys that it does not show."""
    a = mixer.attributes
    if a.input_ema is not None and a.qk_from is not None:
        yield Finding("`input_ema` beside `qk_from`", at, "q and k of its own", "leave `input_ema` out")
    stand = [key for key in mixer.keys if stands(key)]
    rest = [key for key in mixer.keys if key not in stand]
    if not stand:
        return
    word = stand[0].kind
    yield from _beside(a, BESIDE_CONDENSED, word, at)
    if len(stand) > 1:
        yield Finding(f"`{stand[1].kind}` beside `{word}`", at, "one of them", f"leave `{stand[1].kind}` out")
    for key in rest:
        if key.kind not in SHOWN or isinstance(vars(key).get("n"), Share):
            expected = "`sink`, `window` or `block_local` of so many tokens"
            yield Finding(f"`{print_value(key)}` beside `{word}`", at, expected, f"leave `{key.kind}` out")
    if a.positions not in ("absolute", "chunk"):
        yield Finding(f"`positions = {a.positions}` beside `{word}`", at, "positions in the text", "leave `positions` out")
    for kind in stand:
        yield from (Finding(one.what, at, one.expected, one.help) for one in MIXERS[kind.kind].beside(kind, tuple(rest)))


def _of_decoding(mixer: Mixer, at: Origin) -> Iterator[Finding]:
    """Choices that are made of whole prompts alone, or that a cache holds nothing for where prompts make them."""
    for part in parts(mixer):
        own = [
            {kind for leaf in found if isinstance(leaf.mixer, Attention) for kind in leaf.mixer.keys if _scores(kind)}
            for phase in ("prefill", "decode")
            for found in (list(default_leaves(part.mixer, 0, 0, frozenset({phase}) & part.phases)),)
        ]
        for kind in own[0] - own[1]:
            what = f"`{print_value(kind)}` in prompts alone"
            yield Finding(what, getattr(part.mixer, "origin", at), "the same choice while decoding", "leave `phase` out")
        for leaf in default_leaves(part.mixer, 0, 0, frozenset({"decode"}) & part.phases):
            for kind in leaf.mixer.keys if isinstance(leaf.mixer, Attention) else ():
                if not MIXERS[kind.kind].decodes(kind):
                    what = f"`{print_value(kind)}` while decoding"
                    where = getattr(leaf.mixer, "origin", at)
                    yield Finding(
                        what, where, "a choice of prompts alone", "write `when { phase == prefill: ..., else: full }`"
                    )


def _scores(kind: Kind) -> bool:
    """Whether a kind scores by keys of its own, which a cache must hold."""
    return MIXERS[kind.kind].own_scores(kind)


def _of_choosing_heads(mixer: Heads, at: Origin) -> Iterator[Finding]:
    """Choices of some heads that would need to know of others: who asks for a layer, or keeps what earlier calls asked."""
    found = (kind for case in mixer.cases for leaf in leaves(case.mixer) if isinstance(leaf, Attention) for kind in leaf.keys)
    for kind in found:
        chooses = MIXERS[kind.kind].chooses
        if chooses is not None and MIXERS[kind.kind].whole_layer(kind):
            what = f"`{print_value(kind)}` for some heads of a layer"
            yield Finding(
                what, at, "one choice for all heads, or `queries = each` and a choice for each KV head", "leave `heads` out"
            )


def _of_latent_heads(mixer: Heads, at: Origin) -> Iterator[Finding]:
    """One launch reads a latent for all heads: they differ in key sets alone."""
    found = [leaf for case in mixer.cases for leaf in leaves(case.mixer) if isinstance(leaf, Attention)]
    if not any(leaf.attributes.kv_latent for leaf in found):
        return
    for leaf in found:
        key = _different(leaf, found[0])
        if key:
            what = f"`heads` of one `kv_latent` that differ in `{key}`"
            yield Finding(what, at, "the same attributes in every case", f"set `{key}` around the block")
            return
    if not all(isinstance(case.mixer, Attention) for case in mixer.cases):
        yield Finding("blocks within `heads` of one `kv_latent`", at, "key sets as cases", "write the block around `heads`")


def _is_softmax(mixer: Mixer) -> bool:
    return isinstance(mixer, Attention | Heads | When | Choose)


def _keeps_states(mixer: Mixer) -> bool:
    """Whether it is a kind with a state a head, of which others say what is built."""
    return isinstance(mixer, Mixing) and MIXERS[mixer.kind.kind].per_head


def _of_kind(kind: Kind, at: Origin, built: set[int]) -> Iterator[Finding]:
    mixer = MIXERS[kind.kind]
    if mixer.built:
        yield from _of_values(kind, f"`{kind.kind}`", at, built)
        for lacking in mixer.unbuilt(kind):
            yield Finding(lacking.what, at, lacking.expected, lacking.help)
        return
    yield Finding(f"the kind `{kind.kind}`", at, "", "", kind.kind)


def _of_values(value: Value, owner: str, at: Origin, built: set[int]) -> Iterator[Finding]:
    """Values of the fields of a kind, of attributes or of a router that are marked as not built, however deep."""
    if id(value) in built:
        return
    found = list(_of_fields(value, owner, at, built))
    if not found:
        built.add(id(value))
    yield from found


def _of_fields(value: Value, owner: str, at: Origin, built: set[int]) -> Iterator[Finding]:
    for field in fields(type(value)).values():
        given = getattr(value, field.name)
        if not field.builds(given):
            said = print_value(given)
            shown = f"`{field.key} = {said}`" if len(said) <= LONGEST else f"`{field.key}`"
            help_line = f"use another `{field.key}`" if field.required else f"leave `{field.key}` out"
            yield Finding(f"{shown} of {owner}", at, "a value that this version builds", help_line)
            continue
        for inner in given if isinstance(given, tuple) else (given,):
            if isinstance(inner, Kind):
                yield from _of_kind(inner, at, built)
            elif isinstance(inner, Value):
                yield from _of_values(inner, f"`{field.key}`", at, built)


def _of_block(mixer: Heads | When | Choose | Route, at: Origin, built: set[int]) -> Iterator[Finding]:
    """What the alternatives of a block cannot have apart: they share one set of q, k, v and o."""
    word = mixer.node
    inner = [one for _, one, _ in alternatives(mixer, frozenset(PHASES))]
    if isinstance(mixer, Choose) and not all(map(_is_softmax, inner)):  # until the tuner decides the first one holds
        inner = inner[:1]
        if not _is_softmax(inner[0]):
            return
    if isinstance(mixer, Route) and mixer.per != "token":
        shown = "chunk(n)" if mixer.per == "chunk" else mixer.per
        yield Finding(f"`route(per = {shown})`", at, "`route(per = token)`", "write `choose`, or `route(per = token)`")
    if isinstance(mixer, Route):
        yield from _of_values(mixer.by, f"`{mixer.by.word}`", at, built)
    apart = list(_of_own_weights(mixer, inner, at))
    yield from apart
    if apart:
        return
    found = [leaf for one in inner for leaf in leaves(one) if isinstance(leaf, Attention)]
    for one in dict.fromkeys(key.kind for leaf in found for key in leaf.keys if stands(key)):
        yield Finding(f"`{one}` in cases of `{word}`", at, "key sets that show tokens", f"write `{one}` for a whole layer")
    if len({tuple(key for key in leaf.keys if MIXERS[key.kind].own_keys(key)) for leaf in found}) > 1:
        expected, help_line = "the same `persistent` in every case", "add `| persistent(n)` to every case"
        yield Finding(f"`persistent` in some cases of `{word}` only", at, expected, help_line)
    for key in OWN_OF_CASES.get(word, ()):
        if len({getattr(leaf.attributes, key) for leaf in found}) > 1:
            yield Finding(f"`{key}` in some cases of `{word}` only", at, f"one `{key}`", f"set `{key}` around the block")
    if isinstance(mixer, When | Route):
        yield from _of_one_launch(inner, word, at)
    if isinstance(mixer, Route) and mixer.per == "token":
        yield from _of_plain_route(found[0].attributes, at)


def _of_own_weights(mixer: Heads | When | Choose | Route, inner: list[Mixer], at: Origin) -> Iterator[Finding]:
    """Alternatives that are no softmax: kinds with a state for some heads, and what has weights of its own."""
    of_states: Iterable[unbuilt_states.Found] = ()
    if isinstance(mixer, Heads):
        of_states = unbuilt_states.of_heads(mixer)
    elif isinstance(mixer, When):
        of_states = unbuilt_states.of_cases(mixer)
    yield from (Finding(what, at, expected, help_line) for what, expected, help_line in of_states)
    if not all(_is_softmax(one) or (isinstance(mixer, Heads | When) and _keeps_states(one)) for one in inner):
        routed = any(isinstance(one, Route) for one in inner)
        what = f"`route` within `{mixer.node}`" if routed else f"`{mixer.node}` between mixers with weights of their own"
        yield Finding(what, at, "key sets as alternatives", f"move what is not a key set out of the `{mixer.node}`")


def _of_one_launch(inner: list[Mixer], word: str, at: Origin) -> Iterator[Finding]:
    """Alternatives for the same heads differ in key sets alone, so that one cache and one launch serve them all."""
    groups = max(leaf.attributes.kv_heads for one in inner for leaf in leaves(one))
    every = [leaf for one in inner for leaf in default_leaves(one, 0, groups - 1, frozenset(PHASES))]
    kinds_seen: dict[tuple[int, int, int], Any] = {(leaf.first, leaf.last, id(leaf.mixer)): leaf for leaf in every}
    distinct = list(kinds_seen.values())
    for place, leaf in enumerate(distinct):
        for other in distinct[:place]:
            key = _different(leaf.mixer, other.mixer) if other.first <= leaf.last and leaf.first <= other.last else ""
            if key:
                what = f"`{word}` between cases that differ in `{key}`"
                yield Finding(what, at, "the same attributes in every case", f"set `{key}` around the block")
                return


def _different(one: Attention, other: Attention) -> str:
    """An attribute that two softmaxes do not share."""
    for key, mine in vars(one.attributes).items():
        if mine != getattr(other.attributes, key):
            return key
    return "positions" if one.attributes.positions == "chunk" and _blocks(one) != _blocks(other) else ""


def _blocks(mixer: Attention) -> set[object]:
    """The sizes of blocks that `positions = chunk` counts."""
    return {block_size(kind) for kind in mixer.keys} - {None}


def _of_plain_route(attributes: Attributes, at: Origin) -> Iterator[Finding]:
    """What a route per token can say so far: plain softmax at absolute positions."""
    plain = PLAIN_ROUTE | ({"temperature": 1.0} if isinstance(attributes.temperature, LogPosition) else {})
    for key, value in plain.items():
        if getattr(attributes, key) != value:
            expected = "plain softmax in every alternative"
            yield Finding(f"`{key}` inside `route(per = token)`", at, expected, f"leave `{key}` out")


def _taking_over(layers: tuple[Layer, ...]) -> Iterator[Finding]:
    """`qk_from = previous` between layers of several branches: whose q and k are meant is not built."""
    own: Layer | None = None
    said: set[Origin] = set()
    for layer in layers:
        found = held(layer.mixer)
        takes = any(one.attributes.qk_from for one in found)
        several = own is not None and (in_branches(layer.mixer) or in_branches(own.mixer))
        if takes and own is not None and several and layer.origin not in said:
            said.add(layer.origin)
            what = f"`qk_from = previous` between layers of several branches, {own.index} and {layer.index},"
            yield Finding(what, layer.origin, "layers that are one mixer each", "leave `qk_from` out")
        if takes and own is not None and any(one.attributes.kv_latent for one in held(own.mixer)):
            what = f"`qk_from = previous` of a layer with `kv_latent`, {own.index},"
            yield Finding(what, layer.origin, "q and k of a layer without `kv_latent`", "leave `qk_from` out")
        if found and not takes:
            own = layer
