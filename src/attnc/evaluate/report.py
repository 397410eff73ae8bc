"""What `attnc eval --json` prints. The same folder, options and machine give the same report."""

from __future__ import annotations

from typing import Literal

from attnc.compiler.value import Value

Read = Literal["chunks", "whole"]
"""Whether the model read a text in several calls, or in one, as it must where chunks would change its results."""

Form = Literal["text", "bytes", "tokens"]
"""Text through the folder's tokenizer, text as its bytes, or token ids."""


class Loss(Value):
    """The loss on a text, in windows of `length` tokens.

    value        nats a token; `low` to `high`: its 95% interval (normal, over windows), None of a single window
    windows      read, at most as many as `trials`; `tokens`: those that were asked
    sha256       of the whole text's bytes
    cache_bytes  what decoding keeps of one sequence of `length` tokens
    """

    task: Literal["nll"] = "nll"
    form: Form
    length: int
    value: float
    low: float | None
    high: float | None
    perplexity: float
    windows: int
    tokens: int
    text: str
    sha256: str
    read: Read
    cache_bytes: int


class Depth(Value):
    """Of the trials whose answer stood at `depth` (0: at the beginning, 1: at the end), how many were answered."""

    depth: float
    right: int
    trials: int


class Share(Value):
    """The share of questions that are answered right.

    settings     of the task
    value        right / asked; `low` to `high`: its 95% interval (Wilson's)
    effective    questions that count in the interval: fewer than `asked` where those of a trial are right or wrong together
    chance       what guessing gives, without having read
    depths       trials by the depth of what is asked, where the task has one
    cache_bytes  what decoding keeps of one sequence of `length` tokens
    """

    task: Literal["mqar", "needle", "passkey", "multikey", "copy"]
    form: Form
    length: int
    settings: dict[str, int | float | bool | None]
    value: float
    low: float
    high: float
    effective: float
    right: int
    asked: int
    trials: int
    chance: float
    depths: tuple[Depth, ...]
    read: Read
    cache_bytes: int


class EvalReport(Value):
    """All of one run."""

    schema_version: int = 1
    folder: str
    name: str
    context: int | None
    parameters: int
    device: str
    dtype: str
    seed: int
    batch: int
    torch: str
    attnc: str
    rows: tuple[Loss | Share, ...]
