"""docs/evidence.md from the runs that were measured: mixes that were trained alike, and the share that each recalls."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from attnc.compiler.value import Value
from attnc.evaluate.report import EvalReport, Share

SOLVED, FAILED = 0.95, 0.5
"""Shares of recalled values from which a mix solves a task, and below which it fails."""


class Trained(Value):
    """One model: a spec of docs/evidence, trained from a seed by the code of a commit, and what it answered then, which is None
    where training diverged.
    """

    spec: str
    seed: int
    lr: float
    seconds: float
    commit: str | None
    report: EvalReport | None


class Evidence(Value):
    """docs/evidence/mqar.json. All runs have the same settings: steps, examples a step, tokens of each; `rates`: learning rates
    that the first seed tries; `seeds`: of each mix; `trials`: texts that are asked for each number of pairs.
    """

    schema_version: int = 1
    steps: int
    batch: int
    length: int
    rates: tuple[float, ...]
    seeds: int
    trials: int
    runs: tuple[Trained, ...]


class Claim(Value):
    """What the published results say, and whether these do."""

    sentence: str
    holds: bool


Cell = tuple[float, float, float]
"""Mean, least and most over seeds."""


def best(evidence: Evidence) -> dict[str, float]:
    """spec -> the learning rate whose run of the first seed recalls most, in the mean over numbers of pairs; the smaller one of
    equals. Without mixes that diverged at every rate.
    """
    first = [run for run in evidence.runs if run.seed == 0 and run.report is not None]
    return {run.spec: run.lr for run in sorted(first, key=lambda run: (_recalled(run), -run.lr))}


def _recalled(run: Trained) -> float:
    """The mean over numbers of pairs."""
    return 0.0 if run.report is None else fmean(value for _, value in _shares(run.report))


def kept(evidence: Evidence) -> tuple[Trained, ...]:
    """The runs at each spec's best rate."""
    rates = best(evidence)
    return tuple(run for run in evidence.runs if run.lr == rates.get(run.spec))


def missing(evidence: Evidence) -> tuple[str, ...]:
    """What was not run (yet) of the mixes that were begun: rates of the first seed, and other seeds at the best rate."""
    found = []
    tried = {(run.spec, run.seed, run.lr) for run in evidence.runs}
    rates = best(evidence)
    for spec in dict.fromkeys(run.spec for run in evidence.runs):
        found += [f"{spec} at {rate:g}" for rate in evidence.rates if (spec, 0, rate) not in tried]
        seeds = [str(seed) for seed in range(1, evidence.seeds) if (spec, seed, rates.get(spec)) not in tried]
        if seeds and spec in rates:
            found.append(f"{spec} with seed{'s' if len(seeds) > 1 else ''} {' and '.join(seeds)}")
    return tuple(found)


def cells(evidence: Evidence) -> dict[str, dict[int, Cell]]:
    """spec -> pairs -> share over seeds; one that diverged recalls nothing."""
    found: dict[str, dict[int, list[float]]] = {}
    asked = [pairs for pairs, _ in _shares(_reports(evidence)[0])]
    for run in kept(evidence):
        for pairs, value in [(pairs, 0.0) for pairs in asked] if run.report is None else _shares(run.report):
            found.setdefault(run.spec, {}).setdefault(pairs, []).append(value)
    return {
        spec: {pairs: (fmean(values), min(values), max(values)) for pairs, values in sorted(row.items())}
        for spec, row in found.items()
    }


def _reports(evidence: Evidence) -> list[EvalReport]:
    return [run.report for run in evidence.runs if run.report is not None]


def _shares(report: EvalReport) -> list[tuple[int, float]]:
    rows = [row for row in report.rows if isinstance(row, Share) and row.task == "mqar"]
    return [(int(row.settings["pairs"] or 0), row.value) for row in rows]


