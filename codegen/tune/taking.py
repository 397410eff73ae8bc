"""A kernel file that takes the blocks of a candidate for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.table import Blocks


@contextmanager
def taking(module: ModuleType, job: TuneJob, blocks: Blocks) -> Iterator[None]:
    """With these blocks for every dtype of the candidate's size."""
    key = (module.architecture(torch.device(job.device)), getattr(torch, job.dtype).itemsize)
    before = module.BLOCKS[key]
    module.BLOCKS[key] = blocks
    try:
        yield
    finally:
        module.BLOCKS[key] = before


def kept_in_memory(module: ModuleType) -> int:
    """The most numbers of a thread that a file's compiled kernels keep there; 0 where nothing is compiled."""
    compiled = [kernel for kernel, _ in module.READY.values()]
    return max((getattr(kernel, "n_spills", 0) or 0 for kernel in compiled), default=0)
