"""`make evidence-chosen`: mixes in which content chooses keys, grafted onto a model and asked; their part of docs/evidence.md.

    python tools/evidence_chosen.py --model .demo/smollm2.attn

The model is a spec with its weights beside it, as `attnc import` leaves them (`make demo` imports SmolLM2-135M). Every row is
written down when it is done, and a command that was stopped goes on with those that are missing. Several such commands share
the rows; times are measured by the one that finds all others done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock, Timeout

import attnc
from attnc.bench.machine import commit
from attnc.compiler.data import from_json, to_json
from attnc.compiler.graft import graft
from attnc.compiler.units import Units
from attnc.dsl import parse, read
from attnc.evaluate import run as asking
from attnc.evaluate.asking import losses_behind
from attnc.evaluate.evidence_chosen import Asked, ChosenEvidence, joined, part
from attnc.evaluate.report import Share
from attnc.evaluate.subject import Subject
from attnc.evaluate.tokenizer import NAME
from attnc.tasks.text import Text, topics
from attnc.tune.costs import measured
from attnc.tune.models import Models

TOP = Path(__file__).resolve().parent.parent
COMMAND = "make evidence-chosen"
LEAST = 256
"""Keys that the mixes have room for."""

BODY = "model method { vocab = 64, dim = 64, layers = 1, heads = 8, kv_heads = 8, ffn = none, norm = rms(1e-6) }\n"
"""What a method stands on before it is grafted."""

MIXES: dict[str, Callable[[int], str]] = {
    "full": lambda _: "full",
    "streaming-llm": lambda k: f"sink(4) | window({k - 4})",
    "infllm-v2": lambda k: (
        f"sink(64) | window({max(1, k // 256) * 64}, aligned = 64) | routed(blocks(64), top_k = {k // 64},"
        " keys = mean(32, stride = 16), score = softmax(lse = mean(128, stride = 64)), fold = max, per = group(sum),"
        " overlap = counted)"
    ),
    "quest": lambda k: (
        f"when {{ phase == decode: block_local(16) | routed(blocks(16), top_k = {k // 16}, keys = minmax, per = head,"
        " overlap = counted), else: full }"
    ),
    "moba": lambda k: f"block_local(64) | routed(blocks(64), top_k = {k // 64}, keys = mean, per = head, overlap = counted)",
    "minference": lambda k: (
        f"when {{ phase == prefill: sink(4) | window(64) | routed(columns, top_k = {k // 2 - 68}, queries = last(64),"
        f" score = softmax, per = head) | routed(diagonals, top_k = {k // 2}, queries = last(64), score = softmax, per = head),"
        " else: full }"
    ),
    "recycled": lambda k: (
        f"when {{ phase == decode: routed(tokens, top_k = {k}, score = softmax, per = group(max),"
        " refresh = [every(50), cosine(0.8, every = 5)], on_refresh = dense), else: full }"
    ),
}
"""How each mix keeps k keys a query: MInference in prefill alone, Quest and Recycled Attention in decode alone."""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TOP / ".demo" / "smollm2.attn")
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--lengths", default="2048,4096,8192")
    parser.add_argument("--share", type=int, default=8, help="a query keeps one key in so many")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--decoded", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16 if cuda else 1)
    parser.add_argument("--kernels", default="", help="mixes whose launches run on generated kernels, whatever plans say")
    parser.add_argument("--no-times", action="store_true", help="leave times to another command")
    parser.add_argument("--text", type=Path, default=None, help="what NLL is of; the package's own text by default")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if cuda else "float32")
    parser.add_argument("--out", type=Path, default=TOP / "docs", help="where evidence.md and evidence/chosen.json go")
    found = parser.parse_args(words)
    if min(map(int, found.lengths.split(","))) < LEAST * found.share:
        parser.error(f"a query keeps {LEAST} keys at least: lengths from {LEAST * found.share} tokens on, or a smaller --share")
    return found


def main(command_line: list[str]) -> None:
    """All rows that are missing and that nobody else works on; then times, where no row is missing, and the page's part."""
    words = arguments(command_line)
    words.out.joinpath("evidence").mkdir(parents=True, exist_ok=True)
    rows = [(mix, length) for length in map(int, words.lengths.split(",")) for mix in words.mixes.split(",")]
    with TemporaryDirectory(prefix="attnc-evidence-") as scratch:
        table = Rows(
            words,
            Models(
                Units(attnc.check(words.model)),
                (),
                words.model.with_suffix(""),
                Path(scratch),
                words.device,
                words.dtype,
                "cpu" if words.device == "cpu" else "h200",
            ),
        )
        waiting = []
        for mix, length in rows:
            with table.alone(f"{mix}-{length}") as mine:
                if not mine:
                    waiting.append(f"{mix} at {length}")
                elif table.row(mix, length) is None:
                    row = asked(table, mix, length)
                    table.put(row)
                    print(f"{mix}, {length}: NLL {row.nll:.3f}, passkey {row.passkey:.1%}", flush=True)
        if waiting:
            print(f"others are at work on {', '.join(waiting)}; the last command measures times")
            return
        if not words.no_times:
            with table.alone("times") as mine:
                for mix, length in rows if mine else ():
                    timed(table, mix, length)
    page = words.out / "evidence.md"
    write(page, joined(page.read_text("utf-8") if page.exists() else "", part(table.known(), COMMAND)))
    print(f"wrote {page}")


