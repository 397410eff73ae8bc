"""The launches of matrix states in a built folder, and one of them as work: its inputs, and how much there is to do.

Legend: T = B * N tokens of B sequences; H states of K x V; heads of q, k and v each serve neighbouring states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attnc.bench.launches import Folder, origin_text

DEEPEST = 0.1
"""Drawn decays keep between exp(-0.1) and all of a state: after a thousand tokens nothing would be left of it otherwise."""


@dataclass(frozen=True)
class Sizes:
    """Heads and widths, and the axes of gates behind that of the tokens: () for a number a head, (K,) or (V,) for channels."""

    heads: int
    q_heads: int
    k_heads: int
    v_heads: int
    key_width: int
    value_width: int
    decay: tuple[int, ...] | None
    erase: tuple[int, ...] | None
    write: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class StatesLaunch:
    """One launch of matrix states, in all layers that run it; `scan`: the runtime's MatrixStates, the rest as of `Launch`."""

    name: str
    words: str
    layers: tuple[int, ...]
    numbers: Sizes
    planned: dict[str, dict[str, Any]]
    scan: Any
    folder: Folder

    @property
    def plain(self) -> bool:
        """Whether plain PyTorch runs it on a CPU."""
        return True

    @property
    def heads(self) -> int:
        """H."""
        return self.numbers.heads

    @property
    def kv_heads(self) -> int:
        """Heads of v."""
        return self.numbers.v_heads

    @property
    def key_width(self) -> int:
        """K."""
        return self.numbers.key_width

    @property
    def value_width(self) -> int:
        """V."""
        return self.numbers.value_width

    @property
    def sizes(self) -> str:
        """In words."""
        n = self.numbers
        return (
            f"{n.heads} states of {n.key_width} x {n.value_width}; heads of q, k and v: {n.q_heads}, {n.k_heads}, {n.v_heads}"
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for launches that differ in nothing that is timed."""
        return self.numbers, self.scan.scale, self.scan.normalize, self.scan.causal, self.scan.decay is not None

    @property
    def delta(self) -> bool:
        """Whether it is the delta rule."""
        return self.numbers.erase is not None

    def provider(self, planned: Any) -> Any:
        """One of the runtime's providers."""
        return self.folder.model.scan(self.scan, planned)

    def lacking(self, planned: Any, device: Any, dtype: Any) -> str | None:
        """Why a provider cannot run on this machine."""
        reason = self.folder.runtime("choosing").lacking(planned, device, dtype)
        return None if reason is None else str(reason)


@dataclass(frozen=True, eq=False)
class StatesWork:
    """What every participant is given.

    q, k, v  [T, heads, width]; decay, erase, write as the runtime's `Steps` has them, None where the launch has none
    before   [B, H, K, V], the states; decode alone, and with `normalize` the sums of keys, `total` [B, H, K]
    o_grad   [T, H, V]; backward alone
    """

    launch: StatesLaunch
    phase: str
    length: int
    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    erase: Tensor | None
    write: Tensor | None
    before: Tensor | None
    total: Tensor | None
    o_grad: Tensor | None
    batch: Any

    @property
    def sequences(self) -> int:
        """B."""
        return int(self.batch.sequences)

    @property
    def planned(self) -> Any:
        """The provider that a built model would run on this kind of device."""
        return self.launch.planned[self.q.device.type][RUNTIME[self.phase]]

    @property
    def gates(self) -> dict[str, Tensor]:
        """What of decay, erase and write is of the token: what has gradients."""
        every = {"decay": self.decay, "erase": self.erase, "write": self.write}
        return {name: x for name, x in every.items() if x is not None and x.dim() > 1}

    @property
    def flops(self) -> float:
        """Useful operations of the recurrence: a product with the state to write, one to read, one to erase; twice in the
        backward pass.
        """
        products = 3 if self.launch.delta else 2
        numbers = self.launch.heads * self.launch.key_width * self.launch.value_width
        return 2.0 * products * len(self.q) * numbers * (2 if self.phase == "backward" else 1)

    @cached_property
    def bytes(self) -> float:
        """Bytes that a decode step cannot avoid: states read and written, and what the token brings and gets."""
        tensors = [self.q, self.k, self.v, *self.gates.values()]
        once = sum(x.numel() * x.element_size() for x in tensors)
        held = sum(x.numel() * x.element_size() for x in (self.before, self.total) if x is not None)
        return once + 2 * held + len(self.q) * self.launch.heads * self.launch.value_width * self.q.element_size()


RUNTIME = {"forward": "prefill", "backward": "train", "decode": "decode"}


def states_launches(folder: Folder) -> list[StatesLaunch]:
    """Every distinct launch of matrix states once, in the order of the layers."""
    known: dict[tuple[Any, ...], StatesLaunch] = {}
    for index, layer in enumerate(folder.model.model.layers):
        for module, scan in _scans(folder, layer):
            launch = StatesLaunch(
                name=scan.name,
                words=origin_text(module) or scan.name,
                layers=(index,),
                numbers=_numbers(folder, module, scan),
                planned={kind: dict(folder.model.providers[kind][scan.name]) for kind in ("cuda", "cpu")},
                scan=scan,
                folder=folder,
            )
            same = known.get(launch.key)
            known[launch.key] = launch if same is None else replace(same, layers=tuple(sorted({*same.layers, index})))
    return list(known.values())


def _scans(folder: Folder, layer: Any) -> Iterator[tuple[Any, Any]]:
    kind = folder.runtime("scan").MatrixStates
    for module in layer.modules():
        scan = vars(module).get("scan")
        if isinstance(scan, kind):
            yield module, scan


def _numbers(folder: Folder, module: Any, scan: Any) -> Sizes:
    """What the layer hands to its launch, seen by running the layer without numbers on one token."""
    given: dict[str, Any] = {}

    def spy(q: Tensor, k: Tensor, v: Tensor, batch: Any, cache: Any, **gates: Tensor) -> Tensor:  # noqa: ARG001
        given.update(q=q, k=k, v=v, **gates)
        return torch.empty(1, scan.heads, v.shape[-1], device="meta")

    _, batch = folder.runtime("batch").Batch.of(torch.zeros(1, 1, dtype=torch.int64, device="meta"), phase="train")
    width = folder.model.model.embed_tokens.weight.shape[1]
    module.scan = spy
    taken = [torch.empty(1, columns, device="meta") for columns in vars(module).get("takes", ())]  # of shared projections
    module(torch.empty(1, width, device="meta"), *taken, folder.runtime("call").Call(batch))
    module.scan = scan
    axes = {name: tuple(given[name].shape[2:]) if name in given else None for name in ("decay", "erase", "write")}
    (_, q_heads, rows), (_, k_heads, _), (_, v_heads, columns) = (given[name].shape for name in "qkv")
    return Sizes(scan.heads, q_heads, k_heads, v_heads, rows, columns, **axes)


def make(
    launch: StatesLaunch, phase: str, length: int, batch: int, dtype: torch.dtype, device: torch.device
) -> StatesWork | str:
    """The work with drawn inputs, or why the launch has none in this phase."""
    if not launch.scan.causal:
        return "a layer that looks ahead runs no scan"
    n, decode = launch.numbers, phase == "decode"
    tokens = batch * (1 if decode else length)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, as_: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(as_)

    def gate(axes: tuple[int, ...] | None, most: float) -> Tensor | None:
        return None if axes is None else most * torch.rand(tokens, n.heads, *axes, generator=generator, device=device)

    q, k = draw(tokens, n.q_heads, n.key_width), draw(tokens, n.k_heads, n.key_width)
    if launch.scan.normalize:
        q, k = q.abs(), k.abs()
    if launch.delta:
        k = torch.nn.functional.normalize(k.float(), dim=-1).to(dtype)
    fixed = launch.scan.decay
    decay = gate(n.decay, -DEEPEST) if fixed is None else torch.tensor(fixed, dtype=torch.float32, device=device)
    states = (batch, n.heads, n.key_width, n.value_width)
    before = draw(*states, as_=torch.float32) if decode else None
    total = draw(*states[:3], as_=torch.float32).abs() if decode and launch.scan.normalize else None
    erase = gate(n.erase, 1.0)
    write = erase if n.write == n.erase == () else gate(n.write, 1.0)
    places = torch.zeros(batch, tokens // batch, dtype=torch.int64, device=device)
    _, laid = launch.folder.runtime("batch").Batch.of(places, phase=RUNTIME[phase])
    o_grad = draw(tokens, n.heads, n.value_width) if phase == "backward" else None
    v = draw(tokens, n.v_heads, n.value_width)
    return StatesWork(launch, phase, length, q, k, v, decay, erase, write, before, total, o_grad, laid)
