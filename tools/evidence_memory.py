"""`make evidence-memory`: mixes with memories learn to recall, are asked of longer texts, and a model is converted.

    python tools/evidence_memory.py --model .demo/smollm2.attn

The model is a spec with its weights beside it, as `make demo` leaves them; without it nothing is converted. Every run is
written down when it is done. A command that was stopped goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from evidence_runs import AT_ONCE, FOLDER, TOP, Ahead, diverged, say, settings, side_by_side, write

import attnc
from attnc.bench.machine import commit
from attnc.compiler.data import from_json, to_json
from attnc.compiler.graft import graft
from attnc.dsl import SpecError, parse, read
from attnc.evaluate import asking
from attnc.evaluate import run as evaluation
from attnc.evaluate.evidence_chosen import joined
from attnc.evaluate.evidence_memory import Converted, MemoryEvidence, Recalled, Remembered, part
from attnc.evaluate.report import Loss
from attnc.evaluate.subject import Subject
from attnc.tasks.examples import NOT_ASKED, UNSEEN, Examples, Task
from attnc.tasks.passkeys import Needle
from attnc.tasks.recall import Mqar
from attnc.tasks.several import Several
from attnc.tasks.text import topics
from attnc.train.run import train
from attnc.train.trainer import FAST_WEIGHTS

SPECS = ("full", "window", "lmm", "mac", "mag", "mal")
COMMAND = "make evidence-memory"
SHORTER = 8
"""What is asked is learned from texts so many times shorter first: few questions a step find a needle in long ones late."""

METHODS = {"full": "full", "window": "sink(4) | window(512)", "allmem": ""}
"""How the model that is converted attends; the last one as its file says."""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specs", default=",".join(SPECS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--lengths", default="2048,8192,32768", help="of the texts that are asked")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--model", type=Path, default=TOP / ".demo" / "smollm2.attn")
    parser.add_argument("--taught", type=int, default=2048, help="tokens of a text that teaches the conversion")
    parser.add_argument("--taught-steps", type=int, default=150)
    parser.add_argument("--read", type=int, default=4096, help="tokens of a text whose loss is taken")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--processes", type=int, default=AT_ONCE, help="runs at a time: small models leave a GPU idle")
    parser.add_argument("--out", type=Path, default=TOP / "docs", help="where evidence.md and evidence/memory.json go")
    found = parser.parse_args(words)
    found.lengths = tuple(map(int, found.lengths.split(",")))
    return found


def main(command_line: list[str]) -> None:
    """All runs that are missing, then the page's part."""
    words = arguments(command_line)
    record, page = words.out / "evidence" / "memory.json", words.out / "evidence.md"
    record.parent.mkdir(parents=True, exist_ok=True)
    known = begun(words, record)
    for found in measured(words, known):
        name = "runs" if isinstance(found, Remembered) else "converted"
        known = replace(known, **{name: (*getattr(known, name), found)})
        put(known, record, page)
    put(known, record, page)
    print(f"wrote {page}")


def put(known: MemoryEvidence, record: Path, page: Path) -> None:
    """Writes numbers and the page's part down; a command that is killed leaves both of the same runs."""
    runs = sorted(known.runs, key=lambda run: (SPECS.index(run.spec), run.seed))
    converted = sorted(known.converted, key=lambda one: list(METHODS).index(one.mix))
    known = replace(known, runs=tuple(runs), converted=tuple(converted))
    write(record, to_json(known, indent=1) + "\n")
    write(page, joined(page.read_text("utf-8") if page.exists() else "", part(known, COMMAND)))


def begun(words: argparse.Namespace, record: Path) -> MemoryEvidence:
    """What is written down already, if it was measured in the same way."""
    same = {
        name: getattr(words, name)
        for name in ("steps", "batch", "length", "lengths", "pairs", "lr", "trials", "taught", "read")
    }
    device = "cpu" if words.device == "cpu" else torch.cuda.get_device_name()
    empty = MemoryEvidence(**same, text=topics().name, device=device, torch=torch.__version__, commit=commit())
    if not record.exists():
        return empty
    found = from_json(MemoryEvidence, record.read_text("utf-8"))
    if replace(found, runs=(), converted=()) == empty:
        return found
    print(f"{record} is of another commit or other settings: all runs anew")
    return empty


def measured(words: argparse.Namespace, known: MemoryEvidence) -> Iterator[Remembered | Converted]:
    """What is missing: small models, all with one seed before any with the next, and before the second seed the conversion."""
    done = {(run.spec, run.seed) for run in known.runs}
    wanted = [(spec, seed) for seed in range(words.seeds) for spec in words.specs.split(",") if (spec, seed) not in done]
    first = [one for one in wanted if one[1] == 0]
    yield from side_by_side(words.processes, partial(remembered, words), first)
    if words.model.is_file():
        there = {one.mix for one in known.converted}
        yield from (converted(words, mix) for mix in METHODS if mix not in there)
    else:
        print(f"{words.model} is not there (`make demo` makes it): nothing is converted")
    yield from side_by_side(words.processes, partial(remembered, words), wanted[len(first) :])


