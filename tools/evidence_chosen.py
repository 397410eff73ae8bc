"""`make evidence-chosen`: mixes in which content chooses keys, grafted onto a model and asked; their part of docs/evidence.md.

    python tools/evidence_chosen.py --model .demo/smollm2.attn

The model is a spec with its weights beside it, as `attnc import` leaves them (`make demo` imports SmolLM2-135M). Every row is
written down when it is done; a command that was stopped goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

import attnc
from attnc.bench.machine import commit
from attnc.compiler.data import from_json, to_json
from attnc.compiler.graft import graft
from attnc.dsl import parse, read
from attnc.evaluate import run as asking
from attnc.evaluate.evidence_chosen import Asked, ChosenEvidence, joined, part
from attnc.evaluate.report import Share
from attnc.evaluate.subject import Subject
from attnc.tasks.text import Text, topics, windows

TOP = Path(__file__).resolve().parent.parent
COMMAND = "make evidence-chosen"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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
    "quest": lambda k: f"block_local(16) | routed(blocks(16), top_k = {k // 16}, keys = minmax, per = head, overlap = counted)",
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
"""How each mix keeps k keys a query: in every phase, MInference in prefill alone, Recycled Attention in decode alone."""


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
    parser.add_argument("--decoded", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8 if cuda else 1)
    parser.add_argument("--text", type=Path, default=None, help="what NLL is of; the package's own text by default")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if cuda else "float32")
    parser.add_argument("--out", type=Path, default=TOP / "docs", help="where evidence.md and evidence/chosen.json go")
    found = parser.parse_args(words)
    if min(map(int, found.lengths.split(","))) < LEAST * found.share:
        parser.error(f"a query keeps {LEAST} keys at least: lengths from {LEAST * found.share} tokens on, or a smaller --share")
    return found


def main(command_line: list[str]) -> None:
    """All rows that are missing, then the page's part."""
    words = arguments(command_line)
    record, page = words.out / "evidence" / "chosen.json", words.out / "evidence.md"
    record.parent.mkdir(parents=True, exist_ok=True)
    known = begun(words, record)
    done = {(row.mix, row.length) for row in known.rows}
    for length in map(int, words.lengths.split(",")):
        for mix in [mix for mix in words.mixes.split(",") if (mix, length) not in done]:
            row = asked(words, mix, length)
            known = replace(known, rows=(*known.rows, row))
            write(record, to_json(known, indent=1) + "\n")
            print(f"{mix}, {length}: NLL {row.nll:.3f}, passkey {row.passkey:.1%}, prefill {row.prefill:.3f} s", flush=True)
    write(page, joined(page.read_text("utf-8") if page.exists() else "", part(known, COMMAND)))
    print(f"wrote {page}")


def begun(words: argparse.Namespace, record: Path) -> ChosenEvidence:
    """What is written down already, if it was measured in the same way."""
    device = torch.cuda.get_device_name() if words.device != "cpu" else "cpu"
    text = (Text(words.text.name, words.text) if words.text else topics()).name
    settings = {"device": device, "dtype": words.dtype, "share": 1 / words.share, "trials": words.trials, "text": text}
    settings |= {"windows": words.windows, "decoded": words.decoded, "commit": commit(), "model": words.model.stem}
    empty = ChosenEvidence(**settings)
    if not record.exists():
        return empty
    found = from_json(ChosenEvidence, record.read_text("utf-8"))
    same = replace(found, rows=()) == empty
    if not same:
        print(f"{record} is of another commit or other settings: all rows anew")
    return found if same else empty


def asked(words: argparse.Namespace, mix: str, length: int) -> Asked:
    """One mix at one length, from a folder that is thrown away."""
    kept = length // words.share
    method = f"{BODY}layers {{ all: {MIXES[mix](kept)} }}\n"
    with TemporaryDirectory(prefix="attnc-evidence-") as scratch:
        written = Path(scratch) / "method.attn"
        written.write_text(method, "utf-8")
        spec = Path(scratch) / "grafted.attn"
        spec.write_text(graft(parse(read(str(written))), parse(read(str(words.model)))), "utf-8")
        place = Path(scratch) / mix
        costs = "cpu" if words.device == "cpu" else "h200"
        attnc.build(attnc.check(spec), place, device=costs, weights=words.model.with_suffix(""))
        subject = Subject.of(place, words.device, DTYPES[words.dtype], reference=False)
        nats, tokens = loss(words, subject, length)
        prefill, decode = times(subject, length)
        options = asking.Options(tasks=("passkey",), lengths=(length,), trials=words.trials, batch=words.batch)
        (answers,) = asking.evaluate(subject, options, lambda *_: None).rows
        assert isinstance(answers, Share), "passkeys are shares"
        return Asked(
            mix=mix,
            length=length,
            kept=1.0 if mix == "full" else kept / length,
            nll=nats / tokens,
            tokens=tokens,
            passkey=answers.value,
            low=answers.low,
            high=answers.high,
            trials=answers.trials,
            cache_bytes=subject.cache_bytes(length),
            prefill=prefill,
            decode=decode,
        )


@torch.no_grad()
def loss(words: argparse.Namespace, subject: Subject, length: int) -> tuple[float, int]:
    """(nats, tokens) of the windows' last tokens, decoded 16 at a time behind a prefill of the rest."""
    tokenizer = subject.tokenizer(subject.form)
    text = Text(words.text.name, words.text) if words.text else topics()
    found = islice(windows(text.tokens(tokenizer.plain), length, tokenizer.first), words.windows)
    nats, tokens = 0.0, 0
    for row, targets in found:
        if len(row) <= words.decoded:
            continue
        inputs, before = subject.tensor([row]), len(row) - words.decoded
        cache = subject.model.new_cache(1, len(row))
        subject.model(inputs[:, :before], cache=cache)
        for start in range(before, len(row), 16):
            logits = subject.model(inputs[:, start : start + 16], cache=cache).logits[0].float()
            wanted = torch.tensor(targets[start : start + 16], device=logits.device)
            nats += float(F.cross_entropy(logits, wanted, reduction="sum"))
            tokens += len(wanted)
    return nats, tokens


@torch.no_grad()
def times(subject: Subject, length: int) -> tuple[float, float]:
    """(seconds of a prefill of so many tokens, of a decode step behind it), medians."""
    tokens = torch.randint(0, subject.vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(next(subject.model.parameters()).device)
    prefills, decodes = [], []
    for _ in range(3):
        cache = subject.model.new_cache(1, length + 16)
        prefills += list(timed(lambda cache=cache: subject.model(tokens, cache=cache), 1, tokens))
        decodes += list(timed(lambda cache=cache: subject.model(tokens[:, :1], cache=cache), 8, tokens))
    return median(prefills), median(decodes)


def timed(call: Callable[[], object], times: int, where: torch.Tensor) -> Iterator[float]:
    """Seconds of each call, the device's work included."""
    for _ in range(times):
        began = time.perf_counter()
        call()
        if where.device.type == "cuda":
            torch.cuda.synchronize(where.device)
        yield time.perf_counter() - began


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