def claims(table: Mapping[str, Mapping[int, Cell]]) -> list[Claim]:
    """The shape of Zoology's and BASED's results, of every seed and not of their mean; of mixes that were run."""
    counts = {pairs for row in table.values() for pairs in row}
    few, most = min(counts), max(counts)
    found = []
    if "full" in table:
        solved = all(least >= SOLVED for _, least, _ in table["full"].values())
        found.append(
            Claim(sentence=f"Full attention recalls at least {SOLVED:.0%}, whatever the number of pairs.", holds=solved)
        )
    if "linear" in table:
        sentence = f"Linear attention alone recalls at least {SOLVED:.0%} of {few} pairs."
        found.append(Claim(sentence=sentence, holds=table["linear"][few][1] >= SOLVED))
        failed = table["linear"][most][2] < FAILED
        found.append(Claim(sentence=f"Linear attention alone recalls less than {FAILED:.0%} of {most} pairs.", holds=failed))
    for spec, words in (("quarter", "One full layer in four"), ("based", "A small window beside Taylor features")):
        if spec in table:
            sentence = f"{words} brings this back to at least {SOLVED:.0%}."
            found.append(Claim(sentence=sentence, holds=table[spec][most][1] >= SOLVED))
    if {"delta", "linear"} <= set(table):
        sentence = f"With matrices of the same size the gated delta rule recalls more of {most} pairs than linear attention."
        found.append(Claim(sentence=sentence, holds=table["delta"][most][1] > table["linear"][most][2]))
    return found


def page(evidence: Evidence, command: str) -> str:
    """docs/evidence.md; `command` makes it anew."""
    table = cells(evidence)
    seconds = [run.seconds for run in evidence.runs]
    how = f"""The task is [MQAR](evaluation.md#tasks). Each mix is trained on it alike: {evidence.steps:,} steps of
        {evidence.batch} texts of {evidence.length} tokens, with all numbers of pairs in turn and
        token 0 where no key stands, by AdamW;
        {evidence.seeds} seeds, {min(seconds):.0f} to {max(seconds):.0f} seconds each. The first seed
        tries learning rates of {" and ".join(f"{rate:g}" for rate in evidence.rates)}, as published comparisons sweep them, and
        the one that recalls most, in the mean of all columns, stands for the mix. Then {evidence.trials}
        texts for each number of pairs are asked, which no model was trained on. A cell is the share of values that are
        recalled: the mean over seeds, and in brackets the least and the most."""
    lacking = missing(evidence)
    parts = [
        "# Evidence",
        f"`{command}` trains all models below, asks them, and writes this page and [its numbers](evidence/mqar.json).",
        "## Recall of mixes",
        how,
        _where(evidence) + (f" **Not run: {', '.join(lacking)}.**" if lacking else ""),
        "\n".join(_rows(evidence, table)),
        "What the papers found, and whether it is so here for every seed" + (" that was run:" if lacking else ":"),
        "\n".join(f"- {claim.sentence} {'Holds.' if claim.holds else '**Does not hold.**'}" for claim in claims(table)),
    ]
    return "\n\n".join(part if part[0] in "#|-" else textwrap.fill(" ".join(part.split()), 125) for part in parts) + "\n"


def _where(evidence: Evidence) -> str:
    """Devices and versions, with how many runs each made where there are several."""
    counts = Counter(
        f"{run.report.device}, torch {run.report.torch}, attnc {run.report.attnc}"
        + (f" at {run.commit[:12]}" if run.commit else "")
        for run in evidence.runs
        if run.report is not None
    )
    said = [f"{place} ({count} runs)" if len(counts) > 1 else place for place, count in counts.items()]
    return f"Measured on {'; '.join(said)}."


def _rows(evidence: Evidence, table: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    counts = sorted({pairs for row in table.values() for pairs in row})
    heads = ["mix", "parameters", "rate", "seeds", f"kept of {evidence.length} tokens", *(f"{pairs} pairs" for pairs in counts)]
    rows = [heads, ["---"] * len(heads)]
    rates = best(evidence)
    for spec, row in table.items():
        report = next(run.report for run in evidence.runs if run.spec == spec and run.report is not None)
        size = max(one.cache_bytes for one in report.rows) / 1024
        seeds = len([run for run in kept(evidence) if run.spec == spec])
        said = [_cell(row[pairs]) if pairs in row else "" for pairs in counts]
        about = [f"{report.parameters:,}", f"{rates[spec]:g}", str(seeds), f"{size:,.0f} KiB"]
        rows.append([f"[{spec}](evidence/{spec}.attn)", *about, *said])
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(cell: Cell) -> str:
    mean, least, most = (f"{100 * share:.1f}" for share in cell)
    return f"{mean}% ({least}..{most})"
