"""Graph to Plan: for every node and phase the cheapest way to run it, its price, and every other way or why it cannot be."""

from __future__ import annotations

from attnc.compiler.cost import Alternative, Launch, Seen, Workload, blocked, dense, is_plain_causal, seconds, tiled
from attnc.compiler.device import Device
from attnc.compiler.graph import Apply, Graph, Guard, Mix, RouteTokens
from attnc.compiler.planned import Choice, Plan, Price, Refusal
from attnc.compiler.spec import PHASES, Phase

KERNEL_WIDTHS = (1, 256)


def choose(graph: Graph, device: Device, load: Workload) -> Plan:
    """Prices every candidate of every node; nodes that cost the same are priced once."""
    choices = []
    known: dict[Launch | None, list[tuple[list[Price], tuple[Refusal, ...]]]] = {}
    for name, node in graph.nodes():
        if isinstance(node, Mix | Apply | RouteTokens):
            launch = _launch(node) if isinstance(node, Mix) else None
            found = known.get(launch)
            if found is None:
                found = known[launch] = [_candidates(launch, phase, device, load) for phase in PHASES]
            for phase, (priced, refused) in zip(PHASES, found, strict=True):
                best, *others = priced
                choice = Choice(
                    node=name,
                    layer=node.layer,
                    phase=phase,
                    provider=best.provider,
                    seconds=best.seconds,
                    others=tuple(others),
                    refused=refused,
                )
                choices.append(choice)
    return Plan(device=device.name, length=load.length, batch=load.batch, choices=tuple(choices))


def reachable(guards: tuple[Guard, ...], phase: Phase, length: int) -> bool:
    """Whether all guards hold for this phase and length."""
    return all(_holds(guard, phase, length) == guard.holds for guard in guards)


def _holds(guard: Guard, phase: Phase, length: int) -> bool:
    condition = guard.condition
    if condition.left == "phase":
        return condition.right == phase
    right = int(condition.right)
    match condition.operator:
        case "<":
            return length < right
        case "<=":
            return length <= right
        case ">":
            return length > right
        case ">=":
            return length >= right
        case "==":
            return length == right


def _launch(mix: Mix) -> Launch:
    """What the price of a mix depends on."""
    a = mix.attributes
    variants = tuple(
        Alternative(variant.guards, tuple(Seen(group.last - group.first + 1, group.intervals) for group in variant.groups))
        for variant in mix.variants
    )
    return Launch(a.heads // a.kv_heads, a.head_dim, a.value_dim, unsaid(mix), variants)


def _candidates(launch: Launch | None, phase: Phase, device: Device, load: Workload) -> tuple[list[Price], tuple[Refusal, ...]]:
    """(candidates that can run, cheapest first; refusals). No launch: a node that only its reference runs."""
    if launch is None:
        reason = "no kernel family says this yet; its reference is plain PyTorch"
        return [Price(provider="reference", seconds=None)], (Refusal(provider="triton", reason=reason),)
    groups = _groups(launch, phase, load)
    priced, refused = [], []
    for provider, price in (("triton", _price_triton), ("torch", _price_torch), ("reference", _price_reference)):
        result = price(launch, groups, phase, device, load)
        if isinstance(result, str):
            refused.append(Refusal(provider=provider, reason=result))
        else:
            priced.append(Price(provider=provider, seconds=result))
    fast = [price for price in priced if price.provider != "reference"]
    slow = [price for price in priced if price.provider == "reference"]
    return [*sorted(fast, key=lambda price: price.seconds or 0.0), *slow], tuple(refused)


def _groups(launch: Launch, phase: Phase, load: Workload) -> tuple[Seen, ...]:
    """The groups of the variant that holds, or of the last one where none of this launch's does (it is then not run)."""
    found = (variant.groups for variant in launch.variants if reachable(variant.guards, phase, load.length))
    return next(found, launch.variants[-1].groups)


def _price_triton(launch: Launch, groups: tuple[Seen, ...], phase: Phase, device: Device, load: Workload) -> float | str:
    if not device.is_gpu:
        return "generated kernels need a GPU"
    if launch.unsaid:
        return launch.unsaid
    if not all(KERNEL_WIDTHS[0] <= width <= KERNEL_WIDTHS[1] for width in (launch.head_dim, launch.value_dim)):
        return f"head widths above {KERNEL_WIDTHS[1]} do not fit its tiles"
    return seconds(tiled(launch, groups, phase, load), device, device.efficiency["triton"][phase])


def _price_torch(launch: Launch, groups: tuple[Seen, ...], phase: Phase, device: Device, load: Workload) -> float | str:
    if launch.unsaid:
        return launch.unsaid
    work = tiled if is_plain_causal(groups) else blocked
    return seconds(work(launch, groups, phase, load), device, device.efficiency["torch"][phase])


def _price_reference(launch: Launch, groups: tuple[Seen, ...], phase: Phase, device: Device, load: Workload) -> float | str:
    return seconds(dense(launch, groups, phase, load), device, 0.3, matrix=False)


def unsaid(mix: Mix) -> str | None:
    """Why the softmax family cannot say a mix, if it cannot."""
    attributes = mix.attributes
    if attributes.score not in ("softmax", "uniform"):
        return f"the softmax family has no {getattr(attributes.score, 'word', attributes.score)} score"
    if attributes.positions == "consecutive":
        return "with positions = consecutive each query rotates its keys anew"
    if any(group.intervals is None for variant in mix.variants for group in variant.groups):
        return "a key set of the union is no set of positions"
    return None
