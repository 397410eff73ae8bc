"""One launch as source: its head groups, guards and numbers, the storage it needs, and its rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attnc.codegen import selecting
from attnc.codegen.eager.emit import Masks
from attnc.codegen.parts import Group, Launch, Variant
from attnc.compiler.attributes import Attributes, LinearScale, Llama3, Softplus, Yarn
from attnc.compiler.graph import Guard, HeadGroup, Mix, Project
from attnc.compiler.intervals import UNBOUNDED, Intervals, Near
from attnc.compiler.kept import join, kept_heads
from attnc.compiler.mixer import Kind
from attnc.compiler.spec import Model
from attnc.compiler.streams import channels, of_softmax
from attnc.compiler.value import Share, Tokens

LONGEST = 110
"""Characters of an expression that stands on one line of model.py."""


def launch(mix: Mix, name: str, model: Model, visible: Masks) -> Launch:
    """The launch of a mix; head numbers count from the launch's first KV group."""
    a = mix.attributes
    held = selecting.held_names(mix)
    variants = tuple(
        Variant(
            guards=", ".join(map(_guard, variant.guards)),
            groups=tuple(_group(group, mix, visible, held) for group in variant.groups),
        )
        for variant in mix.variants
    )
    cap = None if model.score_cap is None else repr(model.score_cap)
    return Launch(name, variants, a.causal, repr(scale(a, model)), cap, reference_text(a))


def scale(a: Attributes, model: Model) -> float:
    """The factor of the logits; plain means have none at all, softplus has log(head_dim) (arXiv 2501.13428)."""
    if a.score == "uniform":
        return 0.0
    base = model.score_scale if model.score_scale is not None else a.key_width**-0.5
    if isinstance(a.score, Softplus):
        base = math.log(a.key_width)
    return base / a.temperature if isinstance(a.temperature, int | float) else base


def reference_text(a: Attributes) -> str:
    """The runtime's Reference where it is not the plain softmax at absolute positions; else empty."""
    texts = []
    if isinstance(a.score, Softplus):
        texts.append(f"partial(reference.softplus_weights, exponent={float(a.score.exponent)!r})")
    if a.positions == "consecutive" and a.rope is not None:
        texts.append(f"rope={rope_text(a)}")
    return f"Reference({', '.join(texts)})" if texts else ""


def rope_text(a: Attributes) -> str | None:
    """The runtime's Rope with the positions that it turns by, or None."""
    if a.rope is None:
        return None
    match a.rope_scale:
        case LinearScale(factor=factor):
            stretch = f", LinearScale({factor!r})"
        case Yarn(factor=factor, original=original):
            assert original is not None, "the checker fills in the trained length"
            stretch = f", Yarn({factor!r}, {original})"
        case Llama3(factor=factor, low=low, high=high, original=original):
            stretch = f", Llama3({factor!r}, {low!r}, {high!r}, {original})"
        case _:
            stretch = ""
    return f"Rope({a.rope_dim}, {float(a.rope)!r}{stretch})"


def plan_text(mix: Mix, project: Project, at: int, model: Model) -> str:
    """The runtime's LayerPlan of a launch: what each head group keeps, over all variants that decoding can reach."""
    slots = []
    a = mix.attributes
    heads = kept_heads(mix)
    if a.kv_latent is not None:  # which all heads share
        heads = [(mix.first, mix.first, join(kept for _, _, kept in heads))]
    for first, last, kept in heads:
        keep = "Growing()" if kept.recent is None else f"Ring({_number(kept.pinned)}, {_number(kept.recent)})"
        slots.append(f"Slots({first - mix.first}, {last - mix.first}, {keep})")
    widths = f"key_width={a.head_dim}, value_width={a.value_dim}"
    if a.kv_latent is not None:
        widths = f"key_width={a.kv_latent} + {a.rotated_key}, value_width=0"
    arguments = [f"({', '.join(slots)},)", widths]
    if project.qk_layer is not None:
        arguments.append(f"keys_from=self.source{f' + {at}' if at else ''}")
    average = ema_states(project, model) if at == 0 else []
    states = [
        *(conv_states(project) if at == 0 and a.short_conv is not None else ()),
        *average,
        *selecting.state_texts(mix, model),
    ]
    if states:
        arguments.append(f"states=({', '.join(states)},)")
    pooled = selecting.pooled_texts(mix, model)
    if pooled:
        arguments.append(f"pooled=({', '.join(pooled)},)")
    text = f"LayerPlan({', '.join(arguments)})"
    if len(text) <= LONGEST:
        return text
    return "LayerPlan(" + "".join(f"\n                {argument}," for argument in arguments) + "\n            )"