def remembered(words: argparse.Namespace, wanted: tuple[str, int]) -> Remembered:
    """One small model from nothing to its answers, in a folder that is thrown away."""
    spec, seed = wanted
    name = f"{spec}, seed {seed}"
    tasks: dict[str, Task] = {"needle": Needle(), "mqar": Mqar(pairs=words.pairs, power=1.0, noise=False)}
    with TemporaryDirectory(prefix="attnc-evidence-") as scratch:
        place = Path(scratch) / spec
        attnc.build(attnc.check(FOLDER / "memory" / f"{spec}.attn"), place, device="cpu", init=seed)
        chosen = {"task": "needle", "lr": words.lr, "seed": seed}
        short = {"steps": words.steps, "length": words.length // SHORTER, "batch": 2 * words.batch}
        long = {"steps": words.steps // 2, "length": words.length, "batch": words.batch}
        task = Ahead(Several(tuple(tasks.values())))
        try:
            first, report = (
                train(place, settings(words.device, **chosen, **texts), task, partial(say, name), lambda _: None)
                for texts in (short, long)
            )
        except SpecError as error:
            diverged(name, error)
            return Remembered(spec=spec, seed=seed, loss=None, seconds=0.0, parameters=0, recalled=())
        subject = Subject.of(place, words.device, None, reference=False)
        recalled = [recall(words, subject, word, task, length) for word, task in tasks.items() for length in words.lengths]
    shares = ", ".join(f"{one.right / one.asked:.1%} of {one.task} at {one.length}" for one in recalled)
    seconds = first.seconds + report.seconds
    print(f"{name}: {seconds:.0f} s, loss {report.held:.4f}, {shares}", flush=True)
    return Remembered(
        spec=spec,
        seed=seed,
        loss=report.held,
        seconds=seconds,
        parameters=report.parameters,
        recalled=tuple(recalled),
    )


def recall(words: argparse.Namespace, subject: Subject, name: str, task: Task, length: int) -> Recalled:
    """A trained model's answers at one length; texts in whose batch a memory diverged are answered wrongly."""
    right, asked, size = 0, 0, max(1, 2**17 // length)
    examples = task.batch(0, UNSEEN, words.trials, length, subject.vocabulary)
    for tokens, targets in zip(examples.tokens.split(size), examples.targets.split(size), strict=True):
        asked += int((targets != NOT_ASKED).sum())
        try:
            right += sum(row for row, _ in asking.read(subject, Examples(tokens, targets), size, lambda _: None))
        except RuntimeError as error:
            if getattr(error, "code", "") != FAST_WEIGHTS:
                raise
            print(f"{name} at {length}: {error}", flush=True)
    return Recalled(task=name, length=length, right=right, asked=asked, cache_bytes=subject.cache_bytes(length))


def converted(words: argparse.Namespace, mix: str) -> Converted:
    """The model's loss with another attention; what is new in it learns first, from the model as it was."""
    body = "model method { vocab = 64, dim = 64, layers = 1, heads = 9, kv_heads = 3, ffn = none, norm = rms(1e-6) }\n"
    with TemporaryDirectory(prefix="attnc-evidence-") as scratch:
        method, spec = Path(scratch) / "method.attn", Path(scratch) / f"{mix}.attn"
        own = f"{body}layers {{ all: {METHODS[mix]} }}\n"
        method.write_text(own if METHODS[mix] else (FOLDER / "memory" / f"{mix}.attn").read_text("utf-8"), "utf-8")
        spec.write_text(graft(parse(read(str(method))), parse(read(str(words.model)))), "utf-8")
        checked, place = attnc.check(spec), Path(scratch) / mix
        device = "cpu" if words.device == "cpu" else "h200"
        attnc.build(checked, place, device=device, weights=words.model.with_suffix(""), init=0)
        seconds = 0.0 if METHODS[mix] else taught(words, place, Path(scratch) / "text")
        subject = Subject.of(place, words.device, None, reference=False)
        options = evaluation.Options(tasks=("nll",), lengths=(words.read,), trials=words.windows, batch=1)
        (row,) = evaluation.evaluate(subject, options, lambda *_: None).rows
    assert isinstance(row, Loss), "a loss was asked for"
    print(f"{mix}: {row.value:.4f} nats a token", flush=True)
    return Converted(
        mix=mix,
        steps=0 if METHODS[mix] else words.taught_steps,
        seconds=seconds,
        nll=row.value,
        low=row.low,
        high=row.high,
        tokens=row.tokens,
        cache_bytes=row.cache_bytes,
    )


def taught(words: argparse.Namespace, place: Path, text: Path) -> float:
    """Seconds in which the spec's recipe was carried out on the text that may be learned from."""
    source: Any = topics(held_out=False).source
    text.write_text(source, "utf-8")
    chosen = {"steps": words.taught_steps, "length": words.taught, "batch": 1, "lr": 1e-3, "file": str(text)}
    chosen["dtype"] = "float32" if words.device == "cpu" else "bfloat16"
    report = train(place, settings(words.device, task="text", **chosen), None, partial(say, place.name), lambda _: None)
    return report.seconds


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with the runs that are missing")
