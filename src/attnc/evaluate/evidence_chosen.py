"""The part of docs/evidence.md about keys that content chooses: one model's weights, grafted mixes at equal kept shares."""

from __future__ import annotations

import textwrap

from attnc.compiler.value import Value

MARK = "## Keys that content chooses"
"""The heading of the part; what stands before it in the file is left as it is."""

PARTS = ("## Memories that learn while they read", MARK)
"""The headings of all parts that are not the first, in their order."""


class Asked(Value):
    """One mix at one length; `kept` is the share of the keys that a query may see.

    nll        nats a token of the last tokens of the windows, which are decoded behind a prefill of the rest
    low, high  of the passkey's share, 95%
    prefill, decode  milliseconds of a text and of one token behind it, medians; None until they are measured
    """

    mix: str
    length: int
    kept: float
    nll: float
    tokens: int
    passkey: float
    low: float
    high: float
    trials: int
    cache_bytes: int
    prefill: float | None = None
    decode: float | None = None


class ChosenEvidence(Value):
    """docs/evidence/chosen.json. `kernels`: mixes whose launches were asked to run on generated kernels."""

    schema_version: int = 1
    model: str
    device: str
    dtype: str
    share: float
    trials: int
    windows: int
    decoded: int
    text: str
    kernels: tuple[str, ...] = ()
    commit: str | None
    rows: tuple[Asked, ...] = ()


def part(evidence: ChosenEvidence, command: str) -> str:
    """The part's text in Markdown."""
    lines = [
        MARK,
        "",
        f"`{command}` grafts each mix onto {evidence.model} (`attnc graft`), whose weights stay as they are, and asks it.",
        f"{evidence.device}, {evidence.dtype}, torch's providers and kernels as planned{_asked(evidence)}. "
        f"Each query keeps at most "
        f"{evidence.share:.1%} of the text; `full` keeps all.",
        f"NLL is of the last {evidence.decoded} tokens of {evidence.windows} windows of {evidence.text}, decoded behind a "
        "prefill of the rest, so that mixes that choose while decoding alone show it. Passkeys are decoded too; intervals are "
        "of 95%. Times are of one text, with nothing else at work; a decode step is a CUDA graph where it can be captured.",
        "",
        "| mix | tokens | kept | NLL | passkey | cache | prefill | decode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(evidence.rows, key=lambda one: (one.length, one.mix != "full", one.mix)):
        passkey = f"{row.passkey:.1%} ({row.low:.1%} to {row.high:.1%} of {row.trials})"
        times = " | ".join("" if one is None else f"{one:.4g} ms" for one in (row.prefill, row.decode))
        size = f"{row.cache_bytes / 2**20:.1f} MiB"
        lines.append(f"| {row.mix} | {row.length} | {row.kept:.1%} | {row.nll:.3f} | {passkey} | {size} | {times} |")
    return "\n".join([*(textwrap.fill(line, 120) if not line.startswith("|") else line for line in lines), ""])


def _asked(evidence: ChosenEvidence) -> str:
    """Who runs on kernels that no plan took by itself."""
    return f", and generated kernels for {', '.join(evidence.kernels)}" if evidence.kernels else ""


def joined(page: str, text: str) -> str:
    """A page with this part in its place, instead of an earlier one."""
    at = next(place for place, mark in enumerate(PARTS) if text.startswith(mark))
    found = {mark: page.index(mark) for mark in PARTS if mark in page}
    before = page[: min((found[mark] for mark in PARTS[at:] if mark in found), default=len(page))].rstrip() or "# Evidence"
    after = page[min((found[mark] for mark in PARTS[at + 1 :] if mark in found), default=len(page)) :]
    return f"{before}\n\n{text}" + (f"\n{after}" if after else "")
