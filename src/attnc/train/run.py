"""A run from its first step to the weights that it leaves: what `attnc train` does."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import attnc
from attnc.codegen.problem import complaint
from attnc.compiler import graph, passes
from attnc.compiler.causality import refuse
from attnc.compiler.laws import laws
from attnc.compiler.parameters import parameters
from attnc.compiler.policies import of_folder
from attnc.compiler.recipe import Recipe
from attnc.compiler.spec import Spec
from attnc.dsl import SpecError
from attnc.runtime.weights import load_weights
from attnc.tasks.examples import Task, TaskError
from attnc.train import checkpoint, folder, plot
from attnc.train.process import asked_to_stop, deterministic
from attnc.train.report import Progress, Settings, TrainReport
from attnc.train.scores import teaches_scores
from attnc.train.source import FromTask, Source
from attnc.train.text import FromText, encoder
from attnc.train.trainer import Trainer

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel

Say = Callable[[Progress], None]
Note = Callable[[str], None]

FREE = ("steps", "lr", "warmup", "clip", "every", "keep", "device")
"""Settings that a resumed run may change."""


NOT_IN_THE_TEXT = ("mqar", "copy")
"""Tasks that a model may look ahead for."""


class StoppedError(KeyboardInterrupt):
    """Somebody asked the run to stop; its last checkpoint holds every step that was done."""


def train(place: Path, settings: Settings, task: Task | None, say: Say, note: Note) -> TrainReport:
    """Begins a run. `task` draws its examples; None: `settings.file` is read. Raises SpecError."""
    spec = _spec(place)
    _fits(spec, settings, place)
    return _run(place, None, spec, settings, task, say, note)


def resume(
    place: Path, changes: dict[str, object], task_of: Callable[[Settings], Task | None], say: Say, note: Note
) -> TrainReport:
    """Goes on with the last run. `changes`: settings that were given; SpecError A577 where they would make another run."""
    run, settings = folder.read_settings(place)
    for name, value in changes.items():
        if name not in FREE and getattr(settings, name) != value:
            message = f"{run.name} was begun with {name} {getattr(settings, name)}, not {value}"
            help_line = f"leave it out, or begin a new run; only {', '.join(FREE)} may change"
            raise SpecError([complaint("A577", message, run, help_line)])
    settings = Settings(**{**vars(settings), **changes})
    folder.write_settings(run, settings)
    return _run(place, run, _spec(place), settings, task_of(settings), say, note)


def _spec(place: Path) -> Spec:
    spec: Spec = of_folder(place)
    return spec


def _fits(spec: Spec, settings: Settings, place: Path) -> None:
    """Raises SpecError: A301 for a choice that training would let look ahead, A566 for a model that sees its answers, A575 for
    examples that are longer than what the model was made for.
    """
    if teaches_scores(spec) != "alone":  # where what would be chosen is not seen meanwhile
        refuse(spec, "training")
    if settings.task not in NOT_IN_THE_TEXT and (ahead := [law for law in laws(spec) if law.name == "causal" and not law.owed]):
        message = f"{settings.task} teaches nothing: later tokens reach earlier places ({ahead[0].reason})"
        help_line = f"{' and '.join(NOT_IN_THE_TEXT)} can be learned: their answers are nowhere in the text"
        raise SpecError([complaint("A566", message, place, help_line)])
    if spec.model.context is not None and settings.length > spec.model.context:
        message = f"examples of {settings.length} tokens are longer than the model's context of {spec.model.context}"
        raise SpecError([complaint("A575", message, place, f"use `--length {spec.model.context}` or less")])


def _run(place: Path, run: Path | None, spec: Spec, settings: Settings, task: Task | None, say: Say, note: Note) -> TrainReport:
    """`run` None: a new one, begun when all that can be wrong with it was looked at."""
    with deterministic(settings.device), TemporaryDirectory(prefix="attnc-teacher-") as scratch:
        model = attnc.load(place, settings.device, torch.float32)
        if run is not None:
            _restart(model, place, run)
        _same_spec(model, spec, place)
        source = _source(place, settings, task, model)
        trainer = Trainer(model, spec, settings, Path(scratch) / "teacher", str(place / "spec.attn"))
        for decision in trainer.decisions:
            note(f"note: {decision}")
        run = run or folder.begin(place, settings)
        note(f"run      {run}")
        return _Run(place, run, spec, settings, trainer, source, say, note).go()


def _restart(model: BuiltModel, place: Path, run: Path) -> None:
    """The weights that the run began with, where the folder has others by now."""
    start = folder.started(run)
    if any(not (place / path.name).exists() or not os.path.samefile(path, place / path.name) for path in start):
        load_weights(model, start)


def _same_spec(model: BuiltModel, spec: Spec, place: Path) -> None:
    """Raises SpecError A578 for a recipe that needs the compiler where the folder's spec is not what was built."""
    recipe = spec.recipe or Recipe()
    foretold = {one.name: one.shape for one in parameters(spec, passes.run(graph.build(spec)))}
    if foretold == {name: tuple(one.shape) for name, one in model.named_parameters()}:
        return
    words = [word for word in ("teacher", "randomize") if getattr(recipe, word)]
    if words or any(not isinstance(one, str) for one in recipe.loss or ()):
        message = f"the recipe's `{(*words, 'lagrangian')[0]}` needs the spec that was built, and spec.attn is another one"
        raise SpecError([complaint("A578", message, place, "build the folder again from its spec")])


