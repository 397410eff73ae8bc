"""Attributes by inheritance: inner settings win over outer ones, those over the model's; then come defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnc.compiler.attributes import Attributes, Grouped, Llama3, LogPosition, Yarn
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.model_settings import Given
from attnc.compiler.place import INVALID
from attnc.compiler.problems import Problems
from attnc.compiler.spec import Model
from attnc.dsl.source import Span

YARN_ORIGINAL = 4096
"""The trained length that `yarn(x)` stretches where neither it nor the model names one (gpt-oss, Llama 2)."""


def resolve_attributes(
    model: Model, inherited: Given, layers: tuple[Given, ...], keys: bool, span: Span, problems: Problems
) -> Attributes | None:
    """The attributes below the settings `layers`, outermost first, or None after a mistake.

    `keys`: of a key set, which the model's `rope` reaches. `span` is what they are for.
    """
    said: Given = {key: value for key, value in inherited.items() if keys or key != "rope"}
    for settings in layers:
        if "heads" in settings:  # a mixer that sets `heads` sets its `kv_heads` and `qk_heads` with it
            said = {**said, "kv_heads": settings["heads"], "qk_heads": settings["heads"]}
        said |= settings
    values = {key: value for key, (value, _) in said.items()}
    if any(value is INVALID for value in values.values()) or "heads" not in values:
        return None
    if not keys:
        values.setdefault("rope", None)
    heads = values["heads"]
    values.setdefault("kv_heads", heads)
    values.setdefault("qk_heads", heads)
    where = {key: place for key, (_, place) in said.items()}
    if "head_dim" not in values:
        if model.dim % heads:
            message = f"dim {model.dim} does not split into {heads} heads"
            near = _divisor(model.dim, heads)
            help_line = f"write `heads = {near}`, or set `head_dim`"
            problems.add("A204", message, where["heads"], "dim a multiple of heads, or a `head_dim`", help_line)
            return None
        values["head_dim"] = model.dim // heads
    values.setdefault("value_dim", values["head_dim"])
    if values.get("rope", 0) is not None:
        values.setdefault("rope_dim", values["head_dim"])
    scale = values.get("rope_scale")
    if isinstance(scale, Yarn) and scale.original is None:
        values["rope_scale"] = replace(scale, original=model.context or YARN_ORIGINAL)
    attributes = Attributes(**values)
    return attributes if _agree(attributes, where, span, problems) else None


def _agree(attributes: Attributes, where: dict[str, Span], span: Span, problems: Problems) -> bool:
    """Sizes divide, and no attribute contradicts another."""
    before = len(problems.found)

    def place(*keys: str) -> Span:
        return next((where[key] for key in keys if key in where), span)

    a = attributes
    for key, number in (("kv_heads", a.kv_heads), ("qk_heads", a.qk_heads)):
        if a.heads % number:
            message = f"heads {a.heads} is not a multiple of {key} {number}"
            help_line = f"use {_divisor(a.heads, number)} for `{key}`"
            problems.add("A204", message, place(key, "heads"), f"{key} that divides heads", help_line)
    if a.rope is not None and a.rope_dim is not None:
        if a.rope_dim % 2:
            help_line = f"set `rope_dim = {a.rope_dim - 1}`, or `rope = none`"
            problems.add("A212", f"rope_dim {a.rope_dim} is odd", place("rope_dim", "head_dim"), "an even rope_dim", help_line)
        if a.rope_dim > a.head_dim:
            message = f"rope_dim {a.rope_dim} is larger than head_dim {a.head_dim}"
            problems.add("A212", message, place("rope_dim", "head_dim"), "rope_dim <= head_dim", f"use at most {a.head_dim}")
    if a.share_qk and a.kv_heads != a.heads:
        message = f"share_qk needs as many KV heads as heads, not {a.kv_heads} and {a.heads}"
        problems.add("A208", message, place("share_qk"), "kv_heads = heads", f"set `kv_heads = {a.heads}`")
    if isinstance(a.rope_scale, Yarn) and a.rope == 1:
        message = "`yarn` stretches by wavelength, and at `rope = 1` all are one"
        problems.add(
            "A104", message, place("rope_scale", "rope"), "a base above 1", "set a larger `rope`, or leave `rope_scale` out"
        )
    if isinstance(a.rope_scale, Llama3) and a.rope_scale.low >= a.rope_scale.high:
        message = f"low {a.rope_scale.low:g} of `llama3` is not below high {a.rope_scale.high:g}"
        problems.add("A104", message, place("rope_scale"), "low < high", "exchange the two")
    if a.sink_logit and a.score != "softmax":
        score = a.score if isinstance(a.score, str) else a.score.word
        message = f"`sink_logit` is one more logit of a softmax, but the score is `{score}`"
        problems.add("A213", message, place("sink_logit"), "`score = softmax`", "leave `sink_logit` or `score` out")
    if a.score == "uniform" and a.temperature != 1.0:
        shown = "log_position" if isinstance(a.temperature, LogPosition) else f"{a.temperature:g}"
        message = f"temperature {shown} has no effect on a plain mean"
        problems.add("A213", message, place("temperature"), "`score = softmax` or `softplus`", "leave `temperature` out")
    return len(problems.found) == before


def check_keys(kinds: tuple[Kind, ...], attributes: Attributes, span: Span, problems: Problems) -> bool:
    """What attributes ask of a union's key sets."""
    blocked = attributes.positions == "chunk" or isinstance(attributes.score, Grouped)
    sizes = {size for kind in kinds for size in [block_size(kind)] if size} if blocked else set()
    if attributes.positions == "chunk" and (len(sizes) != 1 or not all(isinstance(size, int) for size in sizes)):
        found = "no blocks" if not sizes else f"blocks of {' and '.join(str(size) for size in sorted(sizes, key=str))}"
        message = f"`positions = chunk` counts blocks, but the union has {found}"
        expected = "one size of blocks in tokens: block_local, power_of_two, summary or an aligned window"
        problems.add("A213", message, span, expected, "leave `positions` out, or align the window")
        return False
    if sum(kind.kind == "codebook" for kind in kinds) > 1:
        message = "each `codebook` holds all keys that the rest of the union does not show"
        problems.add("A213", message, span, "at most one `codebook`", "keep one of them")
        return False
    if isinstance(attributes.score, Grouped):
        whole = attributes.score.n
        uneven = [size for size in sizes if isinstance(size, int) and size % whole]
        if uneven:
            message = f"`grouped({whole})` has blocks of {whole}, which do not fill blocks of {uneven[0]}"
            near = max(1, round(uneven[0] / whole)) * whole
            problems.add("A204", message, span, f"blocks of a multiple of {whole} tokens", f"use blocks of {near}")
            return False
    if sum(MIXERS[kind.kind].own_keys(kind) > 0 for kind in kinds) > 1:
        total = sum(MIXERS[kind.kind].own_keys(kind) for kind in kinds)
        message = "a union has one set of learned keys"
        problems.add("A213", message, span, "at most one `persistent`", f"write one `persistent({total})`")
        return False
    if attributes.share_qk and any(MIXERS[kind.kind].own_keys(kind) for kind in kinds):
        message = "`share_qk` makes keys of queries, but learned keys have none"
        problems.add("A213", message, span, "key sets of the sequence alone", "leave `persistent` or `share_qk` out")
        return False
    return True


def block_size(kind: Kind) -> Any:
    """Tokens in a block of a blocked key set, else None."""
    given = dict(vars(kind))
    if kind.kind in ("block_local", "power_of_two", "summary"):
        return given["n"]
    return given["aligned"] if given.get("aligned", 1) > 1 else None


def _divisor(whole: int, near: int) -> int:
    """The divisor of `whole` closest to `near`."""
    return min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - near))
