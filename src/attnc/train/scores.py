"""`distill = [attention]` where scores choose keys by weights of their own: attention itself teaches them.

The choice has no gradient, so nothing else would move them. Their launches see everything meanwhile, so nothing of what they
would choose is seen, and choices that look ahead leak nothing (runtime/score_loss.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attnc.compiler.mixers import MIXERS
from attnc.compiler.recipe import Recipe
from attnc.compiler.spec import Spec
from attnc.compiler.walk import attentions

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel


def teaches_scores(spec: Spec) -> bool:
    """Whether the recipe asks for the distance of attention alone, of choices that all score by weights of their own."""
    recipe = spec.recipe or Recipe()
    words = {distance.word for distance in recipe.distill or ()}
    if words != {"attention"} or recipe.loss:
        return False
    found = [
        (one := MIXERS[kind.kind].scores(kind, attention.attributes, spec.model)) is not None and one.chooses
        for layer in spec.layers
        for attention in attentions(layer.mixer)
        for kind in attention.keys
        if MIXERS[kind.kind].chooses is not None
    ]
    return bool(found) and all(found)


@contextmanager
def taught_scores(model: BuiltModel) -> Iterator[list[Tensor]]:
    """The distance of each launch in the call made meanwhile, in which every choice gives way to all keys."""
    found: list[Tensor] = []
    before = [(mix, dict(mix.choosing)) for mix in model.launches() if mix.chooses]
    refused = model.refused
    for mix, _ in before:
        mix.choosing["train"] = _teaching(mix, found)
    model.refused = {}  # type: ignore[misc]
    try:
        yield found
    finally:
        model.refused = refused  # type: ignore[misc]
        for mix, providers in before:
            mix.choosing.clear()
            mix.choosing.update(providers)


def _teaching(mix: Any, found: list[Tensor]) -> Any:
    """A provider of the folder's own runtime: all keys, and the distance put aside."""
    runtime = importlib.import_module(f"{type(mix).__module__.rpartition('.')[0]}.score_loss")

    def attend(q: Tensor, parts: Any, groups: Any, form: Any, batch: Any, *numbers: Any) -> Tensor:
        o, loss = runtime.taught(q, parts, groups, form, batch, *numbers[:3])
        found.append(loss)
        return o  # type: ignore[no-any-return]

    return attend
