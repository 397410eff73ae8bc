"""What every built model can do: one forward for training, prefill and decode; caches; a choice of who runs its launches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .attention_fa4 import fa4_attention
from .attention_flex import flex_attention
from .attention_lists import lists_attention
from .attention_torch import torch_attention
from .autocast import cast, enabled, word
from .batch import Batch
from .cache import Cache, CacheError
from .call import Call
from .channels import ChannelScan, ChannelStates
from .channels_torch import torch_channels
from .choosing import Candidates, Planned, lacking, present, say
from .fast import Teach
from .fast_torch import torch_teach
from .generate import generate
from .leaks import Refused, refuse
from .learning import FastWeights, diverged
from .mix import Mix
from .output import Output
from .plain import PlainLaunch
from .recurrence import Scan
from .rotary import Rope, on_device
from .sampling import Sampler
from .scan import MatrixStates
from .scan_fla import fla_scan
from .scan_torch import torch_scan
from .softmax import ListProvider, Provider, per_part
from .softplus import SoftplusKernels
from .split import split
from .storage import LayerPlan
from .windows import no_window

States = MatrixStates | ChannelStates | FastWeights | PlainLaunch
WAYS = ("plan", "torch", "reference", "triton", "gluon", "flex", "fa4", "fla")


class BuiltModel(nn.Module):
    """Base of the `Model` of every built folder; the folder's model.py says what it computes.

    providers  kind of device -> launch -> phase -> provider, as planned
    reference  the folder's reference.py
    """

    providers: ClassVar[Mapping[str, Mapping[str, Mapping[str, Planned]]]] = {}
    reference: ClassVar[ModuleType]
    kernels: Callable[..., Any] | None = None
    """launch name -> its generated kernel, None where there is none; gluon=True: with those in Gluon. Set when a folder is
    loaded.
    """
    runners_up: Mapping[str, Candidates] = {}
    """kind of device -> launch -> phase -> who else can run it, cheapest first; set when a folder is loaded."""

    refused: ClassVar[Mapping[str, Refused]] = {}
    """use -> why it is refused, where content chooses keys by what comes later."""

    model: nn.Module
    rows: Sequence[dict[str, Any]] = ()
    """The cache's rows from plan.json; set when a folder is loaded."""

    def logits(self, x: Tensor) -> Tensor:
        """[T, W] -> [T, vocabulary]."""
        raise NotImplementedError

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        offsets: Tensor | Sequence[int] | None = None,
        phase: str | None = None,
        total_lengths: Tensor | Sequence[int] | int | None = None,
        at: Tensor | None = None,
    ) -> Output:
        """tokens [B, N] or embeddings [B, N, dim] -> logits [B, N, vocabulary], zeros at padding.

        cache          from `new_cache`: the call's tokens follow what it holds, and are stored; then nothing is differentiable
        lengths        [B], real tokens of each row, which stand at its end (left padding)
        offsets        [S + 1], sequences packed one after another into one row
        phase          train, prefill or decode; found by itself otherwise
        total_lengths  [B] or one number: the whole prompts' lengths while they are read in chunks
        at             [P] int64, places of the B * N whose logits are wanted: then they are [P, vocabulary], and no others are
                       computed

        Runs under torch.compile, torch.autocast and activation checkpointing; docs/architecture.md says how.
        Raises ValueError for inputs that do not fit, CacheError A508 where the cache is too short, LeakError where a choice of
        keys would see ahead, DivergedError A551 where fast weights are no numbers any more.
        """
        tokens = self.fitting(tokens, cache)
        packed, batch = Batch.of(tokens, cache, lengths, offsets, phase, total_lengths)
        refuse(self.refused, batch)
        call = Call(batch, cache)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            hidden = self.model(packed, call)
            logits = batch.unpack(self.logits(hidden)) if at is None else self.logits(batch.at(hidden, at))
        diverged(self, call)
        if cache is not None:
            cache.advance(batch)
        return Output(logits, cache, call.losses)

    def fitting(self, inputs: Tensor, cache: Cache | None) -> Tensor:
        """Tokens as int64 where an embedding cannot read theirs; raises ValueError for another device, width or dtype."""
        weight: Tensor = self.model.embed_tokens.weight  # type: ignore[union-attr, assignment]
        name = "embeddings" if inputs.is_floating_point() else "tokens"
        if inputs.device != weight.device:
            raise ValueError(f"{name} are on {inputs.device}, the model is on {weight.device}")
        if cache is not None and cache.lengths.device != weight.device:
            raise ValueError(f"the cache is on {cache.lengths.device}, the model is on {weight.device}")
        if not inputs.is_floating_point():
            plain = inputs.dtype in (torch.int64, torch.int32, torch.bool) or inputs.is_complex()
            return inputs if plain else inputs.to(torch.int64)  # of the others `Batch.of` says what is wrong
        if inputs.dim() == 3 and inputs.shape[2] != weight.shape[1]:
            raise ValueError(f"embeddings are [B, N, {weight.shape[1]}], got {list(inputs.shape)}")
        if inputs.dtype != weight.dtype and not enabled(inputs):
            raise ValueError(f"embeddings are {word(inputs.dtype)}, the model is {word(weight.dtype)}")
        return inputs

    def follow(self, names: Collection[str] | None = None) -> None:
        """Moves what averages move, not gradients: the codes of a `codebook`. Call it after each step of an optimizer.

        names  the parameters that may move; None: all
        """
        for name, module in self.named_modules():
            scan = getattr(module, "scan", None)
            if isinstance(scan, PlainLaunch) and (names is None or all(f"{name}.{one}" in names for one in scan.followed)):
                scan.follow(module)

    @property
    def adds(self) -> tuple[str, ...]:
        """Names of the losses that layers add while training, `Output.losses`."""
        return tuple(dict.fromkeys(name for scan in self.scans() if isinstance(scan, PlainLaunch) for name in scan.adds))

    def generate(self, tokens: Tensor, max_new: int, sampler: Sampler | None = None, **options: Any) -> Iterator[Tensor]:
        """Yield the next token of each sequence, [B] int64; `options` as of `generate` in generate.py."""
        return generate(self, tokens, max_new, sampler, **options)

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` sequences of up to `max_length` tokens, on the model's device and in its dtype.

        Within `torch.autocast` in that dtype, which keys and values then have.
        CacheError A509 where a mixer looks ahead: later tokens would change what was said of earlier ones.
        """
        if not self.causal:
            raise CacheError("A509", "the model looks ahead (causal = false), so it reads whole texts and keeps no cache")
        weight = next(self.parameters())
        dtype = cast(weight.detach()[:0])[0].dtype
        return Cache(self.plans(), batch, max_length, dtype, weight.device)

    def cache_spec(self) -> list[dict[str, Any]]:
        """What decoding keeps, a row for each head group: as `Spec.cache_spec` says for the model's dtype."""
        return [_in_dtype(row, next(self.parameters()).dtype) for row in self.rows]

    def plans(self) -> list[LayerPlan]:
        """What decoding keeps, one plan a launch, in the order of their slots."""
        holders: list[Any] = [module for module in self.modules() if hasattr(module, "plans") and module is not self]
        slots = [module.slot for module in holders]
        assert slots == sorted(slots), f"launches are numbered in the order of the layers, not {slots}"
        return [plan for module in holders for plan in module.plans()]

    def launches(self) -> list[Mix]:
        """Every launch of every layer."""
        return [mix for module in self.modules() for mix in getattr(module, "mixes", ())]

    def scans(self) -> list[States]:
        """Every launch of every layer that is none over keys alone: of states, of fast weights, or of plain PyTorch."""
        found = (getattr(module, "scan", None) for module in self.modules())
        return [scan for scan in found if isinstance(scan, States)]

    @property
    def causal(self) -> bool:
        """Whether no token is changed by later ones, so that there can be a cache."""
        return all(mix.form.causal for mix in self.launches()) and all(scan.causal for scan in self.scans())

    def use(self, way: str = "plan") -> BuiltModel:
        """Who runs the launches: what was planned for this kind of device, or one of `torch`, `triton`, `gluon`, `flex`, `fa4`
        or the `reference` for all. What no kernel can say stays with its reference, what none in Gluon can with the others, and
        what flash-attn-4 cannot see with its plan.

        A planned library that is not here is said on stderr, with who runs instead; asked for by name, it is a ValueError.
        """
        if way not in WAYS:
            raise ValueError(f"a model runs by one of {', '.join(WAYS)}, not {way!r}")
        self.prepare()
        weight = next(self.parameters())
        kind = "cuda" if weight.device.type == "cuda" else "cpu"

        def lacks(name: str) -> str | None:
            return lacking(name, weight.device, weight.dtype)

        if (reason := lacks(way)) is not None:
            raise ValueError(f"{way} cannot run here: {reason}")
        others = self.runners_up.get(kind, {})
        decisions = []
        every: list[Mix | States] = [*self.launches(), *self.scans()]
        for launch in every:
            for phase, planned in self.providers[kind][launch.name].items():
                wanted = _way(way, planned, launch) if isinstance(launch, Mix) else _way_of_states(way, planned, launch)
                candidates = (wanted, *others.get(launch.name, {}).get(phase, ()), "reference")
                chosen, passed = present(candidates, lacks)
                decisions += [(launch.name, phase, reason, one, chosen) for one, reason in passed]
                if isinstance(launch, Mix):
                    launch.providers[phase] = self.provider(launch, chosen)
                    launch.absorbs[phase] = chosen == "torch"
                elif isinstance(launch, ChannelStates):
                    launch.providers[phase] = self.channel_scan(launch, chosen)
                elif isinstance(launch, FastWeights):
                    launch.providers[phase] = self.teach(launch, chosen)
                elif isinstance(launch, PlainLaunch):
                    launch.providers[phase] = launch.ways[str(chosen)]
                else:
                    launch.providers[phase] = self.scan(launch, chosen)
        for mix in self.launches():
            for phase, planned in self.providers[kind].get(f"{mix.name}.choice", {}).items():
                wanted = _way(way, planned, mix) if way in ("torch", "reference", "triton") else planned
                reads = _way(way, self.providers[kind][mix.name][phase], mix)
                mix.choosing[phase] = self.choosing(mix, wanted, reads)
        say(decisions)
        return self

    def prepare(self) -> None:
        """Make the constants of the model's device: what is compiled before it ran once reads them too."""
        device = next(self.parameters()).device
        for mix in self.launches():
            mix.prepare(device)
        for scan in self.scans():
            scan.prepare(device)
        for module in self.modules():
            for rope in vars(module).values():
                if isinstance(rope, Rope):
                    on_device(rope, device)

    def provider(self, mix: Mix, planned: Planned) -> Provider:
        """The provider of one launch by its name, or of its heads by theirs."""
        match planned:
            case "torch":
                return torch_attention
            case "flex":
                return flex_attention
            case "fa4":
                return fa4_attention
            case "reference":
                return mix.reference
            case "triton":
                assert self.kernels is not None, "generated kernels come with a built folder"
                launch = self.kernels(mix.name)
                if launch is None:
                    return mix.reference
                return launch if isinstance(launch, SoftplusKernels) else per_part(launch)
            case "gluon":
                assert self.kernels is not None, "generated kernels come with a built folder"
                found = self.kernels(mix.name, gluon=True)
                return self.provider(mix, "triton") if found is None else per_part(found)
            case tuple():
                return split([(first, last, self.provider(mix, name)) for name, first, last in planned])
            case _:
                raise ValueError(f"there is no provider {planned!r}")

    def choosing(self, mix: Mix, planned: Planned, reads: Planned) -> ListProvider:
        """Who runs a launch where content chooses keys; `planned` for the choice, `reads`: who reads its lists."""
        if planned == "reference":
            return mix.reference
        generated = self.kernels is not None and reads in ("triton", "gluon")
        found = self.kernels(f"{mix.name}.choice", gluon=reads == "gluon") if generated and self.kernels is not None else None
        return lists_attention if found is None else found.provider(makes=planned == "triton")

    def scan(self, states: MatrixStates, planned: Planned) -> Scan:
        """The provider of one launch of matrix states by its name."""
        match planned:
            case "torch":
                return torch_scan
            case "fla":
                return fla_scan
            case "reference":
                return states.reference
            case "triton":
                assert self.kernels is not None, "generated kernels come with a built folder"
                found: Scan = self.kernels(states.name) or states.reference
                return found
            case _:
                raise ValueError(f"there is no provider {planned!r} of matrix states")

    def teach(self, nets: FastWeights, planned: Planned) -> Teach:
        """The provider of one launch of fast weights by its name."""
        match planned:
            case "torch":
                return torch_teach
            case "reference":
                return nets.reference
            case "triton":
                assert self.kernels is not None, "generated kernels come with a built folder"
                found: Teach = self.kernels(nets.name) or nets.reference
                return found
            case _:
                raise ValueError(f"there is no provider {planned!r} of fast weights")

    def channel_scan(self, states: ChannelStates, planned: Planned) -> ChannelScan:
        """The provider of one launch of channel states by its name."""
        match planned:
            case "torch":
                return torch_channels
            case "reference":
                return states.reference
            case "triton":
                assert self.kernels is not None, "generated kernels come with a built folder"
                found: ChannelScan = self.kernels(states.name) or states.reference
                return found
            case _:
                raise ValueError(f"there is no provider {planned!r} of channel states")


def _in_dtype(row: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A row of plan.json, which counts in bfloat16, for a model of `dtype`; float32 there is float64 in float64 alone."""
    least = getattr(torch, row["dtype"])
    own = dtype if row["dtype"] == "bfloat16" else torch.promote_types(dtype, least) if least.is_floating_point else least
    factor = own.itemsize / least.itemsize
    sizes = ("bytes_per_token", "bytes_fixed")
    word = str(own).removeprefix("torch.")
    return row | {"dtype": word} | {size: type(row[size])(row[size] * factor) for size in sizes}


def _way_of_states(wanted: str, planned: Planned, launch: States) -> Planned:
    """The provider that runs a launch of states where `wanted` was asked for: its plan, where that is one of other launches."""
    match launch:
        case MatrixStates():
            own = {"torch", "reference", "triton", "fla"}
        case ChannelStates() | FastWeights():
            own = {"torch", "reference", "triton"}
        case PlainLaunch():
            own = {"torch", "reference"}
    return wanted if wanted in own else planned


def _way(wanted: str, planned: Planned, mix: Mix) -> Planned:
    """The provider that runs where `wanted` was asked for."""
    if wanted in ("plan", "fla"):  # which knows states alone
        return planned
    if wanted not in ("triton", "gluon", "reference") and not mix.reference.plain:
        return "reference"  # libraries know softmaxes of turned keys alone
    groups = [group for variant in mix.variants for group in variant.groups]
    return planned if wanted == "fa4" and any(no_window(group, mix.form.causal) for group in groups) else wanted
