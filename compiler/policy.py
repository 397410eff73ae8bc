"""A policy: what the tuner decided about the `choose` and `budget` of one spec, for one GPU, with what it predicted and proved.

It is a file beside the spec, `NAME.DEVICE.policy.json`, with one line for each run of KV groups that are treated alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from attnc.compiler.data import to_data
from attnc.compiler.spec import Spec
from attnc.compiler.value import Value, derived

SUFFIX = ".policy.json"

ITSELF = "."
"""The place of a `choose` that is a whole part."""

ROWS = ("settings", "figures", "losses")
"""The fields that are written with a line for each of their rows."""


class Machine(Value):
    """Where a policy was made. `device`: the table of costs, `gpu`: what the GPU calls itself."""

    device: str
    gpu: str = ""
    driver: str = ""
    torch: str = ""
    triton: str = ""


class Setting(Value):
    """What KV groups first..last of a part of a layer do.

    choose   the name of the alternative; where several `choose` stand in the part, the place of each (`.`: the part
             itself) -> its name
    budgets  path of each budget that is moved for this layer or these heads -> its number
    """

    layer: int
    scope: str = ""
    first: int
    last: int
    choose: str | dict[str, str] = ""
    budgets: dict[str, float] = derived(default_factory=lambda _: {})

    @property
    def words(self) -> dict[str, str]:
        """Place of each `choose` (empty: the part itself) -> the name of the alternative."""
        if isinstance(self.choose, str):
            return {"": self.choose} if self.choose else {}
        return {"" if place == ITSELF else place: name for place, name in self.choose.items()}


class Figure(Value):
    """A cost of the whole model, and with full attention: `decode_ms` or `prefill_ms` of one call, or `kv_bytes`, of `batch`
    sequences of `length`.
    """

    what: Literal["decode_ms", "prefill_ms", "kv_bytes"]
    length: int
    batch: int = 1
    full: float | None = None
    predicted: float
    measured: float | None = None


class TaskLoss(Value):
    """A task on held-out data: its loss or share of errors with full attention and with the policy, and the relative rise."""

    task: str
    length: int
    full: float
    policy: float
    rise: float
    trials: int


class Policy(Value):
    """A policy file.

    spec, weights, data  SHA-256 of the spec's canonical text, of the weights' files, of what was measured on
    made_by     the tuner's words, such as `search` or `minference`
    lengths     tokens of the sequences that were measured
    probe       by which losses were added up
    budgets     those that are one number for all layers: path -> number
    estimate    the sum of the losses of the settings, each measured alone; refined, that of the whole model on the texts it
                was refined with; no result
    losses      what `attnc tune prove` measured of the whole model; empty until then
    """

    schema_version: Literal[1] = 1
    model: str
    spec: str
    weights: str | None = None
    data: str | None = None
    made_by: str
    machine: Machine
    seed: int | None = None
    lengths: tuple[int, ...] = ()
    objective: str = ""
    probe: str = "kl"
    limits: dict[str, float] = derived(default_factory=lambda _: {})
    estimate: float | None = None
    budgets: dict[str, float] = derived(default_factory=lambda _: {})
    settings: tuple[Setting, ...]
    figures: tuple[Figure, ...] = ()
    losses: tuple[TaskLoss, ...] = ()
    proved: bool = False


def written(words: Mapping[str, str]) -> str | dict[str, str]:
    """The words of a setting as its `choose` says them."""
    return words[""] if set(words) == {""} else {place or ITSELF: name for place, name in words.items()} or ""


def spec_digest(spec: Spec) -> str:
    """What names a spec: SHA-256 of its canonical text."""
    return hashlib.sha256(spec.text.encode()).hexdigest()


def policy_text(policy: Policy) -> str:
    """The text of a policy file: a line for each field and each row, so that two of them can be compared line by line."""
    lines = []
    for name, value in _whole(to_data(policy)).items():
        if name in ROWS and value:
            rows = ",\n".join(
                f"  {json.dumps({key: one for key, one in row.items() if one not in ({}, '', None)})}" for row in value
            )
            lines.append(f' "{name}": [\n{rows}\n ]')
        else:
            lines.append(f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _whole(value: Any) -> Any:
    """Numbers without a fraction where they have none, else with as many digits as anybody compares; of budgets all."""
    if isinstance(value, dict):
        return {name: _exact(one) if name == "budgets" else _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return _counted(float(f"{value:.7g}") if not value.is_integer() else value) if isinstance(value, float) else value


def _exact(budgets: dict[str, float]) -> dict[str, float]:
    return {path: _counted(float(one)) for path, one in budgets.items()}


def _counted(number: float) -> float:
    return int(number) if number.is_integer() else number
