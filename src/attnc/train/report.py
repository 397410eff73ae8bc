"""What a run is told and what it says: settings, progress, report."""

from __future__ import annotations

from attnc.compiler.value import Value


class Settings(Value):
    """How a run trains; kept in its folder as run.json, so that a resumed run is the same run.

    task        `mqar`, `needle`, `passkey`, `copy` or `text`, with `file` for a text and `options` for a task (pairs=16)
    length      tokens of an example; batch: examples held at once; accumulate: such batches a step
    warmup      steps in which the learning rate rises to `lr`; clip: the largest norm of the gradient, 0 for none
    decay       weight decay of matrices; every: steps between checkpoints; keep: checkpoints kept
    rank, alpha of LoRA; compiled: under torch.compile
    """

    schema_version: int = 1
    task: str
    file: str | None = None
    options: tuple[str, ...] = ()
    steps: int
    length: int
    batch: int
    accumulate: int
    lr: float
    warmup: int
    clip: float
    decay: float
    every: int
    keep: int
    seed: int
    rank: int
    alpha: float
    device: str
    dtype: str
    compiled: bool


class Progress(Value):
    """One step that is done: `loss` the whole, `terms` its parts as they are before weighing."""

    step: int
    steps: int
    loss: float
    terms: dict[str, float]
    lr: float
    norm: float
    tokens_per_second: float


class TrainReport(Value):
    """What `attnc train --json` prints. Parameters are counted; `first` and `last` are losses by term.

    held  the loss of examples that come after the last step, of the weights that the folder now has
    """

    schema_version: int = 1
    folder: str
    run: str
    settings: Settings
    resumed: int | None
    parameters: int
    trained: int
    lora: int
    first: dict[str, float]
    last: dict[str, float]
    held: float
    tokens: int
    seconds: float
    tokens_per_second: float
    checkpoint: str
    weights: tuple[str, ...]
    plot: str | None
