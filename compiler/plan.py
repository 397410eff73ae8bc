"""Graph to Plan: for every node and phase the cheapest way to run it, its price, and every other way or why it cannot be."""

from __future__ import annotations

from attnc.compiler import channel_providers, fast_providers, plain_providers, scan_providers
from attnc.compiler.attributes import Softplus
from attnc.compiler.channel_providers import ChannelLaunch
from attnc.compiler.cost import Alternative, Launch, Seen, Workload
from attnc.compiler.device import Device
from attnc.compiler.families import Channels
from attnc.compiler.fast_providers import Nets
from attnc.compiler.graph import Apply, Condense, Graph, Guard, HeadGroup, Mix, Node, RouteTokens, Select, Smooth
from attnc.compiler.kept import kept_heads
from attnc.compiler.mixers import MIXERS
from attnc.compiler.plain_providers import PlainLaunch
from attnc.compiler.planned import Choice, Plan, Price, Refusal
from attnc.compiler.providers import Task, absent, candidates, choosers
from attnc.compiler.scan_providers import States
from attnc.compiler.spec import PHASES, Phase

AnyLaunch = Launch | States | ChannelLaunch | Nets | PlainLaunch
"""What a price depends on, by family."""

ALONE = absent()
"""What a plan leaves out that knows of no optional package."""


def choose(graph: Graph, device: Device, load: Workload, out: tuple[Refusal, ...] = ALONE, *, cap: bool = False) -> Plan:
    """Prices every candidate of every node but those that are left `out` (`providers.absent`); nodes that cost the same are
    priced once. `cap`: whether the model's logits are capped.
    """
    choices = []
    known: dict[tuple[bool, AnyLaunch | None], dict[Phase, tuple[list[Price], tuple[Refusal, ...]]]] = {}
    for name, node in graph.nodes():
        if isinstance(node, Mix | Select | Condense | Smooth | Apply | RouteTokens):
            launch = launch_of(node, cap) if isinstance(node, Mix | Select) else states(node, graph)
            key = isinstance(node, Select), launch
            if key not in known:
                known[key] = {phase: _candidates(node, launch, phase, device, load, out) for phase in _phases(node)}
            for phase, (priced, refused) in known[key].items():
                best, *others = priced
                choice = Choice(
                    node=name,
                    layer=node.layer,
                    phase=phase,
                    provider=best.provider,
                    seconds=best.seconds,
                    how=best.how,
                    parts=best.parts,
                    others=tuple(others),
                    refused=refused,
                )
                choices.append(choice)
    scanned = any(isinstance(launch, States) for _, launch in known)
    asked = tuple(refusal for refusal in out if scanned or refusal.provider != "fla")
    return Plan(device=device.name, length=load.length, batch=load.batch, choices=tuple(choices), absent=asked)


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


def _phases(node: Node) -> tuple[Phase, ...]:
    """The phases in which a node may run: of a choice those that its variants meet."""
    if not isinstance(node, Select):
        return PHASES
    return tuple(phase for phase in PHASES if any(meets(variant.guards, phase) for variant in node.variants))


def meets(guards: tuple[Guard, ...], phase: Phase) -> bool:
    """Whether all guards may hold in a phase, whatever the length."""
    return all(_holds(guard, phase, 0) == guard.holds for guard in guards if guard.condition.left == "phase")


def launch_of(mix: Mix | Select, cap: bool) -> Launch:
    """What the price of a mix, or of its choices, depends on."""
    a = mix.attributes
    variants = tuple(Alternative(variant.guards, tuple(map(_seen, variant.groups))) for variant in mix.variants)
    keys = {key for variant in mix.variants for group in variant.groups for key in group.keys}
    return Launch(
        a.heads // a.kv_heads,
        a.key_width,
        a.value_dim,
        unsaid(mix) if isinstance(mix, Mix) else None,
        variants,
        cap=cap,
        sink_logit=a.sink_logit is not None,
        learned=any(MIXERS[key.kind].own_keys(key) for key in keys),
        ring=isinstance(mix, Mix) and any(kept.recent is not None for _, _, kept in kept_heads(mix)),
        softplus=isinstance(a.score, Softplus),
        latent=a.kv_latent or 0,
        rotated=a.rotated_key,
    )


