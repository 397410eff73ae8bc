"""What content chooses: of every way to say it the lists and the formula keep what the oracle keeps, and bad input is met."""

from __future__ import annotations

import math
from dataclasses import fields as of_dataclass

import pytest
import torch
from chosen import Asking, chooses_at, chosen, kept_units
from hypothesis import given, settings
from hypothesis import strategies as st
from models import made
from test_models_composed import spec_text

from attnc.codegen import selecting
from attnc.compiler import check_text, families
from attnc.compiler.graph import union
from attnc.compiler.intervals import resolve
from attnc.compiler.mixers.routed import formula
from attnc.compiler.unbuilt import unbuilt
from attnc.compiler.value import Share
from attnc.runtime import sizes as runtime_sizes
from attnc.runtime.asking import asking
from attnc.runtime.pooled import run_keys
from attnc.runtime.selecting import Asked, choose
from attnc.runtime.selector import Selector, Sublinear
from attnc.runtime.spans import Numbers

HEADS, GROUPS, WIDTH = 4, 2, 6
REST = ("", "block_local(3)", "sink(2) | window(4)", "window(6, aligned = 3) | stride(4)")


@st.composite
def choices(draw: st.DrawFn) -> str:
    """A choice in the language's words, of all that this version builds."""
    n = draw(st.integers(1, 4))
    unit = draw(st.sampled_from(["tokens", f"blocks({n})", f"blocks({n})", "columns", "diagonals", "antidiagonals"]))
    if unit == "antidiagonals":
        return draw(antidiagonals())
    words = []
    stride = draw(st.integers(1, 3))
    pooled = f"mean({draw(st.integers(stride, 5))}, stride = {stride})"
    keys = draw(st.sampled_from({"diagonals": [""], "tokens": ["", pooled], "columns": [""]}.get(unit, ["", "minmax", pooled])))
    words += [f"keys = {keys}"] if keys else []
    softmax = draw(st.booleans()) and keys != "minmax"
    if softmax:
        coarse = draw(st.booleans()) and (keys or "blocks" in unit)
        words.append("score = softmax(lse = mean(4, stride = 2))" if coarse else "score = softmax")
    elif draw(st.booleans()) and keys == pooled:
        words.append("fold = sum")
    amounts = ["top_k = 2", "top_k = 30%", "top_k = sublinear(2, from = 6, exponent = 0.6)"]
    amounts += ["top_p = 60%", "threshold = 0.15"] if softmax else ["threshold = 0.5"]
    words.append(draw(st.sampled_from(amounts)))
    words += draw(st.sampled_from([[], ["at_least = 2"], ["at_most = 3"], ["at_least = 2, at_most = 4"]]))
    words.append(f"overlap = {draw(st.sampled_from(['ranked', 'counted', 'excluded']))}")
    asks = draw(st.sampled_from(["each", "each", f"block({draw(st.integers(2, 5))}, stride = 2)", "last(3)"]))
    words.append(f"queries = {asks}, selection = noncausal")
    return f"routed({unit}, {', '.join(words)})"


@st.composite
def antidiagonals(draw: st.DrawFn) -> str:
    n = draw(st.integers(1, 3))
    unit, block = (n * draw(st.integers(1, 2)) for _ in range(2))
    amount = draw(st.sampled_from(["top_k = 2", "top_p = 70%", "threshold = 0.3"]))
    per, overlap = draw(st.sampled_from(["head", "group(max)"])), draw(st.sampled_from(["ranked", "counted", "excluded"]))
    words = f"{amount}, score = antidiagonal({n}), queries = block({block}), per = {per}, overlap = {overlap}"
    return f"routed(blocks({unit}), {words}, selection = noncausal)"


