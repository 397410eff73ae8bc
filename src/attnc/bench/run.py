"""One run of the bench: every launch, phase and length; everybody compared, then timed in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.bench.exact import Answer, Found
from attnc.bench.fields import AnyLaunch, AnyWork, field_of
from attnc.bench.peers import Peer, Prepared, ours
from attnc.bench.report import Result, Row, Status, Timed
from attnc.bench.timing import Clock, Roof, Times, interleaved
from attnc.bench.work import RUNTIME
from attnc.runtime.choosing import way_text
from attnc.runtime.codes import is_memory

Say = Callable[[str], None]
"""Takes a line of progress."""


@dataclass(frozen=True)
class Options:
    """What is timed. `budget`: seconds of timing for one launch, phase and length."""

    lengths: tuple[int, ...]
    phases: tuple[str, ...]
    against: tuple[str, ...]
    batch: int
    dtype: torch.dtype
    device: torch.device
    budget: float

    @property
    def word(self) -> str:
        """The dtype's name."""
        return str(self.dtype).removeprefix("torch.")


def run(launches: Sequence[AnyLaunch], options: Options, ceiling: Roof, watch: Clock, say: Say) -> Iterator[Row]:
    """A row for each launch, phase and length, as soon as it is there."""
    for launch in launches:
        peers = field_of(launch).participants(launch, options.device, options.against)
        for phase in options.phases:
            for length in options.lengths:
                say(f"{launch.name}, {phase}, {length} tokens")
                yield row(launch, phase, length, peers, options, ceiling, watch, say)
                _free()


def row(
    launch: AnyLaunch,
    phase: str,
    length: int,
    peers: Iterable[Peer],
    options: Options,
    ceiling: Roof,
    watch: Clock,
    say: Say,
) -> Row:
    """One launch in one phase at one length."""
    about: dict[str, Any] = {
        "launch": launch.name,
        "words": launch.words,
        "sizes": launch.sizes,
        "layers": launch.layers,
        "heads": launch.heads,
        "kv_heads": launch.kv_heads,
        "key_width": launch.key_width,
        "value_width": launch.value_width,
        "phase": phase,
        "length": length,
        "batch": options.batch,
        "planned": way_text(launch.planned[options.device.type][RUNTIME[phase]]),
    }
    field = field_of(launch)
    with _Failures() as failed:
        work = field.make(launch, phase, length, options.batch, options.dtype, options.device)
        right = None if isinstance(work, str) else field.answer(work)
    if failed.reason is not None or isinstance(work, str):
        reason = failed.reason or str(work)
        return Row(**about, flops=0.0, bytes=0.0, results=(), reason=reason)
    assert right is not None, "there is work, or a reason"
    main = ours(options.device, launch.plain)
    entries = [_Entry(peer, peer.name == main) for peer in peers]
    for entry in entries:
        entry.enter(work, right, say)
    times = _times([entry for entry in entries if entry.call is not None], watch, options.budget, say)
    results = tuple(entry.result(work, times, ceiling, right) for entry in entries)
    return Row(**about, flops=work.flops, bytes=work.bytes, results=results)


@dataclass
class _Entry:
    """One participant on its way through a row."""

    peer: Peer
    ours: bool
    call: Callable[[], object] | None = None
    status: Status = "timed"
    reason: str | None = None
    setup: float | None = None
    errors: dict[str, float] | None = None

    @property
    def name(self) -> str:
        return self.peer.name

    def enter(self, work: AnyWork, right: Answer, say: Say) -> None:
        """Refused, or prepared and compared; then `call` is what is timed."""
        self.reason = self.peer.refuse(work)
        if self.reason is not None:
            self.status = "refused"
            return
        say(f"  {self.name}: compared with float64")
        with _Failures() as failed:
            prepared = self.peer.prepare(work)
            self.setup = prepared.setup
            self.errors = field_of(work.launch).errors(work, right, outcome(work, prepared, right))
            far = {name: error for name, error in self.errors.items() if not error <= right.allowed[name]}
            if far:
                name, error = next(iter(far.items()))
                what = "the result" if name == "o" else f"the gradient of {name}"
                self.reason = f"wrong: {what} is off by {error:.2g}, rounding explains {right.allowed[name]:.2g}"
                self.status = "wrong"
            else:
                self.call = timed_call(work, prepared)
        if failed.reason is not None:
            self.drop(failed)
        if self.call is None:
            _free()

    def drop(self, failed: _Failures) -> None:
        """It takes no further part."""
        self.call, self.reason, self.status = None, failed.reason, failed.status

    def result(self, work: AnyWork, times: dict[str, Times], ceiling: Roof, right: Answer) -> Result:
        """The row's entry."""
        found = times.get(self.name)
        if found is None:
            return Result(name=self.name, ours=self.ours, status=self.status, reason=self.reason, setup=self.setup)
        main = times.get(ours(work.q.device, work.launch.plain))
        decode = work.phase == "decode"
        rate = (work.bytes if decode else work.flops) / found.median
        assert self.errors is not None, "timed after it was compared"
        timed = Timed(
            median=found.median,
            least=found.least,
            most=found.most,
            host=found.host,
            rounds=found.rounds,
            rate=rate,
            share=rate / (ceiling.bandwidth if decode else ceiling.flops),
            ratio=None if main is None else found.median / main.median,
            errors=self.errors,
            allowed=right.allowed,
        )
        return Result(name=self.name, ours=self.ours, status="timed", timed=timed, setup=self.setup)


