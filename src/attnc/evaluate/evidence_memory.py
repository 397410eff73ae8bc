"""The part of docs/evidence.md about memories: what small mixes recall of texts longer than any that they learned from, and
a converted model's loss.
"""

from __future__ import annotations

import textwrap
from statistics import fmean

from attnc.compiler.value import Value
from attnc.evaluate.evidence_chosen import PARTS

MARK = PARTS[0]


class Recalled(Value):
    """Of one task at one length: right answers of those that were asked, and what decoding keeps of a text, in bytes."""

    task: str
    length: int
    right: int
    asked: int
    cache_bytes: int


class Remembered(Value):
    """One model: a spec of docs/evidence/memory, trained from a seed on both tasks. `loss`: after its last step.

    None where training diverged; then nothing was asked.
    """

    spec: str
    seed: int
    loss: float | None
    seconds: float
    parameters: int
    recalled: tuple[Recalled, ...]


class Converted(Value):
    """A model's loss in nats a token; `steps` of distillation, 0 for none."""

    mix: str
    steps: int
    seconds: float
    nll: float
    low: float | None
    high: float | None
    tokens: int
    cache_bytes: int


class MemoryEvidence(Value):
    """docs/evidence/memory.json: how small models were trained (`length` tokens) and asked, and how a model was converted.

    `taught`, `read`  tokens of a text that taught the conversion, and of one whose loss was taken; `text`: its name
    """

    schema_version: int = 1
    steps: int
    batch: int
    length: int
    lengths: tuple[int, ...]
    pairs: int
    lr: float
    trials: int
    taught: int
    read: int
    text: str
    device: str
    torch: str
    commit: str | None
    runs: tuple[Remembered, ...] = ()
    converted: tuple[Converted, ...] = ()


def part(evidence: MemoryEvidence, command: str) -> str:
    """The part's text in Markdown."""
    said = [MARK, f"`{command}` trains and asks them, and writes [the numbers](evidence/memory.json)."]
    if evidence.runs:
        said += [_how(evidence), "\n".join(_table(evidence))]
    if evidence.converted:
        said += [_conversion(evidence), "\n".join(_losses(evidence))]
    where = f"Measured on {evidence.device}, torch {evidence.torch}"
    lacking = _missing(evidence)
    not_run = f" **Not run: {', '.join(lacking)}.**" if lacking else ""
    said.append(where + (f", at {evidence.commit[:12]}." if evidence.commit else ".") + not_run)
    return "\n\n".join(one if one[0] in "#|" else textwrap.fill(" ".join(one.split()), 125) for one in said) + "\n"


def _missing(evidence: MemoryEvidence) -> list[str]:
    """Seeds of a mix that other mixes have learned from."""
    done = {(run.spec, run.seed) for run in evidence.runs}
    specs, seeds = dict.fromkeys(run.spec for run in evidence.runs), sorted({run.seed for run in evidence.runs})
    return [f"{spec} with seed {seed}" for spec in specs for seed in seeds if (spec, seed) not in done]


def _how(evidence: MemoryEvidence) -> str:
    seeds = len({run.seed for run in evidence.runs})
    counted = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return f"""Each mix learns alike by AdamW at {evidence.lr:g}, {counted}: {evidence.steps:,} steps of texts an eighth as
        long, then {evidence.steps // 2:,} steps of {evidence.batch} texts of {evidence.length:,} tokens, a needle (a pair of
        tokens at any depth, whose second one is asked at the end) in turn with MQAR ({evidence.pairs} pairs, asked at places
        that are all equally likely, with nothing between them). Then {evidence.trials} texts of each length are asked. A cell
        is the share that is recalled: the mean over seeds, and in brackets the least and the most."""


def _table(evidence: MemoryEvidence) -> list[str]:
    """A row for each mix and task; a seed whose training diverged recalls nothing."""
    rows = [["mix", "task", "parameters", *(f"{length:,} tokens" for length in evidence.lengths), "kept of the longest"]]
    rows.append(["---"] * len(rows[0]))
    for spec in dict.fromkeys(run.spec for run in evidence.runs):
        runs = [run for run in evidence.runs if run.spec == spec]
        trained = [run for run in runs if run.loss is not None]
        name = f"[{spec}](evidence/memory/{spec}.attn)"
        if not trained:
            rows.append([name, "diverged", *[""] * (len(rows[0]) - 2)])
        for task in dict.fromkeys(one.task for run in trained[:1] for one in run.recalled):
            found = [one for run in trained for one in run.recalled if one.task == task]
            lost = [0.0] * (len(runs) - len(trained))
            cells = [_cell([one.right / one.asked for one in found if one.length == n] + lost) for n in evidence.lengths]
            kept = max(one.cache_bytes for one in found) / 1024
            rows.append([name, task, f"{trained[0].parameters:,}", *cells, f"{kept:,.0f} KiB"])
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(shares: list[float]) -> str:
    return f"{fmean(shares):.1%} ({100 * min(shares):.1f}..{100 * max(shares):.1f})"


def _conversion(evidence: MemoryEvidence) -> str:
    steps, seconds = max((one.steps, one.seconds) for one in evidence.converted)
    return f"""SmolLM2-135M with [sinks, a window of 512 tokens and a memory](evidence/memory/allmem.attn) in every layer: the
        memory alone learned, from the model's own full attention, {steps} steps of {evidence.taught:,} tokens ({seconds:.0f}
        seconds). Nats a token of texts of {evidence.read:,} tokens of {evidence.text}; in brackets 95%."""


def _losses(evidence: MemoryEvidence) -> list[str]:
    rows = ["| mix | NLL | tokens asked | kept of a text |", "| --- | --- | --- | --- |"]
    for one in evidence.converted:
        spread = "" if one.low is None or one.high is None else f" ({one.low:.3f}..{one.high:.3f})"
        rows.append(f"| {one.mix} | {one.nll:.3f}{spread} | {one.tokens:,} | {one.cache_bytes / 2**20:.1f} MiB |")
    return rows
