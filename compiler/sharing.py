"""What cases of heads, when, choose and route must have in common, because they share one set of q, k, v and o."""

from __future__ import annotations

from attnc.compiler.attributes import Attributes
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.problems import Problems
from attnc.compiler.spec import Attention, Choose, Heads, Mixer, Mixing, When
from attnc.compiler.walk import children
from attnc.dsl.source import Span

SHARED = (
    *("heads", "kv_heads", "head_dim", "value_dim", "kv_latent", "qk_norm", "short_conv", "activation", "input_ema"),
    *("share_qk", "qk_from", "init_qk", "output_norm", "output_gate", "scale", "causal"),
)
"""Attributes that belong to the projections rather than to one softmax over them."""

OWN_OF_CASES = {"heads": ("share_qk",), "choose": ("qk_from",)}
"""What cases of a block may say apart: some heads share their q and k, some alternatives take them over."""


def share_weights(
    found: list[Attention | Mixing], word: str, span: Span, problems: Problems, whole: Attributes | None = None
) -> bool:
    """All softmaxes that share projections agree on them.

    Other kinds share those of q, k, v and o that have the same shape for them, and have their own of the others.
    """
    attentions = [leaf for leaf in found if isinstance(leaf, Attention)]
    if not attentions:
        return True
    first = whole or attentions[0].attributes
    for leaf in attentions:
        if leaf.attributes is first:
            continue
        for key in SHARED:
            one, other = getattr(first, key), getattr(leaf.attributes, key)
            if one != other and key not in OWN_OF_CASES.get(word, ()):
                shown = map(print_value, (one, other))
                message = f"cases of `{word}` share weights, but {key} is {' in one and '.join(shown)} in `{leaf.origin.text}`"
                problems.add("A208", message, span, f"one {key} for all cases", f"set `{key}` around the block")
                return False
    return True


def same_groups(
    found: list[Attention | Mixing], word: str, span: Span, problems: Problems, kv_heads: int | None = None
) -> bool:
    """What is given heads apart counts the same ones."""
    for leaf in found:
        own = leaf.attributes.kv_heads
        kv_heads = own if kv_heads is None else kv_heads
        if own != kv_heads:
            message = (
                f"cases of `{word}` have the same heads, but kv_heads is {kv_heads} in one and {own} in `{leaf.origin.text}`"
            )
            problems.add("A208", message, span, "one kv_heads for all cases", "leave `heads` and `kv_heads` of the case out")
            return False
    return True


def on_heads(mixer: Mixer) -> bool:
    """Whether a mixer is made of heads, so that each may be given away apart."""
    match mixer:
        case Attention():
            return True
        case Mixing(kind=kind):
            return MIXERS[kind.kind].per_head
        case Heads() | When() | Choose():
            return all(map(on_heads, children(mixer)))
        case _:
            return False
