"""What a recipe minimises: its loss terms and distances, each with its weight, of one batch.

Legend: B examples; N tokens of each; T = B N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnc.codegen.problem import complaint
from attnc.compiler import graph, passes
from attnc.compiler.graph import RouteTokens
from attnc.compiler.parameters import place
from attnc.compiler.recipe import Lagrangian, Recipe
from attnc.compiler.spec import Spec
from attnc.dsl import SpecError
from attnc.train import terms
from attnc.train.scores import Stage, taught_scores, teaches_scores
from attnc.train.teacher import attention_maps, outputs

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel

MULTIPLIER_RATE = 0.1
"""By how much of a share's error its multiplier moves in a step."""


@dataclass(frozen=True)
class Router:
    """A route per token: its module, which of its alternatives are sparse, and its estimator."""

    module: str
    sparse: tuple[int, ...]
    estimator: str


@dataclass
class Objective:
    """The terms of a recipe. `multiplier`: that of the lagrangian, which every step moves; `scores`: how attention teaches
    those of choices, for which no other model is needed.
    """

    recipe: Recipe
    routers: tuple[Router, ...]
    teacher: BuiltModel | None
    scores: Stage | None = None
    multiplier: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @classmethod
    def of(cls, spec: Spec, teach: Callable[[], BuiltModel], file: str) -> Objective:
        """`teach` makes the teacher, if one is needed. Raises SpecError A570 for what this model has not."""
        recipe = spec.recipe or Recipe()
        routers = tuple(_routers(spec)) if cls.sparsity_of(recipe) is not None else ()
        if cls.sparsity_of(recipe) is not None and not any(router.sparse for router in routers):
            message = (
                "`lagrangian` holds the share of sparse choices, but no route per token has an alternative that is not full"
            )
            raise SpecError([complaint("A570", message, file, "take `lagrangian` out of `loss`")])
        words = {distance.word for distance in recipe.distill or ()}
        if "attention" in words and (routed := next(_routers(spec), None)):
            message = f"`attention` compares maps of attention, and {routed.module} routes tokens, which has none"
            raise SpecError([complaint("A570", message, file, "take `attention` out of `distill`")])
        if (stage := teaches_scores(spec)) is not None:
            return cls(recipe, routers, None, scores=stage)
        return cls(recipe, routers, teach() if recipe.teacher else None)

    @staticmethod
    def sparsity_of(recipe: Recipe) -> Lagrangian | None:
        """The recipe's lagrangian."""
        return next((one for one in recipe.loss or () if isinstance(one, Lagrangian)), None)

    @property
    def hooked(self) -> bool:
        """Whether the model is looked into while it runs, which a compiled one does not allow."""
        words = {distance.word for distance in self.recipe.distill or ()}
        return bool(self.routers) or bool(words & {"hidden", "attention"})

    def words(self) -> tuple[str, ...]:
        """The terms, in the order of reports."""
        distances = tuple(distance.word for distance in self.recipe.distill or ())
        losses = tuple(one if isinstance(one, str) else one.word for one in self.recipe.loss or ())
        return (*(losses or (() if distances else ("lm",))), *distances)

    def __call__(
        self, model: BuiltModel, call: Callable[..., Any], tokens: Tensor, targets: Tensor, asked: int, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and its terms, of a batch [B, N] that is this `share` of a step, which asks `asked` targets.

        `call` is given tokens and the places whose logits are wanted, or None for all.
        """
        words = set(self.words())
        if self.scores is not None:
            with taught_scores(model, self.scores) as apart:
                logits = call(tokens, terms.asked_places(targets)).logits
            own = {"attention": share * torch.stack(apart).mean()}
            if "lm" in words:
                own = {"lm": terms.language(logits, targets, asked), **own}
            return self._weighed(own, share), own
        with ExitStack() as watching:
            layers = watching.enter_context(outputs(model)) if "hidden" in words else []
            maps = watching.enter_context(attention_maps(model)) if "attention" in words else {}
            chosen = watching.enter_context(_choices(model, self.routers))
            out = call(tokens, None if words & set(terms.DISTANCES) else terms.asked_places(targets))
        logits, found = out.logits, {name: share * term for name, term in out.losses.items()}
        if "lm" in words:
            found["lm"] = terms.language(logits, targets, asked)
        if self.routers:
            sparse, estimators = [r.sparse for r in self.routers], [r.estimator for r in self.routers]
            found["lagrangian"] = share * terms.sparse_share(chosen, sparse, estimators)
        if self.teacher is not None:
            found |= {word: share * term for word, term in self._distances(tokens, logits, layers, maps).items()}
        return self._weighed(found, share), found

    def _distances(self, tokens: Tensor, logits: Tensor, layers: list[Tensor], maps: dict[str, Tensor]) -> dict[str, Tensor]:
        assert self.teacher is not None, "distances are from a teacher"
        words = [distance.word for distance in self.recipe.distill or ()]
        with torch.no_grad(), ExitStack() as watching:
            theirs = watching.enter_context(outputs(self.teacher)) if "hidden" in words else []
            true = watching.enter_context(attention_maps(self.teacher)) if "attention" in words else {}
            right = self.teacher(tokens, phase="train").logits
        found: dict[str, Tensor] = {word: terms.DISTANCES[word](logits, right) for word in words if word in terms.DISTANCES}
        if "hidden" in words:
            found["hidden"] = terms.hidden(layers, theirs)
        if "attention" in words:
            found["attention"] = terms.attention({name: maps[name] for name in true}, true)
        return found

    def _weighed(self, found: dict[str, Tensor], share: float) -> Tensor:
        """The sum; a lagrangian's share s counts as (s - target) times its multiplier, and (s - target) squared."""
        weights: dict[str, float] = {distance.word: distance.weight for distance in self.recipe.distill or ()}
        total = next(iter(found.values())).new_zeros(())
        for word, term in found.items():
            if word != "lagrangian":
                total = total + weights.get(word, 1.0) * term
                continue
            error = term / share - self._target
            total = total + share * (float(self.multiplier) * error + error.square())
        return total

    @property
    def _target(self) -> float:
        lagrangian = self.sparsity_of(self.recipe)
        assert lagrangian is not None, "asked only where there is one"
        return lagrangian.sparsity.percent / 100

    def after(self, values: dict[str, float]) -> None:
        """Moves the multiplier towards a share that was missed; `values` are a step's terms."""
        if "lagrangian" in values:
            self.multiplier += MULTIPLIER_RATE * (values["lagrangian"] - self._target)


def _routers(spec: Spec) -> Iterator[Router]:
    for name, node in passes.run(graph.build(spec)).nodes():
        if isinstance(node, RouteTokens):
            layer = name.split("/")[0]
            sparse = tuple(at for at, keys in enumerate(node.alternatives) if all(key.kind != "full" for key in keys))
            yield Router(f"model.layers.{layer}.{place(node)}", sparse, node.router.estimator)


@contextmanager
def _choices(model: nn.Module, routers: tuple[Router, ...]) -> Iterator[list[Tensor]]:
    """The logits [T, alternatives] of every router in the call made meanwhile, in order."""
    found: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(output)

    handles = [model.get_submodule(f"{one.module}.router").register_forward_hook(remember) for one in routers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
