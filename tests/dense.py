"""The oracle: a whole model computed from the formulas of docs/language.md, head by head over plain T x T masks.

Nothing of attnc computes here: a checked spec is read as data, its weights are a dict. One function an idea (formulas.py),
obvious over fast. All is in the dtype asked for, except the angles of rotations, which the language wants in fp32: those
few operations follow the published formula of Llama's code step by step.

Legend: n queries of the call, L all keys so far; H query heads, G KV heads; D key width, E value width, W model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from chosen_model import content
from formulas import block, convolved, l2, layer_norm, mask, rms, rotated, score_weights, silu
from memory_formulas import memory
from plain_formulas import FORMULAS, condensed, context, smoothed, stands
from space_formulas import ssm
from state_formulas import linear
from summary_formulas import chunk_keys, chunk_values, sees_chunk


@dataclass(frozen=True)
class Step:
    """One call: so many new tokens, in this phase, and what `length` means in it."""

    tokens: int
    phase: str
    length: int


@dataclass
class Text:
    """What has been computed of one text so far: per part of the model all keys, values, routes and inputs of convolutions."""

    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    choices: dict[tuple, list] = field(default_factory=dict)
    """decode steps of choices that are kept for a while"""

    def joined(self, name, new):
        """All rows so far with the new ones [n, ...] below."""
        self.rows[name] = torch.cat((self.rows[name], new)) if name in self.rows else new
        return self.rows[name]


def logits(
    spec, weights: Mapping[str, torch.Tensor], tokens: torch.Tensor, steps: Sequence[Step] | None = None, dtype=torch.float64
):
    """[N, vocabulary] for one text [N]. `steps` None: all tokens in one training call, nothing cached."""
    weights = {name: tensor.detach().to(dtype) for name, tensor in weights.items()}
    steps = [Step(len(tokens), "train", len(tokens))] if steps is None else steps
    text, found, done = Text(), [], 0
    for step in steps:
        found.append(_Call(spec, weights, text, step, done, dtype).logits(tokens[done : done + step.tokens]))
        done += step.tokens
    assert done == len(tokens), "the steps read the whole text"
    return torch.cat(found)


def holds(condition, phase: str, length: int) -> bool:
    """Whether a condition of `when` does."""
    if condition is None:
        return True
    if condition.left == "phase":
        return phase == condition.right
    left, right = length, condition.right
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right, "==": left == right}[
        condition.operator
    ]


def owner(mixer, group: int, phase: str, length: int):
    """The attention that owns a KV group in this phase at this length; a `choose` is at its default."""
    match mixer.node:
        case "attention" | "mixing":
            return mixer
        case "heads":
            (case,) = (case for case in mixer.cases if case.first <= group <= case.last)
            return owner(case.mixer, group, phase, length)
        case "when":
            case = next(case for case in mixer.cases if holds(case.condition, phase, length))
            return owner(case.mixer, group, phase, length)
        case "choose":
            return owner(mixer.alternatives[0].mixer, group, phase, length)
    raise AssertionError(mixer.node)


def default(mixer):
    """What a `choose` is until it is decided."""
    while mixer.node == "choose":
        mixer = mixer.alternatives[0].mixer
    return mixer


def any_attention(mixer):
    """One of the attentions that share a set of projections."""
    if mixer.node == "attention":
        return mixer
    if mixer.node == "choose":
        return any_attention(mixer.alternatives[0].mixer)
    inner = [any_attention(case.mixer) for case in getattr(mixer, "cases", getattr(mixer, "alternatives", ()))]
    return next((one for one in inner if one is not None), None)


@dataclass
class _Call:
    """One call on a text of which `past` tokens have been read."""

    spec: object
    weights: dict[str, torch.Tensor]
    text: Text
    step: Step
    past: int
    dtype: torch.dtype
    handed: list = field(default_factory=list)
    """q and k of each attention of the nearest earlier layer with its own"""
    fresh: list = field(default_factory=list)
    """the same of this layer so far"""
    taken: list = field(default_factory=list)
    """attentions of this layer that took theirs over"""
    given: torch.Tensor | None = None
    """what the output gate of the mixer at hand reads"""
    lent: tuple = ()
    """how the nearest earlier layer that makes a choice makes it, its q and k, and its attributes, by which they turn"""
    summaries: dict = field(default_factory=dict)
    """of this layer's branches: a summary, and for each KV head the keys of its chunks"""
    seen_inputs: set = field(default_factory=set)
    """of which indexers the text has this call's inputs already"""

    def logits(self, tokens):
        m = self.spec.model
        x = self.weights["model.embed_tokens.weight"][tokens] * m.embedding_scale
        for layer in self.spec.layers:
            self.fresh, self.taken = [], []
            x = self.block(layer, f"model.layers.{layer.index}", x)
            self.handed = self.fresh or self.handed
        head = "model.embed_tokens.weight" if m.tie else "lm_head.weight"
        y = m.logit_scale * (self.norm("model.norm", x) @ self.weights[head].T)
        return y if m.logit_cap is None else m.logit_cap * torch.tanh(y / m.logit_cap)

    def block(self, layer, at, x):
        m, sandwich = self.spec.model, self.spec.model.norm_place == "sandwich"
        y = self.mixer(layer.mixer, at, "", self.norm(f"{at}.input_layernorm", x))
        x = x + m.residual_scale * (self.norm(f"{at}.post_attention_layernorm", y) if sandwich else y)
        if m.feed_forward is None:
            return x
        before = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        y = self.feed_forward(f"{at}.mlp", self.norm(f"{at}.{before}", x))
        return x + m.residual_scale * (self.norm(f"{at}.post_feedforward_layernorm", y) if sandwich else y)

    def norm(self, name, x):
        norm, weight = self.spec.model.norm, self.weights[f"{name}.weight"]
        if norm.kind == "layer":
            return layer_norm(x, weight, self.weights[f"{name}.bias"], norm.epsilon)
        return rms(x, norm.centre + weight, norm.epsilon)

    def linear(self, name, x):
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def feed_forward(self, at, x):
        up = self.linear(f"{at}.up_proj", x)
        match self.spec.model.feed_forward.kind:
            case "swiglu":
                inner = silu(self.linear(f"{at}.gate_proj", x)) * up
            case "geglu":
                inner = F.gelu(self.linear(f"{at}.gate_proj", x), approximate="tanh") * up
            case "gelu":
                inner = up * (1 + torch.erf(up / math.sqrt(2))) / 2
            case "relu":
                inner = torch.clamp(up, min=0)
        return self.linear(f"{at}.down_proj", inner)

    def mixer(self, mixer, at, scope, x, given=None):
        """`at` names the layer; `scope` where in it the mixer stands (`gate` parts and the like are named in checkpoints);
        `given`: what the output gate reads, where it is not the mixer's own input.
        """
        if mixer.node == "choose" and default(mixer).node not in ("attention", "heads", "when"):
            first = mixer.alternatives[0]
            own = scope if default(mixer).node == "route" else f"{scope}.{first.name}" if scope else first.name
            return self.mixer(first.mixer, at, own, x, given)
        if mixer.node not in ("sum", "chain", "gate"):
            self.given, x = x if given is None else given, self.activated(mixer, x)
        if mixer.node == "mixing":
            return self.mixing(mixer, f"{at}.mixer.{scope or mixer.kind.kind}", x)
        inside = [f"{scope}.{name}" if scope else name for name in getattr(mixer, "names", ())]
        match mixer.node:
            case "sum":
                return sum(self.mixer(part, at, name, x) for part, name in zip(mixer.parts, inside, strict=True))
            case "chain":
                first = x
                for part, name in zip(mixer.parts, inside, strict=True):
                    x = self.mixer(part, at, name, x, first if mixer.gated and part is mixer.parts[-1] else None)
                return x
            case "gate":
                return self.gate(mixer, f"{at}.mixer.{scope}.gate" if scope else f"{at}.mixer.gate", at, inside, x)
            case "context":
                return context(self, mixer, f"{at}.mixer.{scope or 'context'}", x)
            case "route":
                return self.route(mixer, f"{at}.mixer.{scope}" if scope else f"{at}.self_attn", x)
            case _:
                return self.heads_apart(mixer, f"{at}.mixer.{scope}" if scope else f"{at}.self_attn", x)

    def mixing(self, mixer, at, x):
        """A kind that is a mixer by itself."""
        if mixer.kind.kind == "conv":
            return self.conv(at, x)
        return {"ssm": ssm, "memory": memory, "linear": linear, **FORMULAS}[mixer.kind.kind](self, mixer, at, x)

    def activated(self, mixer, x):
        """The activation stands before all else, but for the output gate; a `choose` is at its default."""
        while mixer.node in ("choose", "route", "when", "heads"):
            mixer = (mixer.cases if mixer.node in ("heads", "when") else mixer.alternatives)[0].mixer
        if mixer.node == "mixing" and mixer.kind.kind == "conv":
            return x
        match mixer.attributes.activation:
            case "gelu":
                return x * (1 + torch.erf(x / math.sqrt(2))) / 2
            case "silu":
                return silu(x)
        return x

    def gate(self, mixer, name, at, inside, x):
        if mixer.shared:  # the other branches use the first one's projections
            for other in inside[1:]:
                for letter in mixer.shared:
                    for what in ("weight", "bias"):
                        own = f"{at}.mixer.{inside[0]}.{letter}_proj.{what}"
                        if own in self.weights:
                            self.weights[f"{at}.mixer.{other}.{letter}_proj.{what}"] = self.weights[own]
        branches = [self.mixer(part, at, scope, x) for part, scope in zip(mixer.parts, inside, strict=True)]
        if mixer.by == "product":
            eps, product = self.spec.model.norm.epsilon, torch.ones_like(x)
            for branch, part in zip(branches, mixer.names, strict=True):
                product = product * rms(branch, self.weights[f"{name}.{part}_norm.weight"], eps)
            return product
        squash = torch.sigmoid if mixer.by == "sigmoid" else lambda z: torch.softmax(z, dim=1)
        shares = squash(x @ self.weights[f"{name}.weight"].T)
        return sum(shares[:, b : b + 1] * branch for b, branch in enumerate(branches))

    def conv(self, at, x):
        """LFM2: B, C, u = in_proj(x); out_proj(C * conv(B * u))."""
        b, c, u = torch.chunk(x @ self.weights[f"{at}.in_proj.weight"].T, 3, dim=1)
        history = self.text.joined(at, b * u)
        return (c * convolved(history, len(x), self.weights[f"{at}.conv.weight"])) @ self.weights[f"{at}.out_proj.weight"].T

    # x -> q, k, v -> short_conv with SiLU -> qk_norm -> rope -> the kind -> output_norm -> output_gate -> o -> scale

    def attention(self, mixer, at, x):
        shape = any_attention(mixer).attributes
        if shape.kv_latent:
            return self.latent_attention(mixer, at, shape, x)
        if shape.qk_from is None:
            self.text.joined(f"{at}.in", x)
            from_ = x if shape.input_ema is None else smoothed(self, f"{at}.input_ema", x, shape.input_ema)
            q = self.heads(at, "q", from_, shape.heads, shape.head_dim, shape)
            k = q if shape.share_qk else self.heads(at, "k", from_, shape.kv_heads, shape.head_dim, shape)
            self.fresh.append((q, k))
        else:
            q, k = self.handed[len(self.taken)]
            self.taken.append(at)
        v = self.heads(at, "v", x, shape.kv_heads, shape.value_dim, shape)
        k, v = self.text.joined(f"{at}.k", k), self.text.joined(f"{at}.v", v)
        asked = self.text.joined(f"{at}.q", q)
        ratio, outputs = shape.heads // shape.kv_heads, []
        for h in range(shape.heads):
            g = h // ratio
            leaf = owner(mixer, g, self.step.phase, self.step.length)
            if leaf.node == "mixing":
                outputs.append(x.new_zeros(len(x), shape.value_dim))
                continue
            sink = self.weights[f"{at}.sink_logit"][h] if leaf.attributes.sink_logit else None
            more = self.content(leaf, mixer, at, h, asked, k, x)
            outputs.append(self.head(leaf, at, g, q[:, h], k[:, g], v[:, g], sink, more))
        self.lends(mixer, at, asked, k)
        return self.output(at, shape, torch.stack(outputs, dim=1), x)

    def heads_apart(self, mixer, at, x):
        """The softmaxes, plus each kind that keeps states as a layer of its own: it has its heads' rows of q, k and v and their
        columns of o.
        """
        if mixer.node == "choose":
            return self.heads_apart(mixer.alternatives[0].mixer, at, x)
        y, cases = self.attention(mixer, at, x), {}
        for case in mixer.cases if mixer.node == "heads" else ():
            leaf, name = case.mixer, case.name
            while leaf.node == "choose":
                name, leaf = name or leaf.alternatives[0].name, leaf.alternatives[0].mixer
            if leaf.node == "mixing":
                cases.setdefault((name, leaf), []).extend(range(case.first, case.last + 1))
        for (name, leaf), groups in cases.items():
            own, a = f"{at}.states.{name}", leaf.attributes
            ratio = a.heads // a.kv_heads
            asked = [g * ratio + i for g in groups for i in range(ratio)]
            taken = {"q": (asked, a.head_dim), "k": (groups, a.head_dim), "v": (groups, a.value_dim)}
            for letter, (heads, width) in taken.items():
                rows = [h * width + i for h in heads for i in range(width)]
                for what in ("weight", "bias"):
                    if f"{at}.{letter}_proj.{what}" in self.weights:
                        self.weights[f"{own}.{letter}_proj.{what}"] = self.weights[f"{at}.{letter}_proj.{what}"][rows]
            columns = [h * a.value_dim + i for h in asked for i in range(a.value_dim)]
            self.weights[f"{own}.o_proj.weight"] = self.weights[f"{at}.o_proj.weight"][:, columns]
            if f"{at}.scale" in self.weights:
                self.weights[f"{own}.scale"] = self.weights[f"{at}.scale"]
            alone = replace(a, heads=len(asked), qk_heads=len(asked), kv_heads=len(groups))
            y = y + linear(self, replace(leaf, attributes=alone), own, x)
        return y

    def content(self, leaf, mixer, at, h, q, k, x):
        """What content adds to the keys of head h: see chosen_model.py."""
        ratio = leaf.attributes.heads // leaf.attributes.kv_heads
        return content(self, leaf, lambda o: owner(mixer, o // ratio, self.step.phase, self.step.length), at, h, q, k, x)

    def lends(self, mixer, at, q, k):
        """A layer that is full or chooses for itself lends its choice to the next ones."""
        leaf = owner(mixer, 0, self.step.phase, self.step.length)
        if leaf.node == "mixing":
            return
        for kind in leaf.keys:
            if kind.kind == "summary" and not stands(kind):
                self.summaries[kind] = [chunk_keys(kind, leaf.attributes, self.weights, at, k[:, g]) for g in range(k.shape[1])]
        making = [kind for kind in owner(mixer, 0, self.step.phase, self.step.length).keys if kind.kind in ("full", "routed")]
        if making and not getattr(making[0], "from_", None):
            self.lent = (making[0] if making[0].kind == "routed" else None), q, k, leaf.attributes

    def turned(self, a, x):
        """x [L, D], of all tokens so far, turned by their positions."""
        return x if a.rope is None else rotated(x, torch.arange(len(x)), a)

    def latent_attention(self, mixer, at, a, x):
        """DeepSeek-V2 (arXiv 2405.04434): all heads' keys and values are linear in one normalised latent; each key has further
        channels, the rotated ones, that are the same for all heads. Here these come first, where `products` rotates.
        """
        shared = a.rope_dim if a.rope is not None else 0
        q = self.linear(f"{at}.q_proj", x).reshape(len(x), a.heads, a.head_dim + shared)
        down = self.linear(f"{at}.kv_a_proj_with_mqa", x)
        norm = self.spec.model.norm
        weight = norm.centre + self.weights[f"{at}.kv_a_layernorm.weight"]
        c = self.text.joined(f"{at}.latent", rms(down[:, : a.kv_latent], weight, norm.epsilon))
        turned = self.text.joined(f"{at}.rotated", down[:, a.kv_latent :])
        asked = self.text.joined(f"{at}.q", q[..., : a.head_dim])  # an indexer scores; who asks is only counted
        up = self.linear(f"{at}.kv_b_proj", c).reshape(len(c), a.kv_heads, a.head_dim + a.value_dim)
        outputs = []
        for h in range(a.heads):
            g = h // (a.heads // a.kv_heads)
            leaf = owner(mixer, g, self.step.phase, self.step.length)
            sink = self.weights[f"{at}.sink_logit"][h] if leaf.attributes.sink_logit else None
            query = torch.cat((q[:, h, a.head_dim :], q[:, h, : a.head_dim]), dim=1)
            key, value = torch.cat((turned, up[:, g, : a.head_dim]), dim=1), up[:, g, a.head_dim :]
            more = self.content(leaf, mixer, at, h, asked, asked, x)
            outputs.append(self.head(leaf, at, g, query, key, value, sink, more))
        return self.output(at, a, torch.stack(outputs, dim=1), x)

    def heads(self, at, letter, x, heads, width, a):
        """[n, heads, width] of one projection, convolved and normalised."""
        y = self.linear(f"{at}.{letter}_proj", x)
        if a.short_conv:
            history = self.text.joined(f"{at}.{letter}_conv", y)
            y = silu(convolved(history, len(y), self.weights[f"{at}.{letter}_conv.weight"]))
        y = y.reshape(len(x), heads, width)
        if letter != "v" and a.qk_norm == "rms":
            norm = self.spec.model.norm
            y = rms(y, norm.centre + self.weights[f"{at}.{letter}_norm.weight"], norm.epsilon)
        return l2(y) if letter != "v" and a.qk_norm == "l2" else y

    def head(self, leaf, at, g, q, k, v, sink, more=None):
        """One head: q [n, D], k [L, D], v [L, E] -> [n, E]. Learned keys stand before the text's. `more`: what content adds."""
        a, n = leaf.attributes, len(q)
        if any(map(stands, leaf.keys)):
            return condensed(self, leaf, at, g, q, k, v, sink)
        others = tuple(kind for kind in leaf.keys if kind.kind not in ("routed", "summary"))
        seen = mask(others, self.past, n, self.step.length, a.causal)
        if more is not None:
            seen = seen | more
        turned, products = self.products(leaf, q, k, seen)
        for _ in [kind for kind in leaf.keys if kind.kind == "persistent"]:
            products = torch.cat((turned @ self.weights[f"{at}.persistent_key"][:, g].T, products), dim=1)
            v = torch.cat((self.weights[f"{at}.persistent_value"][:, g], v))
        seen = torch.cat((seen.new_ones(n, products.shape[1] - seen.shape[1]), seen), dim=1)
        for kind in [kind for kind in leaf.keys if kind.kind == "summary"]:
            keys = chunk_keys(kind, a, self.weights, at, k)
            if keys:
                rows = range(self.past, self.past + n)
                by = [[sees_chunk(kind, others, i, m, self.step.length) for m in range(len(keys))] for i in rows]
                products, seen = (
                    torch.cat((products, turned @ torch.stack(keys).T), dim=1),
                    torch.cat((seen, torch.tensor(by)), dim=1),
                )
                v = torch.cat((v, torch.stack(chunk_values(kind, self.weights, at, v[-len(k) :]))))
        return score_weights(self.scaled(products, a), seen, a, sink) @ v

    def products(self, leaf, q, k, seen):
        """q [n, D] turned by its positions, and its products with the turned keys k [L, D], [n, L]."""
        a, n = leaf.attributes, len(q)
        if a.rope is None:
            return q, q @ k.T
        if a.positions == "consecutive":  # every query numbers the keys that it sees; its own place is among them
            before = torch.stack([seen[t, : self.past + t].sum() for t in range(n)])
            q = rotated(q, before, a)
            return q, torch.stack([rotated(k, torch.cumsum(seen[t], 0) - 1, a) @ q[t] for t in range(n)])
        each = block(leaf.keys) if a.positions == "chunk" else 1
        q = rotated(q, torch.arange(self.past, self.past + n) // each, a)
        return q, q @ rotated(k, torch.arange(len(k)) // each, a).T

    def scaled(self, products, a):
        """Products of q and k to logits."""
        width = a.head_dim + (a.rope_dim if a.kv_latent and a.rope is not None else 0)
        factor = self.spec.model.score_scale or 1 / math.sqrt(width)
        if getattr(a.score, "word", "") == "softplus":
            factor = math.log(width)
        if isinstance(a.temperature, int | float):
            s = products * (factor / a.temperature)
        else:
            steps = [(i + 1) // a.temperature.floor_scale for i in range(self.past, self.past + len(products))]
            sharper = [1 + a.temperature.attn_scale * math.log(1 + step) for step in steps]
            s = products * factor * torch.tensor(sharper, dtype=products.dtype)[:, None]
        cap = self.spec.model.score_cap
        return s if cap is None else cap * torch.tanh(s / cap)

    def output(self, at, a, o, x):
        """o [n, H, E] and the mixer's input x -> [n, W]."""
        if a.output_norm:
            o = rms(o, self.weights[f"{at}.output_norm.weight"], self.spec.model.norm.epsilon)
        o = o.reshape(len(x), -1)
        if a.output_gate:
            squash = {"sigmoid": torch.sigmoid, "silu": silu, "linear": lambda z: z}[a.output_gate]
            o = o * squash(self.given @ self.weights[f"{at}.output_gate.weight"].T)
        y = self.linear(f"{at}.o_proj", o)
        return y * (self.weights[f"{at}.scale"] if not isinstance(a.scale, int | float) else a.scale)

    def route(self, mixer, at, x):
        """Each token's key goes to the alternative with the largest router logit; every query reads each alternative with a
        softmax of its own over that one's keys, and sums them with learned weights.
        """
        leaves = [alternative.mixer for alternative in mixer.alternatives]
        a, n = leaves[0].attributes, len(leaves)
        q = self.heads(at, "q", x, a.heads, a.head_dim, a)
        k = q if a.share_qk else self.heads(at, "k", x, a.kv_heads, a.head_dim, a)
        k, v = self.text.joined(f"{at}.k", k), self.text.joined(f"{at}.v", self.heads(at, "v", x, a.kv_heads, a.value_dim, a))
        taken = self.text.joined(f"{at}.route", (x @ self.weights[f"{at}.router.weight"].T).argmax(1))
        shares = torch.softmax((x @ self.weights[f"{at}.join.weight"].T).reshape(len(x), a.heads, n), dim=2)
        outputs = []
        for h in range(a.heads):
            g, o = h // (a.heads // a.kv_heads), 0
            for number, leaf in enumerate(leaves):
                seen = mask(leaf.keys, self.past, len(x), self.step.length, a.causal)
                _, products = self.products(leaf, q[:, h], k[:, g], seen)
                read = score_weights(self.scaled(products, a), seen & (taken == number), a, None) @ v[:, g]
                o = o + shares[:, h, number : number + 1] * read
            outputs.append(o)
        return self.output(at, a, torch.stack(outputs, dim=1), x)
