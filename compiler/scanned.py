"""How a kind becomes a launch of matrix states: what codegen and the plan read instead of the kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from attnc.compiler.families import Channels, Recurrence
from attnc.compiler.mixers.features import Feature, Taylor
from attnc.compiler.streams import Streams


@dataclass(frozen=True)
class Scanned:
    """The member of the family, and what makes its tensors of the layer's input x.

    heads     states; `streams`: which of q, k and v are projected, with how many heads, each repeated for neighbouring states
    scale     what outputs are multiplied by; `inner_scale`: what q . k is multiplied by before the feature map
    feature   the map of q and of a projected k
    decay     where logarithms of the decay come from: fixed numbers of a head (`slopes`: 2^(-8 (h + 1) / heads) by ALiBi's
              rule; `retention`: 1 - 2^(-5 - h)), or gates of the token (`softplus`: -exp(A_log) softplus(W x + dt_bias);
              `sigmoid`: log(low + (1 - low) sigmoid(W x)), low being `lower` or learned and rising with depth)
    key       `projected`, or `decay`: 1 - exp(decay)
    beta      strengths of the delta rule are beta sigmoid(W x); `one_strength`: that of erasing is that of writing too
    formula   the reference of one sequence, as compiler/mixers/recurrence.py's
    channels  states that are vectors: the member of their own family, h <- exp(decay) h + (1 - exp(decay)) v by elements;
              `family` then says the decay, and the width of a head's v twice
    """

    family: Recurrence
    heads: int
    streams: Streams
    scale: float
    inner_scale: float = 1.0
    feature: Feature | Taylor | None = None
    decay: Literal["none", "slopes", "retention", "softplus", "sigmoid"] = "none"
    lower: float | Literal["learned"] = 0.0
    key: Literal["projected", "decay"] = "projected"
    beta: int = 1
    one_strength: bool = True
    causal: bool = True
    formula: Callable[..., Any] = lambda: None
    channels: Channels | None = None

    @property
    def erases(self) -> bool:
        """Whether it is the delta rule."""
        return self.family.update == "delta"

    @property
    def word(self) -> str:
        """The feature map's word, empty without one."""
        return self.feature.word if isinstance(self.feature, Taylor) else self.feature or ""
