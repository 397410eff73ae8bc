"""Kernels of matrix and channel states on a GPU, at the widths of the specs and of the bench, as `attnc verify` compares them.

Each member of a family is compared in a process of its own, many at once: most of the time is spent compiling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from attnc.codegen import kernels
from attnc.codegen.triton.compile import load
from attnc.codegen.verify.channels import ChannelSubject, channel_rows
from attnc.codegen.verify.report import Row
from attnc.codegen.verify.states import PARTS, parts_of, skeleton_of, state_rows
from attnc.compiler import check_path, passes
from attnc.compiler import graph as graphs
from attnc.compiler.families import Channels, Recurrence
from attnc.compiler.plan import states
from attnc.compiler.unbuilt import unbuilt

TOP = Path(__file__).parents[2]
PROCESSES = 14
CONSTANTS = {"scan": ("FORM", "KEY_WIDTH", "VALUE_WIDTH"), "channel": ("STATE", "PARTS")}
Member = Channels | Recurrence
Compared = tuple[list[Row], dict[str, dict[str, Any]]]


def members() -> dict[Member, str]:
    """The members of both families that specs need, each with the first spec that has it."""
    found: dict[Member, str] = {}
    for path in (*sorted((TOP / "specs").glob("*.attn")), TOP / "docs" / "bench" / "states.attn"):
        spec = check_path(path)
        graph = None if unbuilt(spec) else passes.run(graphs.build(spec))
        for _, node in graph.network.nodes(data="node") if graph else ():
            launched = states(node, graph) if isinstance(node, graphs.Apply) else None
            if launched is not None and kernels.of_states(launched.family):
                found.setdefault(launched.family, f"{path.stem}:{len(found)}")
    return found


MEMBERS = members()


def compared(member: Member, dtype: str) -> Compared:
    """The rows of all of a launch's kernels, and by each file's name its constants; in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="attnc-"))
    texts = {f"{name}_0": text for name, text in kernels.of_states(member).items()}
    files = {name: load(text, folder, name) for name, text in texts.items()}
    constants = {name: {one: getattr(file, one) for one in CONSTANTS[name.split("_")[0]]} for name, file in files.items()}
    if isinstance(member, Channels):
        parts = [
            channel_rows(ChannelSubject(name, file, ()), dtype, "cuda", 700, lambda _: True) for name, file in files.items()
        ]
    else:
        parts = [state_rows(one, dtype, "cuda", lambda _: True) for one in parts_of(files)]
    return [row for part in parts for row in part], constants


@pytest.fixture(scope="module")
def verdicts() -> Iterator[dict[Member, Future[Compared]]]:
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        yield {member: pool.submit(compared, member, "bfloat16") for member in MEMBERS}


@pytest.mark.parametrize("member", MEMBERS, ids=MEMBERS.get)
def test_as_attnc_verify_compares(
    member: Member, verdicts: dict[Member, Future[Compared]], record: Callable[..., None]
) -> None:
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    texts = {f"{name}_0": text for name, text in kernels.of_states(member).items()}
    digests = {name: kernels.digest(text, architecture) for name, text in texts.items()}
    rows, constants = verdicts[member].result()

    def noted(file: str, *errors: tuple[float, float]) -> None:
        record(file.removesuffix("_0"), digests[file], constants[file], torch.bfloat16, *errors)

    for file in texts:
        noted(file)
    for row in rows:
        print(row)  # noqa: T201
    wrong = {row.kernel for row in rows if row.verdict == "wrong"}
    for subject in {row.kernel for row in rows} - wrong:
        for row in (row for row in rows if row.kernel == subject):
            assert row.error is not None
            assert row.torch_error is not None
            for file in files_of(subject, texts):
                noted(file, (row.error, row.torch_error))
    assert not wrong, [row.reason for row in rows if row.verdict == "wrong"]


def files_of(subject: str, texts: dict[str, str]) -> list[str]:
    """The files that are compared with one."""
    together = PARTS.get(skeleton_of(subject), (skeleton_of(subject),))
    return [name for name in texts if skeleton_of(name) in together]
