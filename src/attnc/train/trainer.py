"""A model on its way: one step of its recipe after another, and all that a checkpoint has to hold.

Steps depend on the seed and their number alone, so a run that goes on from a checkpoint is the run that was never stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnc.codegen.build import Options
from attnc.codegen.problem import complaint
from attnc.compiler.spec import Spec
from attnc.dsl import SpecError
from attnc.runtime.codes import is_memory
from attnc.tasks.examples import Examples
from attnc.train import lora, schedule
from attnc.train.budgets import Budgets, compiles_numbers
from attnc.train.diverge import CLEAR, first_not_finite
from attnc.train.moves import Moves, moves, parts
from attnc.train.objective import Objective
from attnc.train.report import Settings
from attnc.train.teacher import teacher

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel

BETAS = (0.9, 0.95)


FAST_WEIGHTS = "A551"
"""The code of an error of a built folder, where what a memory learned is not finite."""


class Trainer:
    """A built model, what of it moves, its optimizer and its objective.

    done       steps that are behind it
    decisions  what was decided for the user, a line each
    """

    def __init__(self, model: BuiltModel, spec: Spec, settings: Settings, scratch: Path, file: str) -> None:
        """`scratch` is where the folder of a teacher is written; `file` is what errors point at.

        Raises SpecError A570 for a recipe that this model cannot carry out, A578 where no teacher can be made.
        """
        self.model, self.settings, self.file = model.train(), settings, file
        self.device = next(model.parameters()).device
        self.done = 0
        names = dict(model.named_parameters())
        self.moves: Moves = moves(spec.recipe, names)
        for name, weight in names.items():
            weight.requires_grad_(name in self.moves.train)
        self.adapters = lora.attach(model, self.moves.lora, settings.rank, settings.alpha, settings.seed)
        self.moving: dict[str, nn.Parameter] = {name: names[name] for name in names if name in self.moves.train}
        self.moving |= lora.parameters(self.adapters)
        if not self.moving:
            message = "the recipe lets nothing of this model move"
            raise SpecError([complaint("A570", message, file, "name a part that the model has in `train` or `lora`")])
        plans = Options(length=settings.length, batch=settings.batch)
        self.objective = Objective.of(spec, lambda: teacher(spec, model, scratch, plans, file), file)
        randomized = spec.recipe is not None and spec.recipe.randomize == "budgets"
        self.budgets = Budgets(model, spec, file, settings.seed) if randomized else None
        self.decisions = list(self._passed_over(spec))
        if self.budgets is not None and compiles_numbers(model, self.device.type):
            model.use("triton")
            self.decisions.append(
                "generated kernels train in place of flex_attention, which would compile every draw of budgets"
            )
        if settings.compiled and (self.objective.hooked or self.budgets):
            message = (
                "this recipe looks into the model or changes its numbers at every step, which a compiled one does not allow"
            )
            raise SpecError([complaint("A570", message, file, "train without `--compile`")])
        self.call: Callable[..., Any] = torch.compile(model) if settings.compiled else model
        self.optimizer = torch.optim.AdamW(self._groups(), betas=BETAS, fused=self.device.type == "cuda")

    def _passed_over(self, spec: Spec) -> Iterator[str]:
        """What the recipe names and this model has not, or has in a form that LoRA cannot stand beside."""
        for word, part in self.moves.empty:
            yield f"`{word}` of the recipe names `{part}`, which this model has not"
        for part in (spec.recipe.lora if spec.recipe else None) or ():
            named = [name for name in self.moves.lora if any(part in level for level in parts(name))]
            if named and not any(name in self.adapters for name in named):
                yield f"`lora` of the recipe names `{part}`, which has no matrix of a linear map: it stays as it is"
        left = [name for name in sorted(self.moves.lora - set(self.adapters)) if self.model.get_parameter(name).dim() > 1]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            yield f"no LoRA beside {', '.join(left[:3])}{more}: what is no linear map stays as it is"

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices decay; norms, embeddings and what LoRA adds do not."""
        decaying = {n for n, w in self.moving.items() if w.dim() > 1 and n in self.moves.train and "embed" not in n}
        groups = [
            {"params": [w for n, w in self.moving.items() if (n in decaying) == decays], "weight_decay": decay}
            for decays, decay in ((True, self.settings.decay), (False, 0.0))
        ]
        return [group for group in groups if group["params"]]

    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.settings.lr * schedule.factor(self.done, self.settings.steps, self.settings.warmup)

    def step(self, examples: Examples, good: Callable[[], None] = lambda: None) -> tuple[dict[str, float], float, float]:
        """One update with examples [batch * accumulate, N]: its terms, the whole loss, and the gradient's norm.

        `good` is called when loss and gradient are known to be finite, before anything moves: what is stored then is a state
        that was seen to work. Raises SpecError A571 for a loss or gradient that is not, A576 where memory ends.
        """
        self._prepare()
        try:
            found, loss = self._backward(examples)
        except (MemoryError, RuntimeError) as error:
            if getattr(error, "code", "") == FAST_WEIGHTS:
                raise SpecError(
                    [self._not_finite(f"step {self.done + 1}: {str(error).removeprefix(f'{FAST_WEIGHTS}: ')}")]
                ) from error
            if not is_memory(error):
                raise
            raise SpecError([self._too_large(error)]) from error
        norm = nn.utils.clip_grad_norm_(self.moving.values(), self.settings.clip or math.inf)
        values = {word: float(value) for word, value in found.items()}
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise SpecError([self._diverged(examples, loss)])
        good()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.model.follow(self.moves.train)
        self.objective.after(values)
        self.done += 1
        return values, loss, float(norm)

    @torch.no_grad()
    def loss(self, examples: Examples) -> float:
        """The whole loss of examples, nothing moved. Raises SpecError A571 where it is not finite."""
        self._prepare()
        loss = sum(
            float(self._terms(tokens, targets, asked, share)[0]) for tokens, targets, asked, share in self._split(examples)
        )
        if not math.isfinite(loss):
            raise SpecError([self._diverged(examples, loss)])
        return loss

    def _prepare(self) -> None:
        """What a step begins with: random numbers of its own, budgets of its own, no gradients."""
        digest = hashlib.sha256(f"{self.settings.seed} {self.done}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        if self.budgets is not None:
            self.budgets.draw(self.done)
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, examples: Examples) -> tuple[dict[str, Tensor], float]:
        """Gradients of all batches of a step; the sums of their terms, and the whole loss."""
        found: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        for tokens, targets, asked, share in self._split(examples):
            total, parts = self._terms(tokens, targets, asked, share)
            total.backward()  # type: ignore[no-untyped-call]
            loss = loss + total.detach()
            found = {word: found.get(word, 0) + part.detach() for word, part in parts.items()}
        return found, float(loss)

    def _split(self, examples: Examples) -> list[tuple[Tensor, Tensor, int, float]]:
        """(tokens, targets, targets asked in the whole step, share of it) of each batch that is held at once."""
        asked = int((examples.targets >= 0).sum())
        tokens, targets = (torch.split(one, self.settings.batch) for one in (examples.tokens, examples.targets))
        return [
            (t.to(self.device), y.to(self.device), asked, len(t) / len(examples.tokens))
            for t, y in zip(tokens, targets, strict=True)
        ]

    def _terms(self, tokens: Tensor, targets: Tensor, asked: int, share: float) -> tuple[Tensor, dict[str, Tensor]]:
        with self.autocast():
            return self.objective(self.model, self._train_call, tokens, targets, asked, share)

    def _train_call(self, tokens: Tensor, at: Tensor | None) -> Any:
        return self.call(tokens, phase="train", at=at)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16")

    def _diverged(self, examples: Examples, loss: float) -> Any:
        """The diagnostic: the same step once more, watched."""
        self._prepare()
        where = ""
        with torch.enable_grad():
            for batch in self._split(examples):
                where = first_not_finite(self.model, lambda batch=batch: self._terms(*batch)[0])  # type: ignore[misc]
                if not where.startswith(CLEAR):
                    break
        return self._not_finite(f"the loss is {loss:g} in step {self.done + 1}: {where}")

    def _not_finite(self, message: str) -> Any:
        return complaint("A571", message, self.file, "the last checkpoint is good: lower `--lr` or lengthen `--warmup`")

    def _too_large(self, error: BaseException) -> Any:
        s = self.settings
        message = f"step {self.done + 1} does not fit into the memory of {self.device}: {str(error).strip().splitlines()[0]}"
        half = max(1, s.batch // 2)
        smaller = f"`--batch {half} --accumulate {s.accumulate * s.batch // half}` computes the same steps with less"
        help_line = smaller if s.batch > 1 else f"lower `--length` below {s.length}, or train fewer parts (`lora`)"
        return complaint("A576", message, self.file, help_line)

    def state(self) -> dict[str, Tensor]:
        """All that moves: weights, moments, multiplier."""
        found: dict[str, Tensor] = {f"weight.{name}": weight for name, weight in self.moving.items()}
        for name, weight in self.moving.items():
            for word, value in self.optimizer.state.get(weight, {}).items():
                found[f"{word}.{name}"] = torch.as_tensor(value)
        return found | {"multiplier": self.objective.multiplier}

    @torch.no_grad()
    def go_to(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Back to a state; raises KeyError for one of another model."""
        self.done = step
        self.objective.multiplier.copy_(state["multiplier"])
        self.optimizer.state.clear()
        for name, weight in self.moving.items():
            if state[f"weight.{name}"].shape != weight.shape:
                raise KeyError(name)
            weight.copy_(state[f"weight.{name}"])
            moments = {word: state[f"{word}.{name}"] for word in ("step", "exp_avg", "exp_avg_sq") if f"{word}.{name}" in state}
            if moments:
                place = {"step": self.device if self.optimizer.defaults["fused"] else "cpu"}
                self.optimizer.state[weight] = {w: v.clone().to(place.get(w, self.device)) for w, v in moments.items()}

    def weights(self) -> dict[str, Tensor]:
        """The tensors that the recipe changed, with LoRA merged, by name."""
        own = self.model.state_dict()
        found = {name: own[name] for name in self.moving if name in own}
        return found | {name: adapter.merged(own[name]) for name, adapter in self.adapters.items()}
