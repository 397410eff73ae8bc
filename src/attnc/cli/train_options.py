"""What `attnc train` can be told, and what holds where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

TASKS = ("mqar", "needle", "passkey", "multikey", "copy", "text")
DTYPES = ("bfloat16", "float32")
LENGTH = 256
DEFAULTS: dict[str, Any] = {
    "steps": 1000,
    "batch": 8,
    "accumulate": 1,
    "lr": 3e-4,
    "clip": 1.0,
    "decay": 0.1,
    "every": 100,
    "keep": 2,
    "seed": 0,
    "rank": 8,
    "alpha": 16.0,
}


def _default(name: str) -> str:
    return f"[default: {DEFAULTS[name]:g}]"


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that attnc build wrote.", show_default=False)]
TextFile = Annotated[
    str | None, typer.Argument(metavar="[FILE]", help="With --task text: UTF-8, read on and on.", show_default=False)
]
Task = Annotated[str | None, typer.Option(help=f"One of {', '.join(TASKS)}.", show_default=False)]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the task, such as pairs=16; may be given several times."),
]
Steps = Annotated[int | None, typer.Option(min=1, help=f"Updates. {_default('steps')}", show_default=False)]
Length = Annotated[
    int | None,
    typer.Option(min=2, help=f"Tokens of an example. [default: {LENGTH}, or the context if that is less]", show_default=False),
]
Batch = Annotated[int | None, typer.Option(min=1, help=f"Examples held at once. {_default('batch')}", show_default=False)]
Accumulate = Annotated[
    int | None, typer.Option(min=1, help=f"Such batches in a step. {_default('accumulate')}", show_default=False)
]
Lr = Annotated[float | None, typer.Option(min=0, help=f"Highest learning rate. {_default('lr')}", show_default=False)]
Warmup = Annotated[int | None, typer.Option(min=0, help="Steps in which it rises. [default: a tenth]", show_default=False)]
Clip = Annotated[
    float | None, typer.Option(min=0, help=f"Largest norm of the gradient; 0: any. {_default('clip')}", show_default=False)
]
Decay = Annotated[float | None, typer.Option(min=0, help=f"Weight decay of matrices. {_default('decay')}", show_default=False)]
Rank = Annotated[int | None, typer.Option(min=1, help=f"Of LoRA. {_default('rank')}", show_default=False)]
Alpha = Annotated[
    float | None, typer.Option(min=0, help=f"Of LoRA, whose scale is alpha / rank. {_default('alpha')}", show_default=False)
]
Every = Annotated[int | None, typer.Option(min=1, help=f"Steps between checkpoints. {_default('every')}", show_default=False)]
Keep = Annotated[int | None, typer.Option(min=1, help=f"Checkpoints kept. {_default('keep')}", show_default=False)]
Seed = Annotated[
    int | None, typer.Option(help=f"Of examples and all else that is drawn. {_default('seed')}", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU where there is one.", show_default=False)]
Dtype = Annotated[
    str | None,
    typer.Option(help="bfloat16 by autocast, or float32. [default: bfloat16, on a CPU float32]", show_default=False),
]
Compiled = Annotated[bool | None, typer.Option("--compile", help="Under torch.compile.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the folder's last run.")]
