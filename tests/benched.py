"""What tests of `attnc bench` time: a small model with launches of many forms, and participants."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from attnc.bench import fields, run, timing
from attnc.bench import work as works
from attnc.bench.peers import Provided

TEXT = """model tiny {
  vocab = 64, dim = 64, layers = 8, heads = 4, kv_heads = 2, norm = rms(1e-6), ffn = swiglu(64), rope = 10000
}
layers {
  [0, 3]: full
  1: sink(4) | window(16)
  2: heads { 0: full, else: window(8) }
  4: window(16) | power_of_two(8)
  5: window(12) { sink_logit = learned }
  6: full { causal = false }
  7: window(20)
}
"""
CAPPED = "model capped { vocab = 64, dim = 32, layers = 1, heads = 2, norm = rms(1e-6), ffn = swiglu(32), score_cap = 5 }\n"
CAPPED += "layers { all: window(9) }\n"
LENGTH = 48
QUICK = run.Options((LENGTH,), works.PHASES, ("sdpa",), 2, torch.float32, torch.device("cpu"), 0.001)


def made(launch, phase, *, length=LENGTH, batch=2, dtype=torch.float32):
    found = works.make(launch, phase, length, batch, dtype, torch.device("cpu"))
    assert not isinstance(found, str), found
    return found


def rows(known, options=QUICK, peers=None, launch="sink(4) | window(16)", phase="forward"):
    peers = fields.SOFTMAX.participants(known[launch], options.device, options.against) if peers is None else peers
    ceiling = timing.Roof(1e9, 1e9)
    return run.row(known[launch], phase, LENGTH, peers, options, ceiling, timing.HostClock(), lambda line: None)


@dataclass(frozen=True)
class Odd:
    """A participant that is right but for what `change` does to its result."""

    change: object
    name: str = "odd"

    def refuse(self, work):
        return None

    def prepare(self, work):
        prepared = Provided("torch").prepare(work)
        return replace(prepared, run=lambda **given: self.change(prepared.run(**given)))