def read(text: str):
    """(the choice, the rest of its union)."""
    spec = check_text(spec_text(f"all: {text}", heads=HEADS, kv_heads=GROUPS))
    missing = [one.message for one in unbuilt(spec)]
    assert all("while decoding" in one for one in missing), missing
    keys = spec.layers[0].mixer.keys
    (kind,) = [key for key in keys if key.kind == "routed"]
    return kind, tuple(key for key in keys if key.kind != "routed")


def runtime_selector(kind) -> Selector:
    """The runtime's value of the same fields."""
    found = selecting.selector(kind)
    values = {one.name: getattr(found, one.name) for one in of_dataclass(found)}
    match found.top_k:
        case Share(percent=percent):
            values["top_k"] = runtime_sizes.Share(percent)
        case families.Sublinear(k=k, start=start, exponent=exponent):
            values["top_k"] = Sublinear(k, start, exponent)
    return Selector(**values)


def numbers_of(rest, length: int) -> Numbers:
    found = resolve(union(rest, True), length)
    nears = tuple((near.align, near.shift, near.back, near.ahead) for near in found.near)
    return Numbers(found.sink, nears, tuple(found.strides), tuple(found.powers), True)


def listed(kind, rest, q, k, past: int, decodes: bool) -> list[list[set[int]]]:
    """[chooser][query], what the runtime's lists hold; q [H, N, D] from position `past` on, k [G, L, D]."""
    selector, tokens = runtime_selector(kind), k.shape[1]
    asked = Asked(past, tokens, tokens, numbers_of(rest, tokens), WIDTH**-0.5, None)
    rows = asking(selector, q[:, past:], past, decodes, earlier(kind, q, past))
    keys = run_keys(selector, k, 0, GROUPS - 1, 0, None, None)
    found = choose(selector, rows, keys, asked).of(0, tokens - past)
    return [
        [set(index[:count].tolist()) for index, count in zip(row, counts.tolist(), strict=True)]
        for row, counts in zip(found.index, found.count, strict=True)
    ]


def earlier(kind, q, past: int):
    """What a cache would know of earlier queries."""
    match getattr(kind.queries, "word", "each"):
        case "block":
            begin = past // kind.queries.n * kind.queries.n
            return q[:, begin:past][:, :: kind.queries.stride].sum(1)
        case "last":
            before = q[:, max(0, past + 1 - kind.queries.n) : past].transpose(0, 1)
            return torch.cat((before.new_zeros(kind.queries.n - 1 - len(before), *before.shape[1:]), before))
    return None


