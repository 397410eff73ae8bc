"""Times are measured by one process of a GPU at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout


@contextmanager
def one_per_gpu(device: str, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process of attnc tune measures on this GPU; a CPU is shared."""
    with ExitStack() as held:
        if device.startswith("cuda"):
            name = str(torch.cuda.get_device_properties(device).uuid)
            lock = FileLock(Path(tempfile.gettempdir()) / f"attnc-gpu-{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"waiting: another process measures on {device}")
                lock.acquire()
            held.callback(lock.release)
        yield
