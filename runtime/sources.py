"""What an earlier layer lends to those that take over its choice: the queries and keys that score, and what it keeps of them.

Legend: T new tokens of S sequences; H query heads; D key width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .keys import KeyPart

if TYPE_CHECKING:
    from .scorers import Net
    from .storage import LayerCache


@dataclass(frozen=True, eq=False)
class Source:
    """A layer's queries q [T, H, D] and its key parts, as its attention reads them, learned keys left out.

    cache, held  where it keeps what stands for runs of keys, and below which name
    net          what scored there by weights of its own
    made         choices made of it in this call, which several layers may read
    """

    q: Tensor
    parts: tuple[KeyPart, ...]
    cache: LayerCache | None
    held: str = ""
    net: Net | None = None
    made: dict[Any, Any] = field(default_factory=dict)

    def select(self, sequences: Sequence[int], index: Tensor) -> Source:
        """Of some sequences, whose tokens stand at `index`."""
        parts = tuple(part.select(sequences) for part in self.parts)
        net = None if self.net is None else self.net.select(index)
        return replace(self, q=self.q[index], parts=parts, net=net, made={})
