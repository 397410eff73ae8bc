"""Kernels of matrix and channel states on a GPU, at the widths of the specs and of the bench, as `attnc verify` compares them.

Each member of a family is compared in a process of its own, many at once: most of the time is spent compiling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from attnc.codegen import kernels
from attnc.codegen.triton.compile import load
from attnc.codegen.verify.channels import ChannelSubject, channel_rows
from attnc.codegen.verify.nets import NetSubject, net_rows
from attnc.codegen.verify.report import Row
from attnc.codegen.verify.states import PARTS, parts_of, skeleton_of, state_rows
from attnc.compiler import check_path, passes
from attnc.compiler import graph as graphs
from attnc.compiler.channel_providers import ChannelLaunch
from attnc.compiler.families import Channels, FastWeights, Recurrence
from attnc.compiler.fast_providers import Nets
from attnc.compiler.plan import states
from attnc.compiler.scan_providers import States
from attnc.compiler.unbuilt import unbuilt

TOP = Path(__file__).parents[2]
PROCESSES = 8
"""Each takes some gigabytes of the host's memory."""
CONSTANTS = {
    "scan": ("FORM", "KEY_WIDTH", "VALUE_WIDTH"),
    "channel": ("STATE", "PARTS"),
    "fast": ("KEY_WIDTH", "VALUE_WIDTH", "MOMENTUM", "NORM", "RESIDUAL"),
    "fast_step": ("KEY_WIDTH", "VALUE_WIDTH", "UNITS", "MAPS", "NORM", "RESIDUAL", "AFTER_WRITE", "WEIGHT_NORM", "RATES"),
}
Member = Channels | FastWeights | Recurrence
Compared = tuple[list[Row], dict[str, dict[str, Any]]]


def members() -> dict[Member, str]:
    """The members of these families that specs need, each with the first spec that has it."""
    found: dict[Member, str] = {}
    for path in (*sorted((TOP / "specs").glob("*.attn")), TOP / "docs" / "bench" / "states.attn"):
        spec = check_path(path)
        graph = None if unbuilt(spec) else passes.run(graphs.build(spec))
        for _, node in graph.network.nodes(data="node") if graph else ():
            launched = states(node, graph) if isinstance(node, graphs.Apply) else None
            if isinstance(launched, States | ChannelLaunch | Nets) and kernels.of_states(launched.family):
                found.setdefault(launched.family, f"{path.stem}:{len(found)}")
    return found


def compared(member: Member, dtype: str) -> Compared:
    """The rows of all of a launch's kernels, and by each file's name its constants; in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="attnc-"))
    texts = {f"{name}_0": text for name, text in kernels.of_states(member).items()}
    files = {name: load(text, folder, name) for name, text in texts.items()}
    constants = {name: {one: getattr(file, one) for one in names_of(name)} for name, file in files.items()}
    if isinstance(member, Channels):
        parts = [
            channel_rows(ChannelSubject(name, file, ()), dtype, "cuda", 700, lambda _: True) for name, file in files.items()
        ]
    elif isinstance(member, FastWeights):
        parts = [net_rows(NetSubject(name, file, ()), dtype, "cuda", lambda _: True) for name, file in files.items()]
    else:
        parts = [state_rows(one, dtype, "cuda", lambda _: True) for one in parts_of(files)]
    return [row for part in parts for row in part], constants


def names_of(file: str) -> tuple[str, ...]:
    """The constants that say what a file was emitted for."""
    return CONSTANTS.get(file.removesuffix("_0")) or CONSTANTS[file.split("_", maxsplit=1)[0]]


def test_kernels_of_all_specs_as_attnc_verify_compares(record: Callable[..., None]) -> None:
    """One test: to find the members takes as long as to collect a hundred tests, which nobody without a GPU should wait for."""
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    wrong: list[str] = []
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        verdicts = {(one, name): pool.submit(compared, one, "bfloat16") for one, name in members().items()}
        for (member, name), verdict in verdicts.items():
            wrong += [f"{name} {row.reason}" for row in noted(member, architecture, *verdict.result(), record)]
    assert not wrong, wrong


def noted(
    member: Member, architecture: str, rows: list[Row], constants: dict[str, dict[str, Any]], record: Callable[..., None]
) -> list[Row]:
    """Records a member's kernels, with the errors of those that are right; the rows that are wrong."""
    texts = {f"{name}_0": text for name, text in kernels.of_states(member).items()}
    digests = {name: kernels.digest(text, architecture) for name, text in texts.items()}

    def note(file: str, *errors: tuple[float, float]) -> None:
        record(file.removesuffix("_0"), digests[file], constants[file], torch.bfloat16, *errors)

    for file in texts:
        note(file)
    for row in rows:
        print(row)  # noqa: T201
    found = [row for row in rows if row.verdict == "wrong"]
    for subject in {row.kernel for row in rows} - {row.kernel for row in found}:
        for row in (row for row in rows if row.kernel == subject):
            assert row.error is not None
            assert row.torch_error is not None
            for file in files_of(subject, texts):
                note(file, (row.error, row.torch_error))
    return found


def files_of(subject: str, texts: dict[str, str]) -> list[str]:
    """The files that are compared with one."""
    together = PARTS.get(skeleton_of(subject), (skeleton_of(subject),))
    return [name for name in texts if skeleton_of(name) in together]
