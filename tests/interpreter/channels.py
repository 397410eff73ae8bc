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

import attnc
from attnc.codegen.build import Options, build
from attnc.codegen.triton.channels import emit
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify.channels import ChannelSubject, channel_rows
from attnc.compiler import check_text
from attnc.compiler.families import Channels
from attnc.compiler.mixers.channels import channel_states
from attnc.runtime.channel_kernels import channel_kernels
from attnc.runtime.channels import reference_channels

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

MODEL = """model m { vocab = 16, dim = 8, layers = 2, heads = 2, kv_heads = 1, head_dim = 4, ffn = none, norm = rms(1e-6) }
layers { 0: ssm(mamba, state = 2) { short_conv = 3, output_gate = silu }, 1: linear(decay = vector, state = vector) }
"""
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


def test_attnc_verify_finds_a_kernel_that_forgets_nothing():
    text = emit(Channels(state=2)).replace('"any": (16, 16, 4)', '"any": (4, 4, 4)')
    wrong = text.replace("later_added + later_decay * added", "later_added + added")
    assert wrong != text
    for made, verdict in ((text, "right"), (wrong, "wrong")):
        module = load(made, FOLDER, f"verified_{verdict}")
        subject = ChannelSubject("channel_scan_0", module, ())
        (row,) = channel_rows(subject, "float16", "cpu", 6, lambda key: key[2] == "random")
        assert row.verdict == verdict, row


@pytest.mark.parametrize("grads", [False, True])
def test_a_built_model_computes_on_its_kernels_what_plain_torch_computes(grads):
    folder = FOLDER / "built"
    if not folder.exists():
        build(check_text(MODEL), folder, Options(seed=0))
    model = attnc.load(folder)
    tokens = torch.randint(0, 16, (2, 7), generator=torch.Generator().manual_seed(0))
    found = []
    for way in ("torch", "triton"):
        model.use(way)
        with torch.set_grad_enabled(grads):
            logits = model(tokens).logits
        if grads:
            found.append(torch.cat([x.flatten() for x in torch.autograd.grad(logits.square().sum(), list(model.parameters()))]))
        else:
            cache = model.new_cache(2, 7)
            parts = [model(part, cache=cache).logits for part in tokens.split((5, 1, 1), dim=1)]
            found += [logits, torch.cat(parts, dim=1)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


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
