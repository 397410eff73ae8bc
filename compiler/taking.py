"""`from = previous` made plain: a choice that is taken over says itself how its units score, as the layer that lends it says.

The queries and keys that score are then those of the earlier layer. Of a `full` layer the largest weights are taken: the shares
that its softmax gives to tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.previous import SAME, held, in_branches, makes_choice, takes_choice
from attnc.compiler.spec import PHASES, Attention, Layer, Mixer, Spec
from attnc.compiler.walk import default_leaves, first_leaf, rebuilt


class Lender(NamedTuple):
    """The layer whose queries and keys score for a later one, and its own choice; None: a `full` layer."""

    layer: Layer
    choice: Kind | None


def lenders(layers: tuple[Layer, ...]) -> dict[int, Lender]:
    """layer -> who lends it a choice, for each layer that takes one over, `choose` at its default."""
    found: dict[int, Lender] = {}
    last: Lender | None = None
    for layer in layers:
        kinds = [kind for one in held(layer.mixer) for kind in one.keys]
        if last is not None and any(map(takes_choice, kinds)):
            found[layer.index] = last
        making = [kind for kind in kinds if makes_choice(kind)]
        if making:
            last = Lender(layer, next((kind for kind in making if MIXERS[kind.kind].chooses is not None), None))
    return found


def lending(layers: tuple[Layer, ...]) -> frozenset[int]:
    """The layers that lend a choice to later ones."""
    return frozenset(lender.layer.index for lender in lenders(layers).values())


def resolved(spec: Spec) -> tuple[Layer, ...]:
    """The layers, each choice that is taken over in the words of the layer that lends it. Layers of one rule share it."""
    found = lenders(spec.layers)
    known: dict[tuple[int, Kind | None], Mixer] = {}
    layers = []
    for layer in spec.layers:
        lender = found.get(layer.index)
        if lender is None:
            layers.append(layer)
            continue
        key = (id(layer.mixer), lender.choice)
        if key not in known:
            known[key] = _said(layer.mixer, lender.choice)
        layers.append(replace(layer, mixer=known[key]))
    return tuple(layers)


def _said(mixer: Mixer, choice: Kind | None) -> Mixer:
    if isinstance(mixer, Attention):
        lent = tuple(MIXERS[kind.kind].lent(kind, choice) if takes_choice(kind) else kind for kind in mixer.keys)
        return replace(mixer, keys=lent)
    return rebuilt(mixer, lambda one: _said(one, choice))


def problems(layers: tuple[Layer, ...]) -> Iterator[tuple[Layer, str, str, str]]:
    """What cannot be taken over so far: (the layer that takes, what, what is expected, help)."""
    choices: dict[int, Kind | None] = {}
    for index, lender in lenders(layers).items():
        layer = layers[index]
        taker, owner = layer.mixer, lender.layer.mixer
        if in_branches(taker) or in_branches(owner):
            yield layer, "between layers of several branches", "layers that are one mixer each", "leave `from` out"
            continue
        if choices.setdefault(id(taker), lender.choice) != lender.choice:
            yield layer, "of layers that choose otherwise by one rule", "a rule for each", "write the rules apart"
        if not _alike(owner, lender.choice):
            expected = "an earlier layer that is `full`, or that chooses in one way, for all heads and phases"
            yield layer, "of a layer that sees keys in several ways", expected, "let the earlier layer be `full`"
        mine, theirs = first_leaf(taker).attributes, first_leaf(owner).attributes
        key = next((key for key in SAME[:3] if getattr(mine, key) != getattr(theirs, key)), "")
        if key or mine.kv_latent is not None or theirs.kv_latent is not None:
            shown = f"`{key}`" if key else "`kv_latent`"
            yield layer, f"of a layer with another {shown}", "the same heads in both, without `kv_latent`", "leave `from` out"
        for kind in (kind for one in held(taker) for kind in one.keys if takes_choice(kind)):
            if lender.choice is not None and getattr(kind, "unit", None) != getattr(lender.choice, "unit", None):
                yield layer, "of a layer that chooses other units", "the same unit in both", "write the earlier layer's unit"


def _alike(mixer: Mixer, choice: Kind | None) -> bool:
    """Whether a layer lends the same choice in every phase and for every head."""
    last = first_leaf(mixer).attributes.kv_heads - 1
    for leaf in default_leaves(mixer, 0, last, frozenset(PHASES)):
        if not isinstance(leaf.mixer, Attention):
            return False
        chosen = [kind for kind in leaf.mixer.keys if MIXERS[kind.kind].chooses is not None]
        if choice is None and (chosen or not any(kind.kind == "full" for kind in leaf.mixer.keys)):
            return False
        if choice is not None and (chosen != [choice] or (leaf.first, leaf.last) != (0, last)):
            return False
    return True
