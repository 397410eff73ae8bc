"""All rows of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import exp
from pathlib import Path
from typing import Any

import torch

import attnc
from attnc.evaluate import asking, intervals
from attnc.evaluate.report import Depth, EvalReport, Form, Loss, Share
from attnc.evaluate.subject import Subject, enough_memory
from attnc.tasks.examples import UNSEEN, Examples, Task
from attnc.tasks.named import TASKS
from attnc.tasks.prompts import PROMPTS, Prompt
from attnc.tasks.text import Text, problem, topics

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where trials put what they ask about, in turn."""

READ = ("mqar", "copy")
"""Tasks with many answers, each read where it is asked. The others have one at the end, which is decoded with the cache."""

GUESSED = {"passkey": 1 / 90_000, "multikey": 1 / 9_000_000}
"""What guessing a number of as many digits gets right."""

Progress = Callable[[str, int, int], None]
"""Hears of a row, trials in all, and trials done."""


@dataclass(frozen=True)
class Options:
    """The words of the command line. `form`: how text is read, and whether passkeys are text; None: as the folder says."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    trials: int = 40
    batch: int = 8
    seed: int = 0
    pairs: tuple[int, ...] = (8,)
    noise: bool = True
    keys: int = 4
    form: Form | None = None
    text: Path | None = None
    beyond_context: bool = False


@dataclass(frozen=True)
class Question:
    """A row to be: a task at a length; `task` where it is asked on token ids, `settings` where it is a prompt."""

    name: Any
    length: int
    form: Form
    task: Task | None
    settings: dict[str, Any]


def evaluate(subject: Subject, options: Options, progress: Progress) -> EvalReport:
    """A row for each task and length, and of mqar for each number of pairs.

    Whatever cannot be asked is found before anything is. Raises SpecError A56x, TaskError A560.
    """
    text = (Text(str(options.text), options.text) if options.text else topics()) if "nll" in options.tasks else None
    digest = text.digest() if text else ""
    questions = [
        question for name in options.tasks for length in options.lengths for question in _of(subject, name, length, options)
    ]
    for question in questions:
        _check(subject, question, options)
    rows: list[Loss | Share] = []
    for question in questions:
        said = partial(progress, f"{question.name}, {question.length} tokens", options.trials)
        with enough_memory(subject.folder, options.batch, question.length):
            if question.name == "nll":
                assert text is not None, "nll reads a text"
                rows.append(_loss(subject, question, text, digest, options, said))
            else:
                rows.append(_share(subject, question, options, said))
    weight = next(subject.model.parameters())
    return EvalReport(
        folder=str(subject.folder),
        name=subject.spec.model.name,
        context=subject.spec.model.context,
        parameters=sum(one.numel() for one in subject.model.parameters()),
        device=torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else "cpu",
        dtype=str(weight.dtype).removeprefix("torch."),
        seed=options.seed,
        batch=options.batch,
        torch=torch.__version__,
        attnc=attnc.__version__,
        rows=tuple(rows),
    )


def _of(subject: Subject, name: str, length: int, options: Options) -> list[Question]:
    """The rows of a task at a length."""
    form = options.form or subject.form
    settings = {"keys": options.keys} if name == "multikey" else {}
    if name == "nll":
        return [Question(name, length, "text" if form == "tokens" else form, None, {})]
    if name in PROMPTS and form != "tokens":
        return [Question(name, length, form, None, settings)]
    every = [{"pairs": pairs, "noise": options.noise} for pairs in options.pairs] if name == "mqar" else [settings]
    tasks = [TASKS[name](**one) for one in every]
    return [Question(name, length, "tokens", task, _settings(task)) for task in tasks]


def _settings(task: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(task).items() if name != "depth"}


def _check(subject: Subject, question: Question, options: Options) -> None:
    """Raises SpecError or TaskError if the question cannot be asked."""
    context = subject.spec.model.context
    if context is not None and question.length > context and not options.beyond_context:
        message = f"{question.length} tokens are more than the context of {subject.spec.model.name}, {context}"
        raise problem("A563", message, str(subject.folder), f"--length {context} or less, or --beyond-context")
    if question.name == "nll" or (question.name not in READ and not subject.model.causal):
        subject.must_not_look_ahead(question.name)  # an answer that is decoded is not there to be seen
    if question.task is not None:
        question.task.batch(options.seed, UNSEEN, 1, question.length, subject.vocabulary)
    else:
        tokenizer = subject.tokenizer(question.form)
        if question.name in PROMPTS:
            PROMPTS[question.name](tokenizer, options.seed, 0, question.length, 0.0, **question.settings)


def _loss(subject: Subject, question: Question, text: Text, digest: str, options: Options, said: asking.Said) -> Loss:
    tokenizer = subject.tokenizer(question.form)
    found = asking.losses(subject, tokenizer, text, question.length, options.trials, options.batch, said)
    if not found:
        raise problem("A562", f"{text.name} is a single token: nothing follows from nothing", text.name, "name a longer text")
    nats, tokens = [row[0] for row in found], [row[1] for row in found]
    value = sum(nats) / sum(tokens)
    low, high = intervals.mean(nats, tokens) or (None, None)
    return Loss(
        form=question.form,
        length=question.length,
        value=value,
        low=low,
        high=high,
        perplexity=exp(min(value, 700.0)),
        windows=len(found),
        tokens=sum(tokens),
        text=text.name,
        sha256=digest,
        read=subject.read,
        cache_bytes=subject.cache_bytes(question.length),
    )


@lru_cache(maxsize=4)
def _prompts(
    name: str, reader: asking.Reader, seed: int, length: int, depths: tuple[float, ...], settings: tuple[tuple[str, Any], ...]
) -> tuple[Prompt, ...]:
    """The prompts of a task, which many models of one tokenizer are asked: making long ones takes as long as answering."""
    make = partial(PROMPTS[name], reader, seed, **dict(settings))
    return tuple(make(trial, length, depth) for trial, depth in enumerate(depths))


def _answers(
    subject: Subject, question: Question, options: Options, said: asking.Said
) -> tuple[list[tuple[int, int]], list[float], float]:
    """(right answers, questions) of each trial, its depth, and the share that guessing gets right."""
    name, length, task = question.name, question.length, question.task
    if task is None:
        tokenizer = subject.tokenizer(question.form)
        depths = [DEPTHS[trial % len(DEPTHS)] for trial in range(options.trials)]
        prompts = _prompts(name, tokenizer, options.seed, length, tuple(depths), tuple(question.settings.items()))
        said_right = asking.say(subject, tokenizer, prompts, options.batch, said)
        return [(int(one), 1) for one in said_right], depths, GUESSED[name]
    if name in READ:
        examples = task.batch(options.seed, UNSEEN, options.trials, length, subject.vocabulary)
        return asking.read(subject, examples, options.batch, said), [], task.chance(subject.vocabulary)
    examples, depths = _at_depths(task, length, options, subject.vocabulary)
    decoded = asking.decode(subject, examples, options.batch, said)
    return [(int(one), 1) for one in decoded], depths, task.chance(subject.vocabulary)


def _share(subject: Subject, question: Question, options: Options, said: asking.Said) -> Share:
    found, depths, chance = _answers(subject, question, options, said)
    right, asked = [row[0] for row in found], [row[1] for row in found]
    number = intervals.effective(right, asked)
    low, high = intervals.wilson(sum(right) / sum(asked), number)
    by_depth = {
        depth: [one for one, where in zip(right, depths, strict=True) if where == depth] for depth in sorted(set(depths))
    }
    return Share(
        task=question.name,
        form=question.form,
        length=question.length,
        settings=question.settings,
        value=sum(right) / sum(asked),
        low=low,
        high=high,
        effective=number,
        right=sum(right),
        asked=sum(asked),
        trials=len(found),
        chance=chance,
        depths=tuple(Depth(depth=depth, right=sum(ones), trials=len(ones)) for depth, ones in by_depth.items()),
        read=subject.read,
        cache_bytes=subject.cache_bytes(question.length),
    )


def _at_depths(task: Any, length: int, options: Options, vocabulary: int) -> tuple[Examples, list[float]]:
    """Trials at all depths, evenly, and the depth of each."""
    counts = {depth: len(range(number, options.trials, len(DEPTHS))) for number, depth in enumerate(DEPTHS)}
    parts = [
        dataclasses.replace(task, depth=depth).batch(options.seed, UNSEEN, count, length, vocabulary)
        for depth, count in counts.items()
        if count
    ]
    examples = Examples(torch.cat([part.tokens for part in parts]), torch.cat([part.targets for part in parts]))
    return examples, [depth for depth, count in counts.items() for _ in range(count)]
