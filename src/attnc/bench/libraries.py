"""What other libraries offer for the same work.

Legend: N tokens of each of B sequences; H query heads on G KV heads; D key width; E value width; L keys.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.bench.flex import Flex, Split
from attnc.bench.peers import TOKENS_FIRST, Gluon, Peer, Planned, Prepared, Provided, decoding, inputs
from attnc.bench.sdpa import Sdpa, refuses_score
from attnc.bench.seeing import window
from attnc.bench.work import Work


@dataclass(frozen=True)
class FlashAttention4:
    """flash_attn.cute, which has causal layers and windows."""

    name: str = "fa4"

    def refuse(self, work: Work) -> str | None:
        """Installed, on a GPU, in two bytes, and one window for all heads."""
        if not has("flash_attn.cute"):
            return "is not installed (pip install flash-attn-4)"
        if work.q.device.type != "cuda":
            return "runs on GPUs"
        if work.q.dtype not in (torch.bfloat16, torch.float16):
            return "has bfloat16 and float16 alone"
        if work.launch.mix.cap is not None or work.sink_logit is not None:
            return "is asked for plain softmax alone"
        if reason := refuses_score(work):
            return reason
        return None if work.phase == "decode" or window(work) is not None else "has causal layers and windows alone"

    def prepare(self, work: Work) -> Prepared:
        """[B, N, heads, width]."""
        attend = importlib.import_module("flash_attn.cute").flash_attn_func
        scale = work.launch.mix.scale
        if work.phase == "decode":

            def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                q, k, v = (x.transpose(1, 2) for x in (q, k, v))
                return _first(attend(q, k, v, softmax_scale=scale)).transpose(1, 2)

            return decoding(work, one)
        found = window(work)
        assert found is not None, "refused before"
        back, ahead = found
        options: dict[str, Any] = {"softmax_scale": scale, "causal": work.form.causal}
        if (back, ahead) != (None, None):
            options["window_size"] = (back, ahead)
        run = lambda q, k, v: _first(attend(q, k, v, **options))  # noqa: E731
        return Prepared(run, inputs(work, TOKENS_FIRST), TOKENS_FIRST)


PEERS: dict[str, Peer] = {
    "planned": Planned(),
    "gluon": Gluon(),
    "sdpa": Sdpa("sdpa"),
    "cudnn": Sdpa("cudnn", "cudnn"),
    "flash": Sdpa("flash", "flash"),
    "flex": Flex(),
    "split": Split(),
    "fa4": FlashAttention4(),
    "torch": Provided("torch"),
    "reference": Provided("reference"),
}
"""What `--against` names; ours is not among them."""


def has(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _first(found: Any) -> Tensor:
    """flash_attn.cute gives (o, lse)."""
    o: Tensor = found[0] if isinstance(found, tuple) else found
    return o
