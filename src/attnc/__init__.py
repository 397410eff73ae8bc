"""attnc: the compiler for hybrid attention.

    spec = attnc.check("specs/gemma3.attn")             raises SpecError, which holds every mistake of the file
    plan = attnc.plan(spec, device="h100", length=8192)
    attnc.build(spec, "out/gemma3", init=0)
    model = attnc.load("out/gemma3", device="cuda")

Nothing below is imported before it is used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    import torch

    from attnc.codegen.build import Report
    from attnc.compiler.planned import Plan
    from attnc.compiler.spec import Spec
    from attnc.dsl.diagnostic import SpecError
    from attnc.runtime.model import BuiltModel

__all__ = ["SpecError", "build", "check", "load", "plan"]


def check(text_or_path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec of a file, or of a text (whatever has a brace or a line break). Raises SpecError.

    `overrides` replaces settings of the model before checking: {"model.layers": "12"}.
    """
    from attnc import compiler

    if isinstance(text_or_path, str) and ("{" in text_or_path or "\n" in text_or_path):
        return compiler.check_text(text_or_path, overrides=overrides)
    return compiler.check_path(text_or_path, overrides)


def plan(
    spec: Spec,
    device: str = "cpu",
    length: int = 8192,
    batch: int = 1,
    installed: Iterable[str] = (),
    without: Iterable[str] = (),
) -> Plan:
    """Which kernel runs each part of the model in each phase on `device`, its price, and what was refused and why.

    `length` counts tokens, `batch` sequences; `device` is one of the tables of compiler/devices. `installed` names the
    optional providers that are there (`flex`, `fa4`, `fla`), `without` those that are not to be asked.
    """
    from attnc.compiler import device as devices
    from attnc.compiler import graph, passes
    from attnc.compiler.cost import Workload
    from attnc.compiler.plan import choose
    from attnc.compiler.providers import absent

    load, out = Workload(length=length, batch=batch), absent(installed, without)
    cap = spec.model.score_cap is not None
    return choose(passes.run(graph.build(spec)), devices.device(device), load, out, cap=cap)


def build(
    spec: Spec,
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    targets: Sequence[str] = (),
    weights: str | os.PathLike[str] | None = None,
    init: int | None = None,
    strict: bool = False,
    tuned: Iterable[str | os.PathLike[str]] | None = None,
    policy: str | os.PathLike[str] | None = None,
    installed: Iterable[str] = (),
    without: Iterable[str] = (),
) -> Report:
    """Writes a folder that stands alone: readable PyTorch, kernels, and weights.

    Weights come from the folder `weights`, or start from the seed `init`. With both, tensors that the folder lacks start, and
    the attention of a layer may stand as one branch beside new ones.

    `device` names the table of costs, `targets` the architectures compiled ahead (`sm_90`), `tuned` the files of `attnc tune
    kernels` whose blocks go into the folder (None: the user's own), `policy` the file of `attnc tune solve` that decides each
    `choose` and `budget` (None: the spec's defaults), `installed` and `without` the providers as in `plan`.
    Raises SpecError: A401 where `strict` and a reference would run in place of a kernel, A5 codes for weights that do not fit,
    a folder that holds other files, and a file of tuned blocks that cannot be read, A6 codes for a policy that is none or does
    not fit the spec.
    """
    from attnc.codegen import build as codegen
    from attnc.codegen.tune import table
    from attnc.compiler.policies import read_policy

    options = codegen.Options(
        device=device,
        targets=tuple(targets),
        weights=None if weights is None else Path(weights),
        seed=init,
        strict=strict,
        tuned=table.read_all(table.user_folder()) if tuned is None else tuple(table.read_given(Path(file)) for file in tuned),
        policy=None if policy is None else read_policy(Path(policy)),
        installed=tuple(installed),
        without=tuple(without),
    )
    return codegen.build(spec, Path(folder), options)


def load(
    folder: str | os.PathLike[str], device: str = "cpu", dtype: torch.dtype | None = None, use: str = "plan"
) -> BuiltModel:
    """The model of a built folder, with its weights; runs the folder's own code. `dtype` None keeps that of the weights.

    `use` says who runs the launches: `plan`, or one of `torch`, `triton`, `gluon`, `flex`, `fa4`, `fla`, `reference` for all.
    Raises FileNotFoundError where there is no built folder, the folder's WeightsError where weights are missing or do not fit,
    and ValueError where the provider of `use` cannot run here.
    """
    from attnc.codegen.importing import import_folder

    if not (Path(folder) / "plan.json").is_file():
        raise FileNotFoundError(errno.ENOENT, "not a built folder", str(folder))
    model: BuiltModel = import_folder(Path(folder)).load(device, dtype, use)
    return model


def __getattr__(name: str) -> Any:
    if name == "SpecError":
        from attnc.dsl.diagnostic import SpecError

        return SpecError
    raise AttributeError(f"module 'attnc' has no attribute {name!r}")
