"""PyTorch's scaled_dot_product_attention as a participant.

Legend: N tokens of each of B sequences; H query heads on G KV heads; D key width.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from attnc.bench.peers import HEADS_FIRST, Prepared, decoding, inputs, wait
from attnc.bench.seeing import dense_mask, is_full, uniform
from attnc.bench.work import Work

MASK_BYTES = 2**30
"""A dense mask may take so much."""


@dataclass(frozen=True)
class Sdpa:
    """PyTorch's scaled_dot_product_attention, by itself or kept to one backend (`cudnn`, `flash`)."""

    name: str
    backend: str | None = None

    def refuse(self, work: Work) -> str | None:
        """It knows causal and dense masks; backends other than its own choice are asked for plain causal layers alone."""
        if reason := refuses_score(work):
            return reason
        if self.backend is not None and work.q.device.type != "cuda":
            return "runs on GPUs"
        if work.phase == "decode" or is_full(work):
            return None
        if self.backend is not None:
            return "has causal and dense layers alone"
        bytes_ = work.length**2 * (1 if uniform(work) else work.launch.heads)
        if bytes_ > MASK_BYTES:
            return f"its dense mask would take {bytes_ / 2**30:.3g} GiB"
        return None

    def prepare(self, work: Work) -> Prepared:
        """With a mask the keys are repeated for the query heads: no fused kernel of PyTorch has both masks and groups."""
        scale, grouped = work.launch.mix.scale, work.launch.repeat > 1
        if work.phase == "decode":

            def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                with kept_to(self.backend):
                    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)

            return decoding(work, one)
        if is_full(work):
            causal = work.form.causal

            def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                with kept_to(self.backend):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)

            return Prepared(whole, inputs(work, HEADS_FIRST), HEADS_FIRST)
        began = time.perf_counter()
        mask = dense_mask(work)
        wait(work)
        seconds = time.perf_counter() - began

        def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (x.repeat_interleave(work.launch.repeat, dim=1) for x in (k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

        return Prepared(masked, inputs(work, HEADS_FIRST), HEADS_FIRST, seconds)


def kept_to(backend: str | None) -> Any:
    """A context in which SDPA runs one backend, `cudnn` or `flash`; None leaves the choice to it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    return nullcontext() if backend is None else sdpa_kernel([backends[backend]])


def refuses_score(work: Work) -> str | None:
    """Why a plain softmax of scaled products is not what the launch weighs by, if it is not."""
    if not work.launch.plain:
        return "has no such score"
    if work.launch.mix.cap is not None:
        return "has no soft cap"
    if work.sink_logit is not None:
        return "has no logit without a value"
    return None