def conv_states(project: Project) -> list[str]:
    """What the convolutions on q, k and v keep."""
    a = project.attributes
    assert a.short_conv is not None, "asked only where there is a convolution"
    widths = channels(of_softmax(a, own_qk=project.qk_layer is None))
    return [f'State("{name}_conv", ({a.short_conv - 1}, {width}))' for name, width in widths.items()]


def ema_states(project: Project, model: Model) -> list[str]:
    """What the moving average of the input keeps."""
    states = project.attributes.input_ema
    return [] if states is None else [f'State("state", ({model.dim}, {states}), torch.float32)']


def _guard(guard: Guard) -> str:
    condition = guard.condition
    right = f'"{condition.right}"' if condition.left == "phase" else str(int(condition.right))
    holds = "" if guard.holds else ", holds=False"
    return f'Guard("{condition.left}", "{condition.operator}", {right}{holds})'


def _group(group: HeadGroup, mix: Mix, visible: Masks, held: Mapping[Kind, str]) -> Group:
    numbers = group.intervals if group.intervals is not None else Intervals()
    texts = [str(group.first - mix.first), str(group.last - mix.first), *_numbers(numbers)]
    a = mix.attributes
    chosen = [
        selecting.selector_text(kind, held.get(kind, ""), visible.chosen(group.keys, kind, a.heads // a.kv_heads))
        for kind in group.choices
    ]
    if chosen:
        texts.append(f"choices=({', '.join(chosen)},)")
    texts.append(f"visible=reference.{visible[group.keys, a.causal]}")
    text = f"HeadGroup({', '.join(texts)})"
    if chosen:
        text = "HeadGroup(" + "".join(f"\n{' ' * 32}{one}," for one in texts) + f"\n{' ' * 28})"
    return Group(text, str(group.origin))


def group_text(group: HeadGroup, visible: Masks, causal: bool) -> str:
    """A head group of keys that positions alone decide, as source."""
    assert group.intervals is not None, "asked only of such"
    parts = [str(group.first), str(group.last), *_numbers(group.intervals)]
    return f"HeadGroup({', '.join([*parts, f'visible=reference.{visible[group.keys, causal]}'])})"


def _numbers(numbers: Intervals) -> list[str]:
    texts = [f"sink={_number(numbers.sink)}"] if numbers.sink else []
    if numbers.near:
        texts.append(f"near=({', '.join(_near(near, numbers.causal) for near in numbers.near)},)")
    if numbers.strides:
        texts.append(f"strides={tuple(numbers.strides)!r}")
    if numbers.powers:
        texts.append(f"powers={tuple(numbers.powers)!r}")
    return texts


def _near(near: Near, causal: bool) -> str:
    if near.back == UNBOUNDED and (causal or near.ahead == UNBOUNDED):
        return "FULL"
    texts = []
    for name, default in (("align", 1), ("shift", 0), ("back", 0), ("ahead", 0)):
        number = getattr(near, name)
        if number != default:
            own = near.align if name in ("back", "ahead") and isinstance(number, Share) else 0
            texts.append(f"{name}={_number(number, own)}")
    return f"Near({', '.join(texts)})"


def _number(number: Tokens, minus: Tokens = 0) -> str:
    """A count as source; `minus` tokens are taken from a share (a share in `back` counts the own block)."""
    if isinstance(number, Share):
        assert isinstance(minus, int), "a share reaches back over blocks of a fixed size"
        plus = f", plus=-{minus}" if minus else ""
        return f"Share({number.percent!r}{plus})"
    return str(number)
