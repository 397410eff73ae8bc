"""The rows of `cache_spec`: keys and values, what stands for units and chunks, states, and last inputs of convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from attnc.compiler.attributes import Attributes
from attnc.compiler.cache_runs import Run, runs
from attnc.compiler.cache_spec import BYTES, SPARE, CacheRow, count
from attnc.compiler.head_states import of_groups
from attnc.compiler.mixer import Growing, Kept, Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.part_names import part_names
from attnc.compiler.spec import Change, Choose, Context, Heads, Layer, Mixing, Model, Route
from attnc.compiler.streams import channels, of_softmax
from attnc.compiler.value import Share, Tokens
from attnc.compiler.walk import Part, attentions, default, every, first_leaf, kinds, leaves, parts

Shapes = dict[str, tuple[int | None, ...]]


def of_layer(layer: Layer, model: Model, dtype: str, slots: float) -> tuple[list[CacheRow], float]:
    """The rows of a layer, and how many tokens its sequence has for each of the text, given those of the layer before."""
    for mixer in every(layer.mixer):
        if isinstance(mixer, Change):
            slots *= MIXERS[mixer.kind.kind].slots(mixer.kind)
    rows = [row for part in parts(layer.mixer) for row in _Rows(layer, part, model, dtype, slots).all()]
    return rows, slots


@dataclass(frozen=True)
class _Rows:
    """The rows of one part of a layer."""

    layer: Layer
    part: Part
    model: Model
    dtype: str
    slots: float

    @property
    def name(self) -> str:
        """`layers.3.gate.window`."""
        return f"layers.{self.layer.index}{'.' * bool(self.part.scope)}{self.part.scope}"

    @property
    def attributes(self) -> Attributes:
        """Those of the part's projections."""
        block = isinstance(self.part.mixer, Heads | Choose)  # whose first case may be a kind with states
        return (attentions(self.part.mixer)[0] if block else first_leaf(self.part.mixer)).attributes

    def all(self) -> Iterator[CacheRow]:
        """All rows."""
        attributes = self.attributes
        if not attributes.causal or not self.part.phases:
            return
        if isinstance(self.part.mixer, Mixing):
            yield from self._of_mixing(self.part.mixer)
        elif isinstance(self.part.mixer, Context):
            yield from self._of_context(self.part.mixer)
        else:
            yield from self._of_softmax()
        if attributes.input_ema is not None:
            shapes = {"ema": (self.model.dim, attributes.input_ema)}
            yield self._fixed(f"{self.name}.input_ema", shapes, self._exact)

    def _of_softmax(self) -> Iterator[CacheRow]:
        mixer, attributes = default(self.part.mixer), self.attributes
        if isinstance(mixer, Route) and mixer.per != "token":
            yield from self._growing(f"{self.name}.route", (_decision(mixer, attributes),))
        for run in runs(mixer, attributes, self.part.phases):
            whole = run.first == 0 and run.last == attributes.kv_heads - 1
            shown = f".heads.{run.first}" + f"-{run.last}" * (run.last > run.first)
            name = self.name if whole else self.name + shown
            yield self._of_keys(name, run)
            own = of_groups(attributes, run.last - run.first + 1)
            for word, kind in zip(part_names([kind.kind for kind in run.decoding]), run.decoding, strict=True):
                for row in self._of_kind(f"{name}.{word}", kind, run, own):
                    yield replace(row, first=run.first, kv_heads=own.kv_heads)
        if attributes.short_conv is not None:
            yield self._fixed(f"{self.name}.short_conv", conv_shapes(attributes), self.dtype)

    def _of_kind(self, name: str, kind: Kind, run: Run, attributes: Attributes) -> Iterator[CacheRow]:
        """What a key set keeps beside keys and values; of dropped tokens nothing."""
        declared = MIXERS[kind.kind]
        anyway = {one for one, _ in kinds(self.layer.mixer)}
        found = [one for one in declared.growing(kind, attributes, self.model) if one.of not in anyway]
        drops = declared.kept(kind).drops and run.kept.drops
        of_tokens = [one for one in found if drops and one.span == one.step == 1]
        for one in of_tokens:
            yield self._slots(f"{name}.{one.name}", run.kept, {one.name: one.shape}, one.dtype or self.dtype)
        yield from self._growing(name, (one for one in found if one not in of_tokens))
        state = declared.state(kind, attributes, self.model)
        if state:
            yield self._fixed(f"{name}.state", state, self._exact)

    def _of_mixing(self, mixing: Mixing) -> Iterator[CacheRow]:
        """A kind with a state a head has it for the heads that it owns."""
        declared, kind = MIXERS[mixing.kind.kind], mixing.kind
        attributes = mixing.attributes
        if declared.per_head:
            attributes = of_groups(attributes, _owned(mixing, self.layer))
        name = f"{self.name}.{kind.kind}"
        state = declared.state(kind, attributes, self.model)
        if state:
            yield self._fixed(name, state, self._exact if declared.float32_state else self.dtype)
        yield from self._growing(name, declared.growing(kind, attributes, self.model))
        recent = declared.recent(kind, attributes, self.model)
        if recent:
            yield self._fixed(f"{name}.recent", recent, self.dtype)

    def _of_context(self, context: Context) -> Iterator[CacheRow]:
        """What a context keeps beside its memory's states."""
        exact, own = context_states(context, self.model)
        yield self._fixed(f"{self.name}.segment", own, self.dtype)
        yield self._fixed(f"{self.name}.begun", exact, self._exact)

    @property
    def _exact(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    def _widths(self) -> dict[str, int]:
        """Numbers that a KV head keeps of a token; `kv_latent` keeps one latent and one rotated key for all heads."""
        attributes = self.attributes
        if attributes.kv_latent is not None:
            rotated = attributes.rotated_key
            return {"latent": attributes.kv_latent} | ({"rotated": rotated} if rotated else {})
        widths = {"k": attributes.head_dim, "v": attributes.value_dim}
        if attributes.qk_from:
            del widths["k"]
        mixer = default(self.part.mixer)
        if isinstance(mixer, Route) and mixer.per == "token":
            widths["route"] = len(mixer.alternatives)
        return widths

    def _of_keys(self, name: str, run: Run) -> CacheRow:
        """Keys and values; with `qk_from = previous` values alone."""
        heads = run.last - run.first + 1
        before = () if self.attributes.kv_latent is not None else (heads,)
        shapes = {key: (*before, None, width) for key, width in self._widths().items()}
        row = self._slots(name, run.kept, shapes, self.dtype)
        return replace(row, first=run.first, kv_heads=heads)

    def _slots(self, name: str, kept: Kept, shapes: Mapping[str, tuple[int | None, ...]], dtype: str) -> CacheRow:
        """Something of each token that is kept; where `shapes` name no axis of slots, it comes first."""
        shapes = {key: shape if None in shape else (None, *shape) for key, shape in shapes.items()}
        slot = sum(count(shape, 1) for shape in shapes.values()) * BYTES[dtype]
        counts = (kept.pinned, kept.recent, kept.chosen)
        slots: int | None = None
        kept_tokens: Tokens | None = None
        per_token, fixed = 0.0, 0
        if kept.recent is None:
            per_token = slot * self.slots
        elif not any(isinstance(one, Share) for one in counts):
            slots = sum(one for one in counts if isinstance(one, int)) + SPARE
            kept_tokens, fixed = slots, slots * slot
        else:
            kept_tokens = Share(percent=sum(one.percent for one in counts if isinstance(one, Share)))
            per_token = slot * self.slots * kept_tokens.percent / 100
            fixed = slot * (SPARE + sum(one for one in counts if isinstance(one, int)))
        return CacheRow(
            name=name,
            layer=self.layer.index,
            scope=self.part.scope,
            kv_heads=0,
            kind="growing" if kept.recent is None else "ring",
            dtype=dtype,
            bytes_per_token=per_token,
            bytes_fixed=fixed,
            tokens_kept=kept_tokens,
            shapes={key: tuple(slots if size is None else size for size in shape) for key, shape in shapes.items()},
            pinned=kept.pinned,
            recent=kept.recent,
            chosen=kept.chosen,
            slots_per_token=self.slots,
        )

    def _growing(self, name: str, found: Iterable[Growing]) -> Iterator[CacheRow]:
        """A row for each number format and step of what stands for tokens."""
        rows: dict[tuple[int, int, str | None], Shapes] = {}
        for one in found:
            shape = one.shape if one.step == 0 else (None, *one.shape)
            rows.setdefault((one.span, one.step, one.dtype), {})[one.name] = shape
        for index, ((span, step, least), shapes) in enumerate(rows.items()):
            dtype = self._exact if least == "float32" else least or self.dtype
            shown = name if index == 0 else f"{name}.{next(iter(shapes))}"
            if step == 0:
                yield self._fixed(shown, shapes, dtype)
                continue
            slot = sum(count(shape, 1) for shape in shapes.values()) * BYTES[dtype]
            yield CacheRow(
                name=shown,
                layer=self.layer.index,
                scope=self.part.scope,
                kv_heads=0,
                kind="growing",
                dtype=dtype,
                bytes_per_token=slot * self.slots / step,
                bytes_fixed=0,
                tokens_kept=None,
                shapes=shapes,
                span=span,
                step=step,
                slots_per_token=self.slots,
            )

    def _fixed(self, name: str, shapes: Mapping[str, tuple[int | None, ...]], dtype: str) -> CacheRow:
        return CacheRow(
            name=name,
            layer=self.layer.index,
            scope=self.part.scope,
            kv_heads=0,
            kind="fixed",
            dtype=dtype,
            bytes_per_token=0,
            bytes_fixed=sum(count(shape, 0) for shape in shapes.values()) * BYTES[dtype],
            tokens_kept=0,
            shapes={key: tuple(shape) for key, shape in shapes.items()},
        )


Sizes = dict[str, tuple[int, ...]]


def context_states(context: Context, model: Model) -> tuple[Sizes, Sizes]:
    """(in float32: the memory's weights as the segment began; in the model's dtype: keys and values of the unfinished segment
    and of what the memory returned for its tokens, and the last inputs of the convolution of what the memory is asked).
    """
    a, memory = context.attributes, context.memory
    taught = MIXERS[memory.kind.kind].taught
    assert taught is not None, "a context holds a memory"
    one = taught(memory.kind, memory.attributes, model)
    own: Sizes = {
        f"segment_{key}": (2, context.segment - 1, a.kv_heads, width) for key, width in (("k", a.head_dim), ("v", a.value_dim))
    }
    if memory.attributes.short_conv is not None:
        heads, width = one.streams["q"]
        own["asked_q_conv"] = (memory.attributes.short_conv - 1, heads * width)
    return {f"begun.{name}": shape for name, shape in one.shapes.items()}, own


def conv_shapes(attributes: Attributes) -> dict[str, tuple[int, ...]]:
    """The last inputs of the convolutions on q, k and v of a softmax."""
    assert attributes.short_conv is not None, "asked only where there is a convolution"
    widths = channels(of_softmax(attributes, own_qk=attributes.qk_from is None))
    return {f"{key}_conv": (attributes.short_conv - 1, width) for key, width in widths.items()}


def _decision(route: Route, attributes: Attributes) -> Growing:
    """Which alternative a route took: one for the sequence, one a KV head, or one a chunk."""
    if route.per == "chunk":
        assert route.chunk is not None, "a route per chunk says how long it is"
        return Growing(name="route", shape=(1,), span=route.chunk, step=route.chunk, dtype="uint8")
    return Growing(name="route", shape=(attributes.kv_heads if route.per == "head" else 1,), step=0, dtype="uint8")


def _owned(mixing: Mixing, layer: Layer) -> int:
    """How many KV heads a kind owns: all, unless it is a case of `heads`, whose selector may name groups apart."""
    for mixer in every(layer.mixer):
        if isinstance(mixer, Heads):
            found = [case for case in mixer.cases if any(leaf == mixing for leaf in leaves(case.mixer))]
            if found:
                return sum(case.last - case.first + 1 for case in found if case.name == found[0].name)
    return mixing.attributes.kv_heads
