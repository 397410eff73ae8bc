"""The whole back half: a checked spec becomes a folder that stands alone."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import attnc
from attnc.codegen import folder as folders
from attnc.codegen import kernels, module, weight_files
from attnc.codegen.built import Built, Compiled
from attnc.codegen.eager import emit as eager
from attnc.codegen.filling import fill
from attnc.codegen.problem import complaint
from attnc.codegen.tune import table as tables
from attnc.codegen.tune.table import Table
from attnc.compiler import graph as graphs
from attnc.compiler import parameters, passes
from attnc.compiler.cache_spec import cache_spec
from attnc.compiler.cost import Workload
from attnc.compiler.data import to_data
from attnc.compiler.device import device, shipped
from attnc.compiler.gathered import follows, gathered
from attnc.compiler.graph import Graph
from attnc.compiler.plan import choose
from attnc.compiler.planned import Choice, Plan
from attnc.compiler.policies import alternatives, settle
from attnc.compiler.policy import Policy, policy_text
from attnc.compiler.providers import absent
from attnc.compiler.spec import Spec
from attnc.compiler.value import Value
from attnc.dsl import SpecError

KERNELS = ("kernels/softmax", "kernels/channel", "kernels/scan", "kernels/lists", "kernels/fast")
"""How the names of kernel files begin."""

PORTABLE_GPU = "h100"
"""The table by which launches on a GPU are planned where a build names no GPU."""


class Options(Value):
    """The words of the command line.

    weights    a folder with model.safetensors; `seed`: random weights instead, or with `weights` what they lack
    tuned      tables whose blocks go into the folder, as far as they are of its kernels
    installed  optional providers that are there; `without`: providers that are not to be asked
    """

    device: str = "cpu"
    targets: tuple[str, ...] = ()
    weights: Path | None = None
    seed: int | None = None
    strict: bool = False
    length: int = 8192
    batch: int = 1
    tuned: tuple[Table, ...] = ()
    installed: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    policy: Policy | None = None
    """What decides each `choose` and `budget`; None: the spec's defaults hold."""
    measured: bool = True
    """Whether tables that `attnc calibrate` measured count."""


@dataclass(frozen=True)
class Report:
    """What a build says at its end."""

    folder: Path
    built: Built
    decisions: tuple[str, ...] = field(default=())


def build(spec: Spec, folder: Path, options: Options) -> Report:
    """Writes `folder`. Raises SpecError: A401 with `strict` where a reference must run, A51x where files do not fit."""
    folders.refuse_strangers(folder)
    spec, orders, spare = decided(spec, options)
    graph = passes.run(graphs.build(spec))
    plans = plan_all(graph, options, cap=spec.model.score_cap is not None)
    chosen = plans["cpu" if options.device == "cpu" else "cuda"]
    decisions = _decisions(chosen.references())
    if options.strict and decisions:
        help_line = "build without `--strict` to run the reference there"
        raise SpecError([complaint("A401", decision, spec.file, help_line) for decision in decisions])
    texts, launches = write_texts(spec, graph, plans)
    tuning = tables.for_folder(options.tuned, _kernels(texts))
    texts["tuning.json"] = tables.folder_text(tuning)
    if options.policy is not None:
        texts["policy.json"] = policy_text(options.policy)
    weights = parameters.parameters(spec, graph)
    given = weight_files.Carried({}, {})
    if options.weights is not None:
        filled = None if options.seed is None else fill(graph, options.seed)
        given = weight_files.carried(options.weights, weights, spare, orders, filled)
    elif options.seed is not None:
        given = weight_files.Carried({}, {"model.safetensors": partial(weight_files.start, weights, options.seed, {})})
    built = Built(
        attnc=attnc.__version__,
        name=spec.model.name,
        file=spec.file,
        parameters=parameters.total(weights),
        launches=launches,
        plans=plans,
        cache=cache_spec(spec, "bfloat16"),
        kernels={name: kernels.digest(text) for name, text in texts.items() if name.startswith(KERNELS)},
        resources=_resources(texts, options.targets),
        tuning=tuning,
        policy=options.policy,
        reduced=spec.reduced,
        heads=orders,
        files=(),
    )
    built = replace(built, files=tuple(sorted([*texts, *given.copies, *given.made, "plan.json"])))
    texts["plan.json"] = json.dumps(to_data(built), indent=1) + "\n"
    folders.write(folder, texts, given.copies, given.made)
    return Report(folder, built, (*decisions, *given.decisions))