def outcome(work: AnyWork, prepared: Prepared, right: Answer) -> Found:
    """A participant's results: o [T, H, E]; of the backward pass the gradients that the sample's rows alone give."""
    layout = prepared.layout
    if right.o_grad is None:
        with torch.no_grad():
            return {"o": layout.pack(prepared.run(**prepared.inputs))}
    leaves = _leaves(prepared)
    o = prepared.run(**leaves)
    o_grad = layout.lay(right.o_grad, work.sequences)
    found = dict(zip(leaves, torch.autograd.grad(o, list(leaves.values()), o_grad), strict=True))
    return {"o": layout.pack(o.detach())} | {
        name: grad if name == "sink_logit" else layout.pack(grad) for name, grad in found.items()
    }


def timed_call(work: AnyWork, prepared: Prepared) -> Callable[[], object]:
    """What is timed: the call, or its backward pass alone."""
    if work.o_grad is None:

        def forward() -> Tensor:
            with torch.no_grad():
                return prepared.run(**prepared.inputs)

        return forward
    leaves = _leaves(prepared)
    o = prepared.run(**leaves)
    o_grad = prepared.layout.lay(work.o_grad, work.sequences)
    wanted = list(leaves.values())
    return lambda: torch.autograd.grad(o, wanted, o_grad, retain_graph=True)


def _leaves(prepared: Prepared) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in prepared.inputs.items()}


def _times(entries: list[_Entry], watch: Clock, budget: float, say: Say) -> dict[str, Times]:
    """Times of all that are left, in turns; one that fails now drops out and the others begin again."""
    while entries:
        say(f"  {', '.join(entry.name for entry in entries)}: timed in turns")
        found = None
        with _Failures() as failed:
            found = interleaved({entry.name: _named(entry) for entry in entries}, watch, budget)
        if found is not None:
            return found
        guilty = [entry for entry in entries if failed.name in (entry.name, None)]  # a device that failed fails for all
        for entry in guilty:
            entry.drop(failed)
        entries = [entry for entry in entries if entry not in guilty]
        _free()
    return {}


class _FailedError(RuntimeError):
    """A participant failed while it was timed."""

    def __init__(self, name: str, cause: Exception) -> None:
        super().__init__(str(cause))
        self.name, self.cause = name, cause


def _named(entry: _Entry) -> Callable[[], object]:
    call = entry.call
    assert call is not None, "only what is right is timed"

    def named() -> object:
        try:
            return call()
        except (RuntimeError, NotImplementedError) as error:
            raise _FailedError(entry.name, error) from error

    return named


class _Failures:
    """A participant's own failure becomes a row's reason, and the run goes on. Our own mistakes (assertions) are not caught.

    reason  what went wrong, None where nothing did, and its `status`; `name` who it was, where that is known
    """

    reason: str | None = None
    status: Status = "timed"
    name: str | None = None

    def __enter__(self) -> _Failures:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, RuntimeError | NotImplementedError | ValueError | TypeError | ImportError):
            return False
        real = error.cause if isinstance(error, _FailedError) else error
        self.name = error.name if isinstance(error, _FailedError) else None
        memory = is_memory(real)
        lines = str(real).strip().splitlines() or [type(real).__name__]
        self.status = "out of memory" if memory else "failed"
        self.reason = self.status if memory else f"fails: {lines[0][:200]}"
        return True


def _free() -> None:
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
