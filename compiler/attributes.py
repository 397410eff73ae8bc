"""Attributes of a mixer, after inheritance: what `{ key = value }` may say, with its bounds and defaults.

The order inside a mixer: x -> activation, input_ema -> q, k, v -> short_conv with SiLU -> qk_norm -> rope -> the kind ->
output_norm per head -> times output_gate(W x) -> o -> scale.
"""

from __future__ import annotations

from typing import Annotated, Literal

from attnc.compiler.declare import Bounds, Budgeted, NotBuilt, Positional
from attnc.compiler.value import Value


class LinearScale(Value):
    """`linear(8)`: positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    word: Literal["linear"] = "linear"
    factor: Annotated[float, Positional(), Bounds(1e-3, 1e6)]


class Yarn(Value):
    """`yarn(32, original = 4096)`: YaRN (arXiv 2309.00071). `original`: the trained length; by default the model's context."""

    word: Literal["yarn"] = "yarn"
    factor: Annotated[float, Positional(), Bounds(1, 1e6)]
    original: Annotated[int | None, Bounds(1, 2**24)] = None


class Llama3(Value):
    """`llama3(factor = 8, low = 1, high = 4, original = 8192)`: Llama 3.1's frequency-dependent stretch."""

    word: Literal["llama3"] = "llama3"
    factor: Annotated[float, Bounds(1, 1e6)]
    low: Annotated[float, Bounds(1e-3, 1e6)]
    high: Annotated[float, Bounds(1e-3, 1e6)]
    original: Annotated[int, Bounds(1, 2**24)]


class Softplus(Value):
    """`softplus(exponent = 15)`: length-aware softplus scores, normalised, then sharpened (arXiv 2501.13428)."""

    word: Literal["softplus"] = "softplus"
    exponent: Annotated[float, Bounds(1, 64)] = 15


class Grouped(Value):
    """`grouped(51)`: a block's last token gates its block (Landmark attention, arXiv 2305.16300)."""

    word: Literal["grouped"] = "grouped"
    n: Annotated[int, Positional(), Bounds(2, 65536)]


class LogPosition(Value):
    """`log_position(floor_scale = 8192)`: logits times 1 + attn_scale log(1 + floor((i + 1) / floor_scale))."""

    word: Literal["log_position"] = "log_position"
    floor_scale: Annotated[float, Bounds(1, 2**24)] = 8192
    attn_scale: Annotated[float, Bounds(0, 100)] = 0.1


class Normal(Value):
    """`normal(mean = 0, std = 0.02)`: how q and k weights start."""

    word: Literal["normal"] = "normal"
    mean: Annotated[float, Bounds(-10, 10)] = 0
    std: Annotated[float, Bounds(0, 10)] = 0.02


class LearnedScale(Value):
    """`learned(init = 0)`: a learned factor per channel."""

    word: Literal["learned"] = "learned"
    init: Annotated[float, Bounds(-1e6, 1e6)] = 1


class Mesh(Value):
    """`mesh(heads = 2, sequence = 2)`: over how many devices heads and sequence are split."""

    word: Literal["mesh"] = "mesh"
    heads: Annotated[int, Bounds(1, 1024)] = 1
    sequence: Annotated[int, Bounds(1, 1024)] = 1


OF_ALL = frozenset({"causal", "distribute"})
OF_INPUT = OF_ALL | {"activation", "input_ema"}
OF_PROJECTIONS = frozenset({"heads", "kv_heads", "head_dim", "value_dim", "qk_norm", "short_conv", "init_qk"})
OF_ROTATION = frozenset({"rope", "rope_dim", "rope_scale"})
OF_OUTPUT = frozenset({"output_norm", "output_gate", "scale"})
"""Attributes by what they are about: kinds that are mixers by themselves take some of these sets."""


Heads = Annotated[int, Bounds(1, 1024)]


class Attributes(Value):
    """All attributes of one mixer, with inheritance and defaults applied (`None` stands for the word `none`)."""

    heads: Heads
    kv_heads: Heads
    qk_heads: Heads
    head_dim: Annotated[int, Bounds(1, 1024), Budgeted("training")]
    value_dim: Annotated[int, Bounds(1, 1024), Budgeted("training")]
    kv_latent: Annotated[int | None, Bounds(1, 65536)] = None
    rope: Annotated[float | None, Bounds(1, 1e13)] = 10000.0
    rope_dim: Annotated[int | None, Bounds(2, 1024)] = None
    rope_scale: LinearScale | Yarn | Llama3 | None = None
    positions: Annotated[Literal["absolute", "chunk", "consecutive", "stingy"], NotBuilt("stingy")] = "absolute"
    qk_norm: Literal["rms", "l2"] | None = None
    short_conv: Annotated[int | None, Bounds(2, 8)] = None
    activation: Literal["silu", "gelu"] | None = None
    input_ema: Annotated[int | None, Bounds(1, 64)] = None
    share_qk: bool = False
    qk_from: Literal["previous"] | None = None
    init_qk: Normal | None = None
    score: Annotated[Literal["softmax", "uniform"] | Softplus | Grouped, NotBuilt(Grouped)] = "softmax"
    temperature: Annotated[float | LogPosition, Bounds(1e-6, 1e6), Budgeted("tuned")] = 1.0
    sink_logit: Literal["learned"] | None = None
    output_norm: Literal["rms"] | None = None
    output_gate: Literal["sigmoid", "silu", "linear"] | None = None
    scale: Annotated[float | LearnedScale, Bounds(-1e6, 1e6)] = 1.0
    causal: bool = True
    proportional: Annotated[bool, NotBuilt()] = False
    distribute: Annotated[Mesh | None, NotBuilt()] = None

    @property
    def rotated_key(self) -> int:
        """With `kv_latent`: the width of the one rotated key that all heads share, beside their own unrotated ones."""
        return self.rope_dim or 0 if self.kv_latent is not None and self.rope is not None else 0

    @property
    def key_width(self) -> int:
        """The width of what a query and a key are multiplied over."""
        return self.head_dim + self.rotated_key
