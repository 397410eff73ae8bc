"""The kernels of channel states in Triton's interpreter against sums written out in float64, beside the formula in float32.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from channel_cases import MEMBERS, ask, given, narrowed, packed, with_gradients, written_out

from attnc.codegen.triton.channels import emit
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.versions import INTERPRETS
from attnc.compiler.families import Channels
from attnc.compiler.mixers.channels import channel_states
from attnc.runtime.channel_kernels import channel_kernels
from attnc.runtime.channels import reference_channels

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
formula = reference_channels(channel_states)


def kernels(member: str, state: int, tokens: int = 4, channels: int = 4):
    """The provider with small tiles: a scan in the interpreter goes number by number."""
    parts = {part: part in MEMBERS[member] for part in ("step", "write", "read", "weights")}
    text = emit(Channels(**parts, state=state))
    module = load(
        text.replace('"any": (16, 16, 4)', f'"any": ({tokens}, {channels}, 4)'), FOLDER, f"emitted_{len(text)}_{state}"
    )
    return channel_kernels(module)


def test_outputs_states_and_gradients_round_no_more_than_the_formula():
    """All errors together, each tensor's in units of its largest number: one tensor has few numbers."""
    sizes, errors = (9, 0, 1, 7), ([], [])
    batch = packed(sizes)
    for seed, (member, state) in enumerate({"steps and maps of the token": 3, "gates alone": 1, "everything": 2}.items()):
        one = given(member, sum(sizes), 5, state, seed=seed)
        before = ask(torch.randn(len(sizes), 5, state, generator=torch.Generator().manual_seed(seed)), torch.float64)
        outputs, gradients = with_gradients(written_out, one, before, batch)
        for run, found in zip((kernels(member, state), formula), errors, strict=True):
            ours = with_gradients(run, narrowed(one, torch.float32), ask(before.detach(), torch.float32), batch)
            pairs = zip((*ours[0], *ours[1]), (*outputs, *gradients), strict=True)
            found += [((mine - true) / true.abs().max()).flatten() for mine, true in pairs]
    ours, theirs = (torch.cat(found).square().mean().sqrt() for found in errors)
    assert ours <= 1.5 * theirs


def test_whole_numbers_come_out_exact_and_step_by_step_as_at_once():
    """Without a step nothing is forgotten: states are sums of whole numbers."""
    scan, draw = kernels("steps and maps of the token", 2), torch.Generator().manual_seed(0)
    u, write, read = (torch.randint(-4, 5, shape, generator=draw).float() for shape in ((6, 3), (6, 2), (6, 2)))
    rates, still = -torch.ones(3, 2), torch.zeros(6, 3)
    one = functools.partial(type(given("everything", 1, 1, 1)), rates=rates)
    y, after = scan(one(u=u, step=still, write=write, read=read), None, packed((6,)))
    sums = (u.unsqueeze(-1) * write.unsqueeze(1)).cumsum(0)
    assert torch.equal(y, (sums * read.unsqueeze(1)).sum(-1))
    assert torch.equal(after[0], sums[-1])
    state, outputs = None, []
    for t in range(6):
        tokens = {"u": u[t : t + 1], "step": still[:1], "write": write[t : t + 1], "read": read[t : t + 1]}
        out, state = scan(one(**tokens), state, packed((1,)))
        outputs.append(out)
    assert torch.equal(torch.cat(outputs), y)
    assert torch.equal(state, after)
    y, _ = scan(one(u=u.half(), step=still + 1e30, write=write.bfloat16(), read=read.bfloat16()), None, packed((6,)))
    assert y.dtype == torch.float16
    assert torch.equal(y, (u * (write * read).sum(1, keepdim=True)).half()), "a strong step forgets all"
