"""What plan.json says of a built folder."""

from __future__ import annotations

from attnc.codegen.tune.table import FolderTuning
from attnc.compiler.cache_spec import CacheRow
from attnc.compiler.planned import Plan
from attnc.compiler.policy import Policy
from attnc.compiler.value import Value, derived

SCHEMA_VERSION = 1


class Compiled(Value):
    """What one kernel of the folder uses on one target: registers and spills of a thread, bytes of shared memory of a block."""

    file: str
    kernel: str
    target: str
    dtype: str
    registers: int
    shared: int
    spills: int
    scratch: int
    warps: int
    stages: int


class Built(Value):
    """plan.json: how the folder was made and how it runs. `tuning`: tuning.json; `policy`: policy.json.

    `reduced`: the length that the spec was made small for, as `spec.attn` holds it from before.

    `heads`: number of a layer -> for each KV group that of the checkpoint, where a policy's groups lie side by side.

    `files` lists every file, so that nothing else is ever removed.
    """

    schema_version: int = SCHEMA_VERSION
    attnc: str
    name: str
    file: str
    parameters: int
    launches: dict[str, str]
    plans: dict[str, Plan]
    cache: tuple[CacheRow, ...]
    kernels: dict[str, str]
    resources: tuple[Compiled, ...] = ()
    tuning: FolderTuning = FolderTuning()
    policy: Policy | None = None
    reduced: int | None = None
    heads: dict[str, tuple[int, ...]] = derived(default_factory=lambda _: {})
    files: tuple[str, ...]