def formula_keys(kind, rest, q, k, past: int, decodes: bool) -> torch.Tensor:
    """[H, N, L], what the formula keeps."""
    one, tokens = selecting.selector(kind), k.shape[1]
    joined = one.keys == "joined"
    amount = ("top_k", runtime_selector(kind).wanted(tokens))
    if one.top_k is None:
        amount = ("threshold", one.threshold) if one.top_p is None else ("top_p", one.top_p)
    numbers = numbers_of(rest, tokens)

    def visible(i, j):
        from attnc.runtime.spans import visible as shown

        return shown(numbers, i, j)

    call = decodes, earlier(kind, q, past), None
    found, broken = formula.chosen_keys(
        q[:, past:],
        k.repeat_interleave(HEADS // GROUPS, 0),
        torch.arange(past, tokens),
        visible,
        logit=(WIDTH**-0.5, None),
        asks=(("joined", one.many, one.span) if joined else (one.asks, one.many, one.every), call),
        unit="diagonals" if one.diagonals else one.unit,
        runs=(one.keys, one.span, one.step),
        score=(one.score, one.lse),
        heads=(one.shared, HEADS // GROUPS, one.heads),
        fold=one.fold,
        keep=(amount, (one.at_least, one.at_most), one.overlap),
    )
    assert not broken.any()
    return found


@settings(max_examples=40)
@given(choices(), st.sampled_from(REST), st.integers(1, 14), st.integers(0, 9), st.booleans(), st.integers(0, 99))
def test_lists_and_formula_keep_what_the_oracle_keeps(choice, rest, new, past, decodes, seed):
    """In float32; a choice that rounding may decide, as two scores are nearer than it, is no mistake of either."""
    kind, others = read(f"{rest} | {choice}" if rest else choice)
    if "antidiagonal" in choice:  # which asks in blocks of the call alone
        past, decodes = 0, False
    generator = torch.Generator().manual_seed(seed)
    tokens = past + new
    q, k = (torch.randn(heads, tokens, WIDTH, generator=generator) for heads in (HEADS, GROUPS))
    lists = listed(kind, others, q, k, past, decodes)
    kept = formula_keys(kind, others, q, k, past, decodes)
    share = HEADS // len(lists)
    compared = 0
    for c, row in enumerate(lists):
        heads = range(c * share, (c + 1) * share)
        for t, found in enumerate(row):
            i = past + t
            last = chooses_at(kind, i, tokens, decodes)
            wide = q[heads].double(), k.double()[[h * GROUPS // HEADS for h in heads]]
            expected, gap = kept_units(kind, Asking(*wide, i, last, tokens, WIDTH**-0.5), others)
            if 0 < gap < 1e-4:  # at 0 one run's score is that of both
                continue
            compared += 1
            assert found == expected
            keys = chosen(kind, Asking(*wide, i, last, tokens, WIDTH**-0.5), others)
            assert all(kept[h, t].tolist() == keys for h in heads)
    assert compared or new * len(lists) < 12, "near-ties are few"


def test_equal_scores_keep_the_first_units():
    kind, rest = read("routed(blocks(2), top_k = 3)")
    same = torch.ones(GROUPS, 14, WIDTH)
    found = listed(kind, rest, torch.ones(HEADS, 14, WIDTH), same, 0, False)
    assert found[0][13] == {0, 1, 2}
    assert found[0][3] == {0, 1}, "fewer units than top_k: all of them"
    assert found[0][0] == set(), "none that has been read whole"


SPECS = {
    "blocks": "all: block_local(4) | routed(blocks(4), top_k = 2, keys = mean)",
    "tokens": "all: routed(tokens, top_k = 3, score = softmax)",
    "bounds": "all: window(3) | routed(blocks(3), top_k = 2, keys = minmax, per = head, overlap = counted)",
    "pooled": "all: sink(2) | routed(blocks(4), top_k = 2, keys = mean(4, stride = 2),"
    " score = softmax(lse = mean(8, stride = 4)))",
    "indexer": "0: full\n1: routed(tokens, top_k = 3, keys = indexer(heads = 2, head_dim = 6), per = layer)\n"
    "2: routed(tokens, top_k = 2, from = previous, per = layer)",
    "summary": "all: gate(short, routed(blocks(4), top_k = 2, keys = short, score = softmax, fold = sum), by = sigmoid)",
}
MIXES = {"summary": "mix short = summary(4, stride = 2, pool = mlp)"}
WAYS = ("torch", "reference")


def model_of(layers: str, folder, mixes: str = ""):
    return made(check_text(spec_text(layers, mixes=mixes)), folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return {
        name: model_of(layers, tmp_path_factory.mktemp("chosen") / "built", MIXES.get(name, ""))
        for name, layers in SPECS.items()
    }


def drawn(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, 64, (rows, tokens), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("way", WAYS)
def test_later_tokens_change_no_bit_of_earlier_outputs(built, name, way):
    model, texts = built[name].use(way), drawn(1, 26)
    other = texts.clone()
    other[:, 15:] = (other[:, 15:] + 7) % 64
    with torch.no_grad():
        before, after = (model(x, phase="train").logits[0] for x in (texts, other))
    assert torch.equal(before[:15], after[:15])
    assert not torch.equal(before[15:], after[15:])


def test_what_summaries_are_made_of_learns_and_a_choice_by_them_moves_nothing(built):
    """NSA: the compressed branch teaches its maps; who chooses by them has no gradient of its own."""
    model = built["summary"].use("torch")
    model(drawn(1, 26)).logits.square().sum().backward()
    still = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    model.zero_grad()
    assert not still


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_for_all_units_is_full_attention(tmp_path, way):
    """Of the units that have been read whole, and the own one."""
    chosen = model_of("all: block_local(4) | routed(blocks(4), top_k = 99)", tmp_path / "chosen").use(way)
    full = model_of("all: full", tmp_path / "full").use(way)
    full.load_state_dict(chosen.state_dict())
    texts = drawn(2, 21)
    torch.testing.assert_close(chosen(texts).logits, full(texts).logits)
    cache, whole = chosen.new_cache(2, 30), full.new_cache(2, 30)
    for part in texts.split((5, 1, 9, 6), dim=1):
        torch.testing.assert_close(chosen(part, cache=cache).logits, full(part, cache=whole).logits)


@pytest.mark.parametrize("way", WAYS)
def test_nan_in_a_key_is_seen_wherever_it_is_scored_and_in_no_other_text(built, way):
    model, texts = built["blocks"].use(way), drawn(2, 20)
    x = model.model.embed_tokens(texts).detach()
    expected = model(x).logits
    x[0, 6] = math.nan  # of the second block
    found = model(x).logits
    assert torch.equal(found[1], expected[1])
    assert found[0, 6:].isnan().all(), "the block itself, and whoever has read it whole"


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_that_goes_back_chooses_as_if_it_had_never_seen_more(built, way):
    model, texts = built["pooled"].use(way), drawn(1, 24)
    cache = model.new_cache(1, 24)
    model(texts[:, :21], cache=cache)
    kept = cache.snapshot()
    cache.crop(10)
    other = (texts[:, 10:] + 5) % 64
    found = model(other, cache=cache).logits
    torch.testing.assert_close(found, model(torch.cat((texts[:, :10], other), dim=1)).logits[:, 10:])
    cache.restore(kept)
    torch.testing.assert_close(model(texts[:, 21:], cache=cache).logits, model(texts).logits[:, 21:])


LEAKS = {
    "all: block_local(4) | routed(blocks(4), top_k = 2, queries = block(4))": 4,
    "all: routed(tokens, top_k = 2, queries = last(3), score = softmax)": None,
}


@pytest.mark.parametrize("layers", LEAKS)
def test_uses_that_would_leak_are_refused(layers, tmp_path):
    model, texts = model_of(layers, tmp_path / "built"), drawn(1, 14)
    assert refused(lambda: model(texts)) == "A301"
    with torch.no_grad():
        whole = model(texts).logits
        cache = model.new_cache(1, 14)
        assert refused(lambda: model(texts[:, :6], cache=cache, total_lengths=14)) == "A302"
        assert cache.counts == (0,), "a refused call stores nothing"
        if LEAKS[layers]:
            first, second = (
                model(texts[:, :8], cache=cache, total_lengths=14),
                model(texts[:, 8:], cache=cache, total_lengths=14),
            )
            torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), whole)
        model(texts[:, :6], cache=cache) if not LEAKS[layers] else None
        assert refused(lambda: model(drawn(1, 25), cache=cache)) in ("A303", "A508")


def refused(call) -> str:
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value).partition(":")[0]


@pytest.mark.parametrize("layers", LEAKS)
def test_a_choice_that_looks_ahead_does(layers, tmp_path):
    """Why it is refused: a later token changes earlier outputs, within the block or everywhere."""
    model, texts = model_of(layers, tmp_path / "built"), drawn(1, 24)
    other = texts.clone()
    other[:, 23] = (other[:, 23] + 9) % 64
    with torch.no_grad():
        changed = (model(texts).logits != model(other).logits).any(-1)[0, :23]
    assert changed.any()
    assert not changed[:20].any() or LEAKS[layers] is None
