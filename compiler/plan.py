"""Graph to Plan: for every node and phase the cheapest way to run it, its price, and every other way or why it cannot be."""

from __future__ import annotations

from attnc.compiler.cost import Workload, blocked, dense, is_plain_causal, seconds, tiled
from attnc.compiler.device import Device
from attnc.compiler.graph import Apply, Graph, Guard, Mix, Node, RouteTokens, Variant
from attnc.compiler.planned import Choice, Plan, Price, Refusal
from attnc.compiler.spec import PHASES, Phase

KERNEL_WIDTHS = (1, 256)


def choose(graph: Graph, device: Device, load: Workload) -> Plan:
    """Prices every candidate of every node; equal nodes are priced once."""
    choices = []
    known: dict[Node, list[tuple[list[Price], tuple[Refusal, ...]]]] = {}
    for name, node in graph.nodes():
        if isinstance(node, Mix | Apply | RouteTokens):
            key = _anonymous(node)
            found = known.get(key)
            if found is None:
                found = known[key] = [_candidates(key, phase, device, load) for phase in PHASES]
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


def _anonymous(node: Node) -> Node:
    """The node without its layer, so that equal layers share one price."""
    return node.model_copy(update={"layer": 0})


def _candidates(node: Node, phase: Phase, device: Device, load: Workload) -> tuple[list[Price], tuple[Refusal, ...]]:
    """(candidates that can run, cheapest first; refusals)."""
    if not isinstance(node, Mix):
        reason = "no kernel family says this yet; its reference is plain PyTorch"
        return [Price(provider="reference", seconds=None)], (Refusal(provider="triton", reason=reason),)
    variant = _variant(node, phase, load)
    priced, refused = [], []
    for provider, price in (("triton", _price_triton), ("torch", _price_torch), ("reference", _price_reference)):
        result = price(node, variant, phase, device, load)
        if isinstance(result, str):
            refused.append(Refusal(provider=provider, reason=result))
        else:
            priced.append(Price(provider=provider, seconds=result))
    fast = [price for price in priced if price.provider != "reference"]
    slow = [price for price in priced if price.provider == "reference"]
    return [*sorted(fast, key=lambda price: price.seconds or 0.0), *slow], tuple(refused)


def _variant(mix: Mix, phase: Phase, load: Workload) -> Variant:
    """The variant that holds, or the last one where none of this mix's does (it is then not run)."""
    found = [variant for variant in mix.variants if reachable(variant.guards, phase, load.length)]
    return found[0] if found else mix.variants[-1]


def _price_triton(mix: Mix, variant: Variant, phase: Phase, device: Device, load: Workload) -> float | str:
    attributes = mix.attributes
    if not device.is_gpu:
        return "generated kernels need a GPU"
    if phase == "train":
        return "its backward pass is not generated yet"
    if reason := unsaid(mix):
        return reason
    if not all(KERNEL_WIDTHS[0] <= width <= KERNEL_WIDTHS[1] for width in (attributes.head_dim, attributes.value_dim)):
        return f"head widths above {KERNEL_WIDTHS[1]} do not fit its tiles"
    return seconds(tiled(mix, variant, phase, load), device, device.efficiency["triton"][phase])


def _price_torch(mix: Mix, variant: Variant, phase: Phase, device: Device, load: Workload) -> float | str:
    if reason := unsaid(mix):
        return reason
    work = tiled if is_plain_causal(variant) else blocked
    return seconds(work(mix, variant, phase, load), device, device.efficiency["torch"][phase])


def _price_reference(mix: Mix, variant: Variant, phase: Phase, device: Device, load: Workload) -> float | str:
    return seconds(dense(mix, variant, phase, load), device, 0.3, matrix=False)


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
