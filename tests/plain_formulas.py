"""The oracle of kinds that plain PyTorch runs: from docs/language.md and the papers named there, with whole matrices.

No state is carried from call to call: what tokens brought lies whole in call.text, and all is computed anew.
Legend: n new tokens, L all so far; W model width.
"""

from __future__ import annotations

import math

import torch


def recurrent(call, mixer, at, x):
    """x [n, W] -> h of every token, times gate and scale."""
    w = {name: call.weights[f"{at}.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    text, width = call.text.joined(f"{at}.x", x), x.shape[1]
    h = c = x.new_zeros(width)
    outputs = []
    for token in text:
        ours, old = w["weight_ih"] @ token + w["bias_ih"], w["weight_hh"] @ h + w["bias_hh"]
        part = [slice(gate * width, (gate + 1) * width) for gate in range(4)]
        if mixer.kind.cell == "lstm":
            both = ours + old
            c = squash(both[part[1]]) * c + squash(both[part[0]]) * torch.tanh(both[part[2]])
            h = squash(both[part[3]]) * torch.tanh(c)
        else:
            reset, keep = (squash(ours[part[gate]] + old[part[gate]]) for gate in (0, 1))
            h = keep * h + (1 - keep) * torch.tanh(ours[part[2]] + reset * old[part[2]])
        outputs.append(h)
    return finished(call, mixer, at, torch.stack(outputs)[-len(x) :])


def squash(x):
    return 1 / (1 + torch.exp(-x))


def feedback(call, mixer, at, x):
    """s = (I - diag(gain) A)^-1 f with the whole matrix of all tokens so far."""
    kind, n = mixer.kind, len(x)
    f, q, k = (
        call.text.joined(f"{at}.{name}", y)
        for name, y in (("f", x), ("q", call.linear(f"{at}.q_proj", x)), ("k", call.linear(f"{at}.k_proj", x)))
    )
    gain = torch.full((len(f), kind.heads), float(kind.gain)) if kind.gain != "learned" else None
    if gain is None:
        gain = 0.999 * torch.tanh(call.linear(f"{at}.gain", f))
    length, width = f.shape
    each = width // kind.heads
    solved = []
    for h in range(kind.heads):
        own = slice(h * each, (h + 1) * each)
        a = torch.zeros(length, length, dtype=f.dtype)
        for t in range(1, length):
            a[t, :t] = torch.softmax(k[:t, own] @ q[t, own] / math.sqrt(each), dim=0)
        matrix = torch.eye(length, dtype=f.dtype) - gain[:, h : h + 1].to(f.dtype) * a
        solved.append(torch.linalg.inv(matrix.double()).to(f.dtype) @ f[:, own])
    return finished(call, mixer, at, torch.cat(solved, dim=1)[-n:], "o_proj")


def finished(call, mixer, at, y, out=""):
    """Times the output gate, through the output's map, times the scale."""
    a = mixer.attributes
    if a.output_gate:
        gate = call.linear(f"{at}.output_gate", call.given)
        y = y * {"sigmoid": squash, "silu": lambda z: z * squash(z), "linear": lambda z: z}[a.output_gate](gate)
    y = call.linear(f"{at}.{out}", y) if out else y
    return y * (call.weights[f"{at}.scale"] if not isinstance(a.scale, int | float) else a.scale)


FORMULAS = {"recurrent": recurrent, "feedback": feedback}
