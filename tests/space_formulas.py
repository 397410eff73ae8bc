"""The oracle of `ssm`, and of `linear` with a state that is a vector: sums over all earlier tokens, from the papers' formulas.

What tokens brought is kept whole in call.text, and no state is ever carried; all is in the call's dtype.
Legend: n new tokens, L all so far; C channels; N numbers of a state; H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from formulas import convolved, rms, silu

SQUASH = {"sigmoid": torch.sigmoid, "silu": silu, "linear": lambda z: z}


def ssm(call, mixer, at, x):
    """x [n, W] -> [n, W]."""
    kind, a = mixer.kind, mixer.attributes
    y = {"s4d": s4d, "mamba": mamba, "mamba2": mamba2}[kind.form](call, kind, a, at, x)
    if a.output_gate:
        y = y * SQUASH[a.output_gate](call.linear(f"{at}.output_gate", call.given))
    if kind.form == "mamba2" and a.output_norm:
        y = rms(y, call.weights[f"{at}.output_norm.weight"], call.spec.model.norm.epsilon)
    y = call.linear(f"{at}.out_proj", y)
    return y * (call.weights[f"{at}.scale"] if not isinstance(a.scale, int | float) else a.scale)


def s4d(call, _kind, a, at, x):
    """A long convolution: K_l = 2 Re sum of C (exp(dt A) - 1) / A exp(l dt A), then D and GELU (arXiv 2206.11893)."""
    w = {name: call.weights[f"{at}.{name}"] for name in ("dt_log", "A_log", "A_imag", "C", "D")}
    u = call.text.joined(f"{at}.u", call.linear(f"{at}.in_proj", x))  # [L, C]
    rates = torch.complex(-torch.exp(w["A_log"]), w["A_imag"])
    dt = torch.exp(w["dt_log"])[:, None]
    reading = torch.complex(w["C"][..., 0], w["C"][..., 1]) * (torch.exp(dt * rates) - 1) / rates
    kernel = torch.stack([2 * (reading * torch.exp(steps * dt * rates)).real.sum(1) for steps in range(len(u))])  # [L, C]
    outputs = []
    for t in range(len(u) - len(x), len(u)):
        y = (kernel[: t + 1].flip(0) * u[: t + 1]).sum(0)
        if not a.causal:
            y = y + (kernel[: len(u) - t] * u[t:]).sum(0)
        outputs.append(y + w["D"] * u[t])
    return F.gelu(torch.stack(outputs))


def mamba(call, kind, a, at, x):
    """arXiv 2312.00752, algorithm 2 behind the convolution; every token's steps, writes and reads come from there."""
    w = {name: call.weights[f"{at}.{name}"] for name in ("dt_bias", "A_log", "D")}
    u = short(call, a, at, call.linear(f"{at}.in_proj", x))
    step = torch.log(1 + torch.exp(call.linear(f"{at}.dt_up", call.linear(f"{at}.dt_down", u)) + w["dt_bias"]))
    read = call.linear(f"{at}.C_proj", u)
    steps, writes = call.text.joined(f"{at}.step", step), call.text.joined(f"{at}.B", call.linear(f"{at}.B_proj", u))
    brought = call.text.joined(f"{at}.brought", step * u)
    time, y = steps.cumsum(0), torch.zeros_like(u)
    for n in range(kind.state):
        y = y + read[:, n : n + 1] * summed(-torch.exp(w["A_log"][:, n]) * time, writes[:, n : n + 1] * brought, len(x))
    return y + w["D"] * u


def mamba2(call, kind, a, at, x):
    """arXiv 2405.21060: y = (L o C B^T) dt u head by head, L_tj = exp(A (dt_{j+1} + ... + dt_t))."""
    w = {name: call.weights[f"{at}.{name}"] for name in ("dt_bias", "A_log", "D")}
    inputs = torch.cat([call.linear(f"{at}.{name}_proj", x) for name in ("in", "B", "C")], dim=1)
    inner = a.heads * a.head_dim
    u, write, read = short(call, a, at, inputs).split((inner, kind.state, kind.state), dim=1)
    step = torch.log(1 + torch.exp(call.linear(f"{at}.dt_proj", x) + w["dt_bias"]))
    steps, writes = call.text.joined(f"{at}.step", step), call.text.joined(f"{at}.B", write)
    values = call.text.joined(f"{at}.u", u)
    time, past, outputs = steps.cumsum(0), len(steps) - len(x), []
    for h in range(a.heads):
        own = slice(h * a.head_dim, (h + 1) * a.head_dim)
        spans = time[past:, None, h] - time[None, :, h]  # [n, L]
        seen = torch.arange(len(steps)) <= torch.arange(past, len(steps))[:, None]
        decay = torch.where(seen, torch.exp(-torch.exp(w["A_log"][h]) * spans), 0)
        outputs.append((decay * (read @ writes.T)) @ (steps[:, h : h + 1] * values[:, own]) + w["D"][h] * u[:, own])
    return torch.cat(outputs, dim=1)


def short(call, a, at, inputs):
    """The convolution with bias and SiLU, where there is one."""
    if not a.short_conv:
        return inputs
    history = call.text.joined(f"{at}.conv", inputs)
    return silu(convolved(history, len(inputs), call.weights[f"{at}.conv.weight"]) + call.weights[f"{at}.conv.bias"])


def vector_states(call, mixer, at, x, decay):
    """HGRN (arXiv 2311.04823): h_t = sum of (1 - f_j) v_j times all later gates; decay [n, H, E or 1]."""
    a = mixer.attributes
    v = call.heads(at, "v", x, a.kv_heads, a.value_dim, a).repeat_interleave(a.heads // a.kv_heads, dim=1)
    gates = decay.expand(v.shape).flatten(1)
    time = call.text.joined(f"{at}.gates", torch.log(gates)).cumsum(0)
    brought = call.text.joined(f"{at}.brought", (1 - gates) * v.flatten(1))
    return call.output(at, a, summed(time, brought, len(x)).unflatten(1, (a.heads, a.value_dim)), x)


def summed(time, brought, n):
    """[n, C]: sums over earlier tokens j of exp(time_t - time_j) brought_j, of the last n of L tokens."""
    rows = []
    for t in range(len(time) - n, len(time)):
        rows.append((torch.exp(time[t] - time[: t + 1]) * brought[: t + 1]).sum(0))
    return torch.stack(rows)