@dataclass(eq=False)
class Rows:
    """What is written down, by several processes, and models of the same weights."""

    words: argparse.Namespace
    models: Models

    @property
    def record(self) -> Path:
        """The file."""
        found: Path = self.words.out / "evidence" / "chosen.json"
        return found

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Whether no other process has this name."""
        place = self.record.with_name(".chosen")
        place.mkdir(exist_ok=True)
        lock = FileLock(place / name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @cached_property
    def empty(self) -> ChosenEvidence:
        """How everything is measured."""
        words = self.words
        device = torch.cuda.get_device_name() if words.device != "cpu" else "cpu"
        settings = {"device": device, "dtype": words.dtype, "share": 1 / words.share, "trials": words.trials}
        settings |= {"text": self.text.name, "windows": words.windows, "decoded": words.decoded, "commit": commit()}
        kernels = tuple(word for word in words.kernels.split(",") if word)
        return ChosenEvidence(**settings, model=words.model.stem, kernels=kernels)

    @cached_property
    def text(self) -> Text:
        """What NLL is of."""
        return Text(self.words.text.name, self.words.text) if self.words.text else topics(held_out=False)

    def known(self) -> ChosenEvidence:
        """What is written down already, if it was measured in the same way."""
        if not self.record.exists():
            return self.empty
        found = from_json(ChosenEvidence, self.record.read_text("utf-8"))
        return found if replace(found, rows=()) == self.empty else self.empty

    def row(self, mix: str, length: int) -> Asked | None:
        """A row that is written down."""
        return next((row for row in self.known().rows if (row.mix, row.length) == (mix, length)), None)

    def put(self, row: Asked) -> None:
        """Writes a row down, in place of an earlier one."""
        with FileLock(self.record.with_name(".chosen") / "record"):
            known = self.known()
            others = tuple(one for one in known.rows if (one.mix, one.length) != (row.mix, row.length))
            write(self.record, to_json(replace(known, rows=(*others, row)), indent=1) + "\n")

    def subject(self, mix: str, length: int) -> Subject:
        """The model with a mix in all layers."""
        place = self.models.scratch
        written, spec = place / "method.attn", place / "grafted.attn"
        written.write_text(f"{BODY}layers {{ all: {MIXES[mix](length // self.words.share)} }}\n", "utf-8")
        spec.write_text(graft(parse(read(str(written))), parse(read(str(self.words.model)))), "utf-8")
        checked = attnc.check(spec)
        model = self.models.load(checked)
        folder = place / f"model_{self.models.count}"
        shutil.copyfile(self.models.weights / NAME, folder / NAME)
        return Subject(folder, model.use("triton") if mix in self.empty.kernels else model, checked)


def asked(table: Rows, mix: str, length: int) -> Asked:
    """One mix at one length."""
    words, subject = table.words, table.subject(mix, length)
    rows = losses_behind(
        subject, subject.tokenizer(subject.form), table.text, length, words.windows, words.batch, words.decoded
    )
    options = asking.Options(tasks=("passkey",), lengths=(length,), trials=words.trials, batch=words.batch)
    (answers,) = asking.evaluate(subject, options, lambda *_: None).rows
    assert isinstance(answers, Share), "passkeys are shares"
    tokens = sum(count for _, count in rows)
    return Asked(
        mix=mix,
        length=length,
        kept=1.0 if mix == "full" else (length // words.share) / length,
        nll=sum(nats for nats, _ in rows) / tokens,
        tokens=tokens,
        passkey=answers.value,
        low=answers.low,
        high=answers.high,
        trials=answers.trials,
        cache_bytes=subject.cache_bytes(length),
    )


def timed(table: Rows, mix: str, length: int) -> None:
    """Times of a row that has none."""
    row = table.row(mix, length)
    assert row is not None, "all rows are there"
    if row.prefill is None:
        taken = measured({mix: table.subject(mix, length).model}, length, 1, print)[mix]
        table.put(replace(row, prefill=taken["prefill_ms"], decode=taken["decode_ms"]))
        print(f"{mix}, {length}: prefill {taken['prefill_ms']:.4g} ms, decode {taken['decode_ms']:.4g} ms", flush=True)


def write(path: Path, text: str) -> None:
    """In one step, so that a killed command loses no row that was done."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with the rows that are missing")
