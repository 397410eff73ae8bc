"""What `recipe { }` and `driver NAME { }` hold: how a model is trained, and how one reads texts that are too long for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.tuning import twice
from attnc.compiler.value import Broken, Share, Value

Part = Literal["all", "attention", "ffn", "embedding", "norm", "memory", "router", "q", "k", "v", "o"]
Weight = Annotated[float, Bounds(0, 1e6)]


class Lagrangian(Value):
    """`lagrangian(sparsity = 45%)`: holds the mean share of sparse choices of a route at that."""

    word: Literal["lagrangian"] = "lagrangian"
    sparsity: Share


class Kl(Value):
    """`kl(weight = 1)`: between the next-token distributions."""

    word: Literal["kl"] = "kl"
    weight: Weight = 1.0


class Mse(Value):
    """`mse(weight = 1)`: between the logits."""

    word: Literal["mse"] = "mse"
    weight: Weight = 1.0


class Hidden(Value):
    """`hidden(weight = 1)`: between the layers' outputs."""

    word: Literal["hidden"] = "hidden"
    weight: Weight = 1.0


class AttentionMap(Value):
    """`attention(weight = 1)`: between the attention maps."""

    word: Literal["attention"] = "attention"
    weight: Weight = 1.0


Distance = Kl | Mse | Hidden | AttentionMap


class Recipe(Value):
    """How the model is trained."""

    freeze: tuple[Part, ...] | None = None
    train: tuple[Part, ...] | None = None
    lora: tuple[Part, ...] | None = None
    loss: tuple[Literal["lm"] | Lagrangian, ...] | None = None
    distill: tuple[Distance, ...] | None = None
    teacher: Literal["full"] | None = None
    randomize: Literal["budgets"] | None = None

    def broken(self) -> Iterator[Broken]:
        """Each part is said once, and a student has a teacher."""
        for key in ("freeze", "train", "lora"):
            yield from twice(key, getattr(self, key) or ())
        for key in ("loss", "distill"):
            yield from twice(key, (one if isinstance(one, str) else one.word for one in getattr(self, key) or ()))
        both = [part for part in self.train or () if part in (self.freeze or ())]
        if both:
            message = f"the recipe freezes `{both[0]}` and trains it"
            yield Broken("train", message, "each part frozen or trained", f"take `{both[0]}` out of one of the two lists")
        if self.distill and not self.teacher:
            message = "`distill` compares with a teacher, but the recipe names none"
            yield Broken("distill", message, "`teacher = full` beside `distill`", "add `teacher = full`")
        if self.teacher and not self.distill:
            message = "the recipe has a teacher, but nothing to learn from it"
            yield Broken(
                "teacher", message, "`distill = [...]` beside `teacher`", "add `distill = [kl]`, or leave `teacher` out"
            )


class LastTokens(Value):
    """`last(128)`."""

    word: Literal["last"] = "last"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class Retrieve(Value):
    """`driver retrieve`: reads a long text in windows around the model, keeping sentences (InfiniRetri, arXiv 2502.12962).

    `layer` is the one whose attention to the queries scores tokens; scores are averaged over `smooth` neighbours, and the
    sentences around the best `top_k` tokens are kept for the next window.
    """

    word: Literal["retrieve"] = "retrieve"
    window: Annotated[int, Bounds(1, 2**24)]
    layer: Annotated[Literal["last"] | int, Bounds(0, 1023)] = "last"
    queries: Literal["question"] | LastTokens = "question"
    smooth: Annotated[int, Bounds(1, 65536)] = 1
    top_k: Annotated[int, Bounds(1, 65536)]
    expand: Literal["sentence", "none"] = "sentence"

    def broken(self) -> Iterator[Broken]:
        """What is kept leaves room for new text."""
        if self.top_k >= self.window:
            message = f"top_k = {self.top_k} tokens fill the window of {self.window}"
            yield Broken("top_k", message, "top_k below window", f"use at most {max(1, self.window // 2)} for `top_k`")
