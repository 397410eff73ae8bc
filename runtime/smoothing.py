"""An exponential moving average of a layer's input, before q and k: `input_ema` (Mega, arXiv 2209.10655).

Legend: T tokens; W channels; n states of each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .call import Call
from .channels import Channels, ChannelStates
from .gates import wide


class InputEma(nn.Module):
    """h <- (1 - p s) h + p beta x, y = SiLU(sum of gamma h / sqrt(n) + omega x); p = sigmoid(delta), s = sigmoid(alpha).

    All [W, n] but omega [W]. `scan`: the launch of its states, which lie in the cache under the name `state`.
    """

    def __init__(self, width: int, states: int, scan: ChannelStates) -> None:
        super().__init__()
        for name in ("delta", "alpha", "beta", "gamma"):
            self.register_parameter(name, nn.Parameter(torch.zeros(width, states)))
        self.omega = nn.Parameter(torch.zeros(width))
        self.scan = scan

    def forward(self, x: Tensor, call: Call, slot: int) -> Tensor:
        """x [T, W] -> [T, W]."""
        delta, alpha, beta, gamma = (wide(self.get_parameter(name)) for name in ("delta", "alpha", "beta", "gamma"))
        take = torch.sigmoid(delta)
        rates = torch.log1p(-take * torch.sigmoid(alpha))
        weights = gamma * take * beta / delta.shape[1] ** 0.5
        u = wide(x)
        y = self.scan(Channels(u, rates, weights=weights), call.batch, call.slot(slot))
        return F.silu(y + self.omega * u).to(x.dtype)