def _source(place: Path, settings: Settings, task: Task | None, model: BuiltModel) -> Source:
    vocabulary: int = model.get_submodule("model.embed_tokens").weight.shape[0]  # type: ignore[assignment, index]
    if task is not None:
        drawn = FromTask(task, settings.seed, settings.length, vocabulary)
        try:
            drawn.examples(0, 1)
        except TaskError as error:
            raise SpecError([complaint("A560", str(error).removeprefix("A560: "), place, error.help)]) from error
        return drawn
    assert settings.file is not None, "a text has a file"
    _, encode = encoder(place, vocabulary)
    return FromText(Path(settings.file), settings.length, encode)


class _Run:
    """One process's part of a run."""

    def __init__(
        self, place: Path, run: Path, spec: Spec, settings: Settings, trainer: Trainer, source: Source, say: Say, note: Note
    ) -> None:
        self.place, self.run, self.settings, self.trainer, self.source = place, run, settings, trainer, source
        self.say, self.note = say, note
        self.digest = hashlib.sha256(spec.text.encode()).hexdigest()
        self.columns = ("loss", *trainer.model.adds, *trainer.objective.words())
        self.history: list[list[float]] = []
        self.saved = 0
        self.size = settings.batch * settings.accumulate
        self.resumed = self._load()

    def go(self) -> TrainReport:
        """All steps that are left, then weights, plot and report."""
        began, first = time.monotonic(), self.trainer.done
        with asked_to_stop() as stopped:
            while self.trainer.done < self.settings.steps:
                self._step()
                if stopped():
                    self._save(self.source.position())
                    raise StoppedError(f"stopped after step {self.trainer.done}: `--resume` goes on from there")
            position = self.source.position()
            held = self.trainer.loss(self.source.examples(self.trainer.done, self.size))
            if self.saved < self.trainer.done:
                self._save(position)
            written = self._weights()
        seconds = time.monotonic() - began
        tokens = (self.trainer.done - first) * self.size * self.settings.length
        return self._report(held, written, tokens, seconds)

    def _step(self) -> None:
        began, position = time.monotonic(), self.source.position()
        examples = self.source.examples(self.trainer.done, self.size)
        rate = self.trainer.rate()
        due = self.trainer.done % self.settings.every == 0 and self.trainer.done > self.saved
        terms, loss, norm = self.trainer.step(examples, (lambda: self._save(position)) if due else lambda: None)
        self.history.append([loss, *(terms[word] for word in self.columns[1:])])
        speed = self.size * self.settings.length / (time.monotonic() - began)
        progress = Progress(
            step=self.trainer.done,
            steps=self.settings.steps,
            loss=loss,
            terms=terms,
            lr=rate,
            norm=norm,
            tokens_per_second=speed,
        )
        self.say(progress)

    def _save(self, position: dict[str, Tensor]) -> None:
        """A checkpoint of what is done; `position` is where the source stood then."""
        tensors = {**self.trainer.state(), **position, "history": torch.tensor(self.history, dtype=torch.float64)}
        about = {"spec": self.digest, "columns": " ".join(self.columns), "text": self.source.digest}
        checkpoint.save(self.run, self.trainer.done, tensors, about, self.settings.keep)
        self.saved = self.trainer.done

    def _load(self) -> int | None:
        """Back to the last checkpoint; None where there is none yet. Raises SpecError A572 for one of another spec."""
        known = checkpoint.steps(self.run)
        if not known:
            return None
        path = checkpoint.path_of(self.run, known[-1])
        tensors, words = checkpoint.load(path)
        try:
            if words.get("text", "") != self.source.digest:
                message = f"{self.settings.file} is not the text that the run began with"
                raise SpecError([complaint("A577", message, self.run, "bring the text back, or begin a new run")])
            if words.get("spec") != self.digest or words.get("columns") != " ".join(self.columns):
                raise KeyError("spec.attn")
            self.history = tensors.pop("history").tolist()
            self.trainer.go_to(known[-1], tensors)
        except KeyError as error:
            message = f"{path.name} belongs to another spec: {error.args[0]} differs"
            raise SpecError([complaint("A572", message, path, "begin a new run without `--resume`")]) from error
        self.source.go_to({name: tensor for name, tensor in tensors.items() if name.startswith("text.")})
        self.saved = known[-1]
        return known[-1]

    def _weights(self) -> tuple[Path, ...]:
        """The trained weights into the folder."""
        model = self.trainer.model
        first = {id(weight): name for name, weight in model.named_parameters()}
        ties = {name: first[id(weight)] for name, weight in model.named_parameters(remove_duplicate=False)}
        return folder.put_weights(self.place, self.run, self.trainer.weights(), ties)

    def _report(self, held: float, written: tuple[Path, ...], tokens: int, seconds: float) -> TrainReport:
        named = (
            [dict(zip(self.columns, row, strict=True)) for row in (self.history[0], self.history[-1])]
            if self.history
            else [{}, {}]
        )
        counts = [
            sum(w.numel() for n, w in self.trainer.moving.items() if (n in self.trainer.moves.train) == own)
            for own in (True, False)
        ]
        picture = plot.draw(self.columns, self.history, self.run / "loss.png", self._title()) if plot.there() else None
        if picture is None:
            self.note("note: no loss.png, since matplotlib is not installed: pip install 'attnc[plot]'")
        return TrainReport(
            folder=str(self.place),
            run=str(self.run),
            settings=self.settings,
            resumed=self.resumed,
            parameters=sum(weight.numel() for weight in self.trainer.model.parameters()),
            trained=counts[0],
            lora=counts[1],
            first=named[0],
            last=named[1],
            held=held,
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=tokens / seconds if tokens else 0.0,
            checkpoint=str(checkpoint.path_of(self.run, self.trainer.done)),
            weights=tuple(str(path) for path in written),
            plot=None if picture is None else str(picture),
        )

    def _title(self) -> str:
        s = self.settings
        return f"{self.place.name}: {s.task}, {s.length} tokens, {self.size} examples a step, lr {s.lr:g}"
