"""A candidate for each KV group of a model, which other losses are measured around."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from attnc.compiler.policies import picks_of, trouble
from attnc.compiler.policy import Policy
from attnc.compiler.units import FULL, Candidate, Place, Unit
from attnc.tune.runs import Run

DIGITS = 16
"""Of a name."""


@dataclass(frozen=True, eq=False)
class Around:
    """`picks`: by place of a unit, a candidate for each of its KV groups."""

    run: Run
    picks: Mapping[Place, Sequence[Candidate]]

    @classmethod
    def full(cls, run: Run) -> Around:
        """Full attention everywhere."""
        return cls(run, {unit.place: [FULL] * unit.kv_heads for unit in run.all})

    @classmethod
    def of(cls, run: Run, policy: Policy, path: Path) -> Around:
        """What a policy decides. Raises SpecError A602 of another spec, A613 of what the run does not try."""
        found = picks_of(run.units, policy, path)
        return cls(run, {unit.place: [_tried(run, unit, one, path) for one in found[unit.place]] for unit in run.all})

    @cached_property
    def name(self) -> str:
        """What no other picks have, in the journal."""
        lines = [f"{layer} {scope} {', '.join(one.name for one in own)}" for (layer, scope), own in sorted(self.picks.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGITS]

    def apart(self, other: Around) -> int:
        """How many KV groups do something else in the other picks."""
        pairs = (zip(own, other.picks[place], strict=True) for place, own in self.picks.items())
        return sum(one != its for pair in pairs for one, its in pair)

    def same(self, unit: Unit, group: int, candidate: Candidate) -> bool:
        """Whether a KV group does what a candidate says."""
        own = self.picks[unit.place][group]
        return own == candidate or self.run.units.mixer(unit.place, own) == self.run.units.mixer(unit.place, candidate)


def _tried(run: Run, unit: Unit, wanted: Candidate, path: Path) -> Candidate:
    """The candidate of the run that is the same mixer."""
    mixer = run.units.mixer(unit.place, wanted)
    found = next((one for one in unit.candidates if run.units.mixer(unit.place, one) == mixer), None)
    if found is None:
        message = f"{wanted.name} of layer {unit.layer} is none of what the run tries"
        raise trouble("A613", message, path, "attnc tune solve writes a policy of the run")
    return found
