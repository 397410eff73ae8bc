"""attnc: the compiler for hybrid attention.

    spec = attnc.check("specs/gemma3.attn")             raises SpecError, which holds every mistake of the file
    plan = attnc.plan(spec, device="h100", length=8192)
    attnc.build(spec, "out/gemma3", init=0)
    model = attnc.load("out/gemma3", device="cuda")

Nothing below is imported before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from attnc.compiler.plan import Plan
    from attnc.compiler.spec import Spec
    from attnc.dsl.diagnostic import SpecError

__all__ = ["SpecError", "check", "plan"]


def check(text_or_path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec of a file, or of a text (whatever has a brace or a line break). Raises SpecError.

    `overrides` replaces settings of the model before checking: {"model.layers": "12"}.
    """
    from attnc import compiler

    if isinstance(text_or_path, str) and ("{" in text_or_path or "\n" in text_or_path):
        return compiler.check_text(text_or_path, overrides=overrides)
    return compiler.check_path(text_or_path, overrides)


def plan(spec: Spec, device: str = "cpu", length: int = 8192, batch: int = 1) -> Plan:
    """Which kernel runs each part of the model in each phase on `device`, its price, and what was refused and why.

    `length` counts tokens, `batch` sequences; `device` is one of the tables of compiler/devices.
    """
    from attnc.compiler import device as devices
    from attnc.compiler import graph, passes
    from attnc.compiler.cost import Workload
    from attnc.compiler.plan import choose

    load = Workload(length=length, batch=batch)
    return choose(passes.run(graph.build(spec)), devices.device(device), load)


def __getattr__(name: str) -> Any:
    if name == "SpecError":
        from attnc.dsl.diagnostic import SpecError

        return SpecError
    raise AttributeError(f"module 'attnc' has no attribute {name!r}")
