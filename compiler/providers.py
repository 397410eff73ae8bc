"""Who can run a launch, and what each would ask for it: one function for each provider, which prices a task or refuses it.

| name | is |
|---|---|
| triton | generated kernels |
| gluon | the same for sm_90, of which those for many queries are written in Gluon |
| torch | PyTorch's scaled_dot_product_attention, its flash kernel for windows, else masks of 256 queries |
| flex | PyTorch's flex_attention, compiled by torch.compile |
| fa4 | the package flash-attn-4 |
| split | some heads by one of these and some by another, outputs joined |
| reference | masks and formulas as they are written |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler import intervals as arithmetic
from attnc.compiler.cost import (
    Launch,
    Seen,
    Workload,
    absorbed,
    blocked,
    choosing,
    dense,
    is_plain_causal,
    joining,
    listed,
    seconds,
    tiled,
)
from attnc.compiler.device import Device
from attnc.compiler.list_providers import (
    UNCOMPARED,
    reading,
    scoring,
    uncompared,
    ungraded,
    unmade,
    unread,
    unread_in_gluon,
)
from attnc.compiler.planned import HeadPart, Price, Refusal
from attnc.compiler.spec import Phase

OPTIONAL = {"flex": "torch with triton", "fa4": "flash-attn-4", "fla": "flash-linear-attention"}
"""Providers that a machine may lack, and what they come with; `fla` is one of matrix states (scan_providers.py)."""

UNTRIED = {"gluon": "asked for by --with gluon alone, until a GPU has compared it"}
"""Those that no machine lacks and no plan takes by itself, and why; without a name here, a provider is asked as `triton` is."""

ASKABLE = (*OPTIONAL, "gluon")
"""What `--with` takes."""

KERNEL_WIDTHS = (1, 256)
GLUON_ARCHITECTURE = "sm_90"
FLEX_WIDTHS = (16, 256)
FLEX_TILES = (128, 128)
SOFTMAX = "its weights are a softmax's"
NO_GPU = "generated kernels need a GPU"
NO_LISTS = "none of its kernels reads lists of chosen keys"
UNMEASURED = "the table of this device has no efficiency for it"


class Task(NamedTuple):
    """A launch in one phase; `groups` are those of the variant that holds."""

    launch: Launch
    groups: tuple[Seen, ...]
    phase: Phase
    device: Device
    load: Workload

    @property
    def lists(self) -> bool:
        """Whether content chooses some of the keys."""
        return any(group.selectors for group in self.groups)

    @property
    def counted(self) -> tuple[Launch, tuple[Seen, ...], Phase, Workload]:
        """What work is counted from."""
        return self.launch, self.groups, self.phase, self.load


Ask = Callable[[Task], Price | str]
"""What a provider asks for a task, or why it cannot do it."""


def absent(installed: Iterable[str] = (), without: Iterable[str] = ()) -> tuple[Refusal, ...]:
    """The providers that a plan leaves out: optional ones that are not `installed`, and those it is to do `without`."""
    there, refused = frozenset(installed), frozenset(without)
    return tuple(
        Refusal(provider=name, reason="left out by --without" if name in refused else UNTRIED.get(name, "not installed"))
        for name in (*PROVIDERS, "fla")
        if name in refused or (name in OPTIONAL | UNTRIED and name not in there)
    )


def candidates(task: Task, out: tuple[Refusal, ...]) -> tuple[list[Price], tuple[Refusal, ...]]:
    """(those that can, cheapest first and the reference last; those that cannot), without the ones that are left `out`."""
    away = {refusal.provider for refusal in out}
    found = [(name, ask(task)) for name, ask in PROVIDERS.items() if name not in away]
    priced = [price for _, price in found if isinstance(price, Price)]
    refused = [Refusal(provider=name, reason=reason) for name, reason in found if isinstance(reason, str)]
    fast = [price for price in priced if price.provider != "reference"]
    if len(fast) > 1 and len({group.intervals for group in task.groups}) > 1:
        divided = split(task, out)
        if isinstance(divided, Price):
            priced.append(divided)
        else:
            refused.append(Refusal(provider="split", reason=divided))
    fast = sorted((price for price in priced if price.provider != "reference"), key=_rank)
    return [*fast, *(price for price in priced if price.provider == "reference")], tuple(refused)


def _rank(price: Price) -> tuple[bool, float]:
    """The less, the sooner chosen."""
    return price.how.startswith(UNCOMPARED), price.seconds or 0.0


def choosers(task: Task, out: tuple[Refusal, ...]) -> tuple[list[Price], tuple[Refusal, ...]]:
    """Who can choose keys by content for a launch: as `candidates`."""
    torch = Price(provider="torch", seconds=seconds(choosing(*task.counted), task.device, 0.3), how="scores of 256 queries")
    reference = Price(provider="reference", seconds=seconds(dense(*task.counted), task.device, 0.3, matrix=False))
    gone = any(refusal.provider == "torch" for refusal in out)
    away = any(refusal.provider == "triton" for refusal in out)
    reason = NO_GPU if not task.device.is_gpu else _too_wide(task.launch) or unmade(task.launch, task.groups)
    if away or reason is not None:
        refused = () if away or reason is None else (Refusal(provider="triton", reason=reason),)
        return [*([] if gone else [torch]), reference], refused
    efficiency = task.device.efficiency["triton"][task.phase]
    how = uncompared(task.groups, task.phase)  # of what reads the lists, too: both run, or neither
    triton = Price(provider="triton", seconds=seconds(scoring(*task.counted), task.device, efficiency), how=how)
    fast = sorted([triton, *([] if gone else [torch])], key=_rank)
    return [*fast, reference], ()


def split(task: Task, out: tuple[Refusal, ...]) -> Price | str:
    """Neighbouring heads that see alike by whoever is cheapest for them, each of these at once with like neighbours."""
    if task.lists:
        return "what content chooses is read by one call"
    if len(task.launch.variants) > 1:
        return "its heads see other keys at other lengths or phases"
    parts: list[tuple[Price, tuple[Seen, ...]]] = []
    for group in task.groups:
        best, *_ = candidates(replace_groups(task, (group,)), out)[0]
        if parts and parts[-1][0].provider == best.provider:
            groups = (*parts[-1][1], group)
            again = PROVIDERS[best.provider](replace_groups(task, groups))
            assert isinstance(again, Price), "who can do each of two groups can do both"
            parts[-1] = (again, groups)
        else:
            parts.append((best, (group,)))
    if len(parts) == 1:
        return f"{parts[0][0].provider} is the cheapest for each of its heads"
    first, rows, total = 0, [], seconds(joining(task.launch, task.phase, task.load), task.device, 1.0)
    for price, groups in parts:
        heads = sum(group.kv_heads for group in groups)
        rows.append(HeadPart(first=first, last=first + heads - 1, provider=price.provider, how=price.how))
        first += heads
        total += price.seconds or 0.0
    return Price(provider="split", seconds=total, parts=tuple(rows))


def replace_groups(task: Task, groups: tuple[Seen, ...]) -> Task:
    """The task for some of its heads alone."""
    variants = (task.launch.variants[0]._replace(groups=groups),)
    return task._replace(launch=task.launch._replace(variants=variants), groups=groups)


def _triton(task: Task) -> Price | str:
    launch, device = task.launch, task.device
    if not device.is_gpu:
        return NO_GPU
    if launch.unsaid:
        return launch.unsaid
    if task.lists and (reason := unread(launch, task.groups)) is not None:
        return reason
    if task.lists and task.phase == "train" and (reason := ungraded(task.groups)) is not None:
        return reason
    if (reason := _too_wide(launch)) is not None:
        return reason
    work, how = reading(*task.counted) if task.lists else tiled(*task.counted), uncompared(task.groups, task.phase)
    return Price(provider="triton", seconds=seconds(work, device, device.efficiency["triton"][task.phase]), how=how)


def _too_wide(launch: Launch) -> str | None:
    fits = all(KERNEL_WIDTHS[0] <= width <= KERNEL_WIDTHS[1] for width in (launch.head_dim, launch.value_dim))
    return None if fits else f"head widths above {KERNEL_WIDTHS[1]} do not fit its tiles"


def _gluon(task: Task) -> Price | str:
    launch, device = task.launch, task.device
    if device.architecture != GLUON_ARCHITECTURE:
        return f"its kernels are for {GLUON_ARCHITECTURE}"
    if "gluon" not in device.efficiency:
        return UNMEASURED
    if launch.unsaid or launch.softplus:
        return launch.unsaid or SOFTMAX
    if (reason := no_gluon(launch.head_dim, launch.value_dim)) is not None:
        return reason
    if task.phase == "decode":
        return "its tiles of queries are for prefill and training"
    if task.lists and (reason := unread_in_gluon(launch, task.groups)) is not None:
        return reason
    work, how = reading(*task.counted) if task.lists else tiled(*task.counted), uncompared(task.groups, task.phase)
    return Price(provider="gluon", seconds=seconds(work, device, device.efficiency["gluon"][task.phase]), how=how)


def no_gluon(head_width: int, value_width: int) -> str | None:
    """Why there is no kernel in Gluon for heads of these widths."""
    if max(head_width, value_width) > KERNEL_WIDTHS[1]:
        return f"head widths above {KERNEL_WIDTHS[1]} do not fit into shared memory"
    return "it copies rows of multiples of 8 numbers" if head_width % 8 or value_width % 8 else None


def _torch(task: Task) -> Price | str:
    launch, device = task.launch, task.device
    if launch.unsaid or launch.softplus:
        return launch.unsaid or SOFTMAX
    if task.lists:
        price = seconds(listed(*task.counted), device, device.efficiency["torch"][task.phase])
        return Price(provider="torch", seconds=price, how="lists")
    if launch.latent and task.phase == "decode":
        work = absorbed(launch, task.groups, task.load)
        return Price(provider="torch", seconds=seconds(work, device, device.efficiency["torch"]["decode"]), how="latents")
    products = not (launch.scored or launch.learned)
    if products and is_plain_causal(task.groups):
        price = seconds(tiled(*task.counted), device, device.efficiency["torch"][task.phase])
        return Price(provider="torch", seconds=price, how=_backend(launch, device))
    windows = task.phase != "decode" and not any(_no_window(group) for group in task.groups)
    if products and windows and "flash" in device.efficiency and _flash_widths(launch):
        return Price(provider="torch", seconds=_by_groups(task, "flash"), how="flash")
    price = seconds(blocked(*task.counted), device, device.efficiency["torch"][task.phase])
    return Price(provider="torch", seconds=price, how="" if task.phase == "decode" else "masks")


def _flash_widths(launch: Launch) -> bool:
    return launch.head_dim == launch.value_dim <= 256 and launch.head_dim % 8 == 0


def _by_groups(task: Task, name: str) -> float:
    """Seconds of a call for each group of heads, at the efficiency `name`, and of joining them."""
    launch, device = task.launch, task.device
    work = tiled(*task.counted)
    price = seconds(replace(work, launches=work.launches * len(task.groups)), device, device.efficiency[name][task.phase])
    alone = len(task.groups) == 1
    return price if alone else price + seconds(joining(launch, task.phase, task.load), device, 1.0)


def _backend(launch: Launch, device: Device) -> str:
    """Which of its kernels PyTorch takes for a plain causal launch in 16 bits."""
    widths = launch.head_dim, launch.value_dim
    if not device.is_gpu:
        return "flash" if widths[0] == widths[1] else "plain"
    most = 256 if device.architecture == "sm_90" else 128
    if device.architecture in ("sm_90", "sm_100") and max(widths) <= most and not any(width % 8 for width in widths):
        return "cuDNN"
    return "flash" if widths[0] == widths[1] and widths[0] <= 256 else "memory-efficient"


def _flex(task: Task) -> Price | str:
    launch, device = task.launch, task.device
    if not device.is_gpu or "flex" not in device.efficiency:
        return UNMEASURED if device.is_gpu else "flex_attention's kernels need a GPU"
    if launch.unsaid or launch.softplus or task.lists:
        return launch.unsaid or (NO_LISTS if task.lists else SOFTMAX)
    if task.phase == "decode":
        return "its lists of blocks would be made anew for every token"
    if not all(FLEX_WIDTHS[0] <= width <= FLEX_WIDTHS[1] for width in (launch.head_dim, launch.value_dim)):
        return f"flex_attention takes heads of {FLEX_WIDTHS[0]} to {FLEX_WIDTHS[1]}"
    work = tiled(*task.counted, FLEX_TILES)
    return Price(provider="flex", seconds=seconds(work, device, device.efficiency["flex"][task.phase]))


def _fa4(task: Task) -> Price | str:
    launch, device = task.launch, task.device
    if device.architecture not in ("sm_90", "sm_100"):
        return "flash-attn-4 is for sm_90 and sm_100"
    if "fa4" not in device.efficiency:
        return UNMEASURED
    if launch.unsaid or launch.softplus or task.lists:
        return launch.unsaid or (NO_LISTS if task.lists else SOFTMAX)
    for reason in (_fa4_keys(launch), _fa4_widths(launch, device)):
        if reason:
            return reason
    if task.phase == "decode" and launch.ring:
        return "the keys of a ring would be put in order for every token"
    calls = len(task.groups)
    return Price(provider="fa4", seconds=_by_groups(task, "fa4"), how="" if calls == 1 else f"{calls} calls")


def _fa4_keys(launch: Launch) -> str | None:
    """Why flash-attn-4 cannot see what some variant's heads see."""
    if launch.learned:
        return "flash-attn-4 has no keys that every query sees beside a window"
    groups = (group for variant in launch.variants for group in variant.groups)
    return next((reason for group in groups if (reason := _no_window(group)) is not None), None)


