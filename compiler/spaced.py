"""How a state space becomes a launch of channel or of matrix states: what codegen and the plan read instead of the kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from attnc.compiler.families import Channels, Recurrence


@dataclass(frozen=True)
class Spaced:
    """The member of a family, and what makes its tensors of the layer's input.

    family    `Channels`: a state for each channel; `Recurrence`: one for each head, whose write and read all heads share
    channels  the inner width; `heads`: states of a `Recurrence`, each of channels / heads columns; `state`: numbers or rows
    steps     where the steps of time come from: `fixed` ones of the channel, by which a continuous system is held (then rates
              and readings are complex, and GELU follows); of the token through a narrow map (`ranked`), or one a head (`heads`)
    conv      taps of the convolution before, with SiLU, or None; in `heads` it runs over what is written and read too
    gate      what the outputs are multiplied by: this function of a map of the layer's input, or None
    norm      epsilon of an RMS norm over all channels, after the gate, or None
    formula   the reference of one sequence
    """

    family: Channels | Recurrence
    channels: int
    state: int
    steps: Literal["fixed", "ranked", "heads"]
    formula: Callable[..., Any]
    heads: int = 0
    conv: int | None = None
    gate: Literal["sigmoid", "silu", "linear"] | None = None
    norm: float | None = None
    causal: bool = True

    @property
    def conv_width(self) -> int:
        """Channels of the convolution."""
        return self.channels + (2 * self.state if self.steps == "heads" else 0)
