"""The formula of states of single channels, which several kinds share."""

from __future__ import annotations

from typing import Any


def channel_states(u: Any, step: Any, rates: Any, write: Any, read: Any, weights: Any, state: Any = None) -> tuple[Any, Any]:
    """A state of M numbers for every channel c of one sequence, token by token:

        h[c, m] <- exp(step[c] rates[c, m]) h[c, m] + write[m] u[c]
        y[c] = Re(sum over m of weights[c, m] read[m] h[c, m])

    u, step [N, channels]; rates, weights [channels, M], real or complex; write, read [N, M]; step, write, read and weights may
    be None: 1. `state` [channels, M], zeros at the start. Returns y [N, channels] and the new state.
    """
    import torch

    h = rates.new_zeros(rates.shape) if state is None else state
    outputs = []
    for t in range(u.shape[0]):
        decay = torch.exp(rates if step is None else step[t].unsqueeze(1) * rates)
        added = u[t].unsqueeze(1)
        h = decay * h + (added if write is None else write[t] * added)
        seen = h if read is None else read[t] * h
        outputs.append((seen if weights is None else weights * seen).sum(dim=1))
    y = torch.stack(outputs) if outputs else u.new_zeros(u.shape)
    return (y.real if y.is_complex() else y), h
