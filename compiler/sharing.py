"""What cases of heads, when, choose and route must have in common, because they share one set of q, k, v and o."""

from __future__ import annotations

from attnc.compiler.attributes import Attributes, LogPosition
from attnc.compiler.mixers import MIXERS
from attnc.compiler.overlay import block_size
from attnc.compiler.print_value import print_value
from attnc.compiler.problems import Problems
from attnc.compiler.spec import PHASES, Attention, Choose, Heads, Mixer, Mixing, When
from attnc.compiler.walk import default_leaves, leaves
from attnc.dsl.source import Span

SHARED = (
    *("heads", "kv_heads", "head_dim", "value_dim", "kv_latent", "qk_norm", "short_conv", "activation", "input_ema"),
    *("share_qk", "qk_from", "init_qk", "output_norm", "output_gate", "scale", "causal"),
)
"""Attributes that belong to the projections rather than to one softmax over them."""


def share_weights(
    found: list[Attention | Mixing], word: str, span: Span, problems: Problems, whole: Attributes | None = None
) -> bool:
    """Everything that shares projections agrees on their shapes."""
    attentions = [leaf for leaf in found if isinstance(leaf, Attention)]
    if not attentions:
        return True
    first = whole or attentions[0].attributes
    learned = {tuple(key for key in leaf.keys if MIXERS[key.kind].own_keys(key)) for leaf in attentions}
    if len(learned) > 1:
        message = f"learned keys in some cases of `{word}` only are not built yet"
        problems.add("A101", message, span, "the same `persistent` in every case", "add `| persistent(n)` to every case")
        return False
    for leaf in attentions:
        for key in SHARED:
            one, other = getattr(first, key), getattr(leaf.attributes, key)
            if one != other:
                shown = map(print_value, (one, other))
                message = f"cases of `{word}` share weights, but {key} is {' in one and '.join(shown)} in `{leaf.origin.text}`"
                problems.add("A208", message, span, f"one {key} for all cases", f"set `{key}` around the block")
                return False
    return True


def is_attention(mixers: list[Mixer], word: str, span: Span, problems: Problems) -> bool:
    """Alternatives share one set of q, k, v and o; whole mixers as alternatives are not built yet."""
    if all(isinstance(mixer, Attention | Heads | When | Choose) for mixer in mixers):
        return True
    message = f"`{word}` between mixers with weights of their own is not built yet"
    problems.add("A101", message, span, "key sets as alternatives", f"move what is not a key set out of the `{word}`")
    return False


def one_launch(cases: list[Mixer], word: str, span: Span, problems: Problems) -> bool:
    """Alternatives for the same heads differ in key sets alone, so that one cache and one launch serve them all."""
    groups = max(leaf.attributes.kv_heads for case in cases for leaf in leaves(case))
    every = [leaf for case in cases for leaf in default_leaves(case, 0, groups - 1, frozenset(PHASES))]
    for at, leaf in enumerate(every):
        for other in every[:at]:
            if other.first <= leaf.last and leaf.first <= other.last:
                pairs = zip(other.mixer.attributes, leaf.mixer.attributes, strict=True)
                different = [key for (key, one), (_, two) in pairs if one != two]
                if leaf.mixer.attributes.positions == "chunk" and _blocks(leaf.mixer) != _blocks(other.mixer):
                    different.append("positions")
                if different:
                    message = f"alternatives of `{word}` for the same heads that differ in `{different[0]}` are not built yet"
                    expected = "the same attributes in every alternative"
                    problems.add("A101", message, span, expected, f"set `{different[0]}` around the block")
                    return False
    return True


def _blocks(mixer: Attention | Mixing) -> set[object]:
    """The sizes of blocks that `positions = chunk` counts."""
    return {block_size(kind) for kind in mixer.keys} - {None} if isinstance(mixer, Attention) else set()


def routes_plainly(attributes: Attributes, span: Span, problems: Problems) -> bool:
    """What a route per token can say so far: plain softmax at absolute positions."""
    plain: dict[str, object] = {
        "score": "softmax",
        "positions": "absolute",
        "sink_logit": None,
        "short_conv": None,
        "qk_from": None,
    }
    if isinstance(attributes.temperature, LogPosition):
        plain["temperature"] = 1.0
    for key, value in plain.items():
        if getattr(attributes, key) != value:
            message = f"`{key}` inside `route(per = token)` is not built yet"
            problems.add("A101", message, span, "plain softmax in every alternative", f"leave `{key}` out")
            return False
    return True