def states(node: Apply | Condense | Smooth | RouteTokens, graph: Graph) -> States | ChannelLaunch | Nets | PlainLaunch | None:
    """What the price of a kind depends on; None for routes."""
    if isinstance(node, RouteTokens):
        return None
    if isinstance(node, Smooth):
        average = Channels(step=False, write=False, read=False, weights=True, state=node.attributes.input_ema or 0)
        return ChannelLaunch(average, graph.model.dim)
    declared, given = MIXERS[node.kind.kind], (node.kind, node.attributes, graph.model)
    if declared.spaced is not None:
        space = declared.spaced(*given)
        if isinstance(space.family, Channels):
            return ChannelLaunch(space.family, space.channels)
        return States(space.family, space.heads, q_heads=1, k_heads=1, v_heads=space.heads)
    if declared.taught is not None:
        return Nets.of(declared.taught(*given))
    own = declared.condensed if isinstance(node, Condense) else declared.plain
    if own is not None:
        plain = own(*given)
        return PlainLaunch(node.kind.kind, plain.how, plain.cost)
    assert declared.scanned is not None, f"somebody runs {node.kind.kind}"
    scan = declared.scanned(*given)
    return States.of(scan) if scan.channels is None else ChannelLaunch(scan.channels, scan.heads * scan.family.value_width)


def _seen(group: HeadGroup) -> Seen:
    selectors = (chooses(key) for key in group.choices if (chooses := MIXERS[key.kind].chooses) is not None)
    return Seen(group.last - group.first + 1, group.intervals, tuple(selectors))


def _candidates(
    node: Node, launch: AnyLaunch | None, phase: Phase, device: Device, load: Workload, out: tuple[Refusal, ...]
) -> tuple[list[Price], tuple[Refusal, ...]]:
    """(candidates that can run, cheapest first; refusals). No launch: a node that only its reference runs."""
    if launch is None:
        reason = "no kernel family says this yet; its reference is plain PyTorch"
        return [Price(provider="reference", seconds=None)], (Refusal(provider="triton", reason=reason),)
    if isinstance(launch, States):
        return scan_providers.candidates(scan_providers.Task(launch, phase, device, load), out)
    if isinstance(launch, ChannelLaunch):
        return channel_providers.candidates(channel_providers.Task(launch, phase, device, load), out)
    if isinstance(launch, Nets):
        return fast_providers.candidates(fast_providers.Task(launch, phase, device, load), out)
    if isinstance(launch, PlainLaunch):
        return plain_providers.candidates(plain_providers.Task(launch, phase, device, load), out)
    task = Task(launch, _groups(launch, phase, load), phase, device, load)
    return choosers(task, out) if isinstance(node, Select) else candidates(task, out)


def _groups(launch: Launch, phase: Phase, load: Workload) -> tuple[Seen, ...]:
    """The groups of the variant that holds, or of the last one where none of this launch's does (it is then not run)."""
    found = (variant.groups for variant in launch.variants if reachable(variant.guards, phase, load.length))
    return next(found, launch.variants[-1].groups)


def unsaid(mix: Mix) -> str | None:
    """Why the softmax family cannot say a mix, if it cannot."""
    attributes = mix.attributes
    assert attributes.score in ("softmax", "uniform") or isinstance(attributes.score, Softplus), "no other score is built"
    if attributes.positions == "consecutive":
        return "with positions = consecutive each query rotates its keys anew"
    if any(group.intervals is None for variant in mix.variants for group in variant.groups):
        return "a key set of the union is no set of positions"
    return None
