"""`distill = [attention]` where scores choose keys by weights of their own: attention itself teaches them.

The choice has no gradient, so nothing else would move them. Without a `loss` their launches see everything meanwhile, so
nothing of what they would choose is seen, and choices that look ahead leak nothing: DSA's warm-up. With `loss = [lm]` the model
learns from what is chosen, and scores from attention among that alone: DSA's sparse stage (runtime/score_loss.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from attnc.compiler.mixers import MIXERS
from attnc.compiler.recipe import Recipe
from attnc.compiler.spec import Spec
from attnc.compiler.walk import attentions

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel


Stage = Literal["alone", "beside"]
"""Whether scores learn alone, or beside what `lm` moves."""


def teaches_scores(spec: Spec) -> Stage | None:
    """How scores learn, where the recipe asks for the distance of attention alone and all choices score by weights of their
    own; else None.
    """
    recipe = spec.recipe or Recipe()
    words = {distance.word for distance in recipe.distill or ()}
    if words != {"attention"} or tuple(recipe.loss or ()) not in ((), ("lm",)):
        return None
    found = [
        (one := MIXERS[kind.kind].scores(kind, attention.attributes, spec.model)) is not None and one.chooses
        for layer in spec.layers
        for attention in attentions(layer.mixer)
        for kind in attention.keys
        if MIXERS[kind.kind].chooses is not None
    ]
    if not found or not all(found):
        return None
    return "beside" if recipe.loss else "alone"


@contextmanager
def taught_scores(model: BuiltModel, stage: Stage) -> Iterator[list[Tensor]]:
    """The distance of each launch in the call made meanwhile; of scores that learn alone every choice gives way to all keys."""
    found: list[Tensor] = []
    before = [(mix, dict(mix.choosing)) for mix in model.launches() if mix.chooses]
    refused = model.refused
    for mix, _ in before:
        mix.choosing["train"] = _teaching(mix, found) if stage == "alone" else _beside(mix, mix.choosing["train"], found)
    if stage == "alone":
        model.refused = {}  # type: ignore[misc]
    try:
        yield found
    finally:
        model.refused = refused  # type: ignore[misc]
        for mix, providers in before:
            mix.choosing.clear()
            mix.choosing.update(providers)


def _beside(mix: Any, provider: Any, found: list[Tensor]) -> Any:
    """The launch as it is, and the distance among what it chooses put aside."""

    def attend(q: Tensor, parts: Any, groups: Any, form: Any, batch: Any, scale: Any, cap: Any = None, *rest: Any) -> Tensor:
        found.append(_runtime(mix).score_loss(q, parts, groups, form, batch, scale, cap, chosen=True))
        return provider(q, parts, groups, form, batch, scale, cap, *rest)  # type: ignore[no-any-return]

    return attend


def _runtime(mix: Any) -> Any:
    """The folder's own."""
    return importlib.import_module(f"{type(mix).__module__.rpartition('.')[0]}.score_loss")


def _teaching(mix: Any, found: list[Tensor]) -> Any:
    """All keys, and the distance put aside."""
    runtime = _runtime(mix)

    def attend(q: Tensor, parts: Any, groups: Any, form: Any, batch: Any, *numbers: Any) -> Tensor:
        o, loss = runtime.taught(q, parts, groups, form, batch, *numbers[:3])
        found.append(loss)
        return o  # type: ignore[no-any-return]

    return attend