def decided(spec: Spec, options: Options) -> tuple[Spec, dict[str, tuple[int, ...]], frozenset[str]]:
    """(the spec as a policy decides it, how KV groups of its layers were moved, tensors of alternatives that it leaves out).

    Groups move where weights are there to move with them.
    """
    if options.policy is None:
        return spec, {}, frozenset()
    settled = settle(spec, options.policy)
    if options.weights is None:
        return settled, {}, frozenset()
    inside: dict[int, list[str]] = {}
    own = _names(settled)
    for name in own:
        words = name.split(".", 4)
        if words[1:2] == ["layers"] and words[3] == "self_attn":
            inside.setdefault(int(words[2]), []).append(words[4])
    found = gathered(settled, lambda layer: follows(inside.get(layer, ["?"])))
    spare = {name for one in alternatives(spec) for name in _names(one)} - set(own)
    return found.spec, found.orders, frozenset(spare)


def _names(spec: Spec) -> list[str]:
    """The tensors of a spec."""
    return [weight.name for weight in parameters.parameters(spec, passes.run(graphs.build(spec)))]


def plan_all(graph: Graph, options: Options, *, cap: bool = False) -> dict[str, Plan]:
    """The plan for each kind of device that a folder may be loaded on; the one that was not named gets the portable one."""
    table = device if options.measured else shipped
    gpu = options.device if table(options.device).is_gpu else PORTABLE_GPU
    load = Workload(length=options.length, batch=options.batch)
    out = absent(options.installed, options.without)
    return {kind: choose(graph, table(name), load, out, cap=cap) for kind, name in (("cuda", gpu), ("cpu", "cpu"))}


def write_texts(spec: Spec, graph: Graph, plans: Mapping[str, Plan]) -> tuple[dict[str, str], dict[str, str]]:
    """Every generated and vendored file by its path in the folder, and the graph node of every launch."""
    reference, visible = eager.emit(graph)
    model, launches = module.emit(spec, graph, plans, visible, attnc.__version__)
    texts = {
        "__init__.py": module.render("package.py.j2", name=spec.model.name, version=attnc.__version__),
        "model.py": model,
        "reference.py": reference,
        "spec.attn": spec.text,
    }
    texts |= {f"kernels/{name}": text for name, text in kernels.emit(graph, launches, spec.model).items()}
    texts |= {f"runtime/{name}": text for name, text in vendored()}
    return texts, launches


def _kernels(texts: Mapping[str, str]) -> dict[str, str]:
    """The kernel files by their names without folder and ending."""
    return {Path(name).stem: text for name, text in texts.items() if name.startswith(("kernels/softmax", "kernels/scan"))}


def vendored() -> list[tuple[str, str]]:
    """The files of the room runtime/, as they stand."""
    files = importlib.resources.files("attnc.runtime").iterdir()
    return sorted((file.name, file.read_text("utf-8")) for file in files if file.name.endswith(".py"))


def _decisions(choices: Iterable[Choice]) -> tuple[str, ...]:
    """A line for each part that runs its reference, with the phases in which it does and why nothing faster runs there."""
    phases: dict[tuple[str, str], dict[str, None]] = {}
    for choice in choices:
        reasons = "; ".join(f"{refusal.provider}: {refusal.reason}" for refusal in choice.refused)
        _, _, what = choice.node.partition("/")
        phases.setdefault((what, reasons), {})[choice.phase] = None
    return tuple(f"{what} runs its reference in {', '.join(met)} ({reasons})" for (what, reasons), met in phases.items())


def _resources(texts: Mapping[str, str], targets: tuple[str, ...]) -> tuple[Compiled, ...]:
    """What every kernel uses on every target, compiled without a GPU."""
    if not targets:
        return ()
    from attnc.codegen.triton.compile import compile_ahead

    found = []
    for name, text in texts.items():
        if name.startswith(KERNELS):
            for target in targets:
                found += [_compiled(name, asdict(used)) for used in compile_ahead(text, target, "bf16")]
    return tuple(found)


def _compiled(file: str, used: Mapping[str, Any]) -> Compiled:
    return Compiled(file=file, **{name: number for name, number in used.items() if name in Compiled.__dataclass_fields__})