def _no_window(group: Seen) -> str | None:
    """Why a flash kernel cannot see what the heads see."""
    assert group.intervals is not None, "only static key sets are priced"
    union = group.intervals
    near = union.near[0] if len(union.near) == 1 else None
    if near is None or (near.align, near.shift) != (1, 0) or union.sink != 0 or union.strides or union.powers:
        return "flash kernels see one window around the query, or everything"
    if arithmetic.has_shares(union):
        return "flash kernels take one window for all sequences, not a share of each one's length"
    return None


def _fa4_widths(launch: Launch, device: Device) -> str | None:
    widths = launch.head_dim, launch.value_dim
    standard = max(widths) <= (256 if device.architecture == "sm_90" else 128)
    special = device.architecture == "sm_100" and (widths == (192, 128) or (widths == (256, 256) and not launch.scored))
    if any(width % 8 for width in widths) or not (standard or special):
        return f"flash-attn-4 has no kernel for heads of {widths[0]} and values of {widths[1]}"
    return None


def _reference(task: Task) -> Price | str:
    work = dense(*task.counted)
    return Price(provider="reference", seconds=seconds(work, task.device, 0.3, matrix=False))


PROVIDERS: dict[str, Ask] = {
    "triton": _triton,
    "gluon": _gluon,
    "torch": _torch,
    "flex": _flex,
    "fa4": _fa4,
    "reference": _reference,
}
