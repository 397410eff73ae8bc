"""The provider `flex`: its lists of blocks, its masks, and what it computes, without a GPU.

PyTorch's own flex_attention runs uncompiled on a CPU, forward only, and looks at the mask alone. So most laws run a stand-in
that visits the listed blocks and nothing else, in float64, with gradients.
"""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runtime_attention import (
    cache_for,
    dense,
    layers,
    packed,
    random_qkv,
    schedules,
    table,
    with_mask,
    without_shares,
)
from torch._dynamo import trace_rules

from attnc.runtime import attention_flex, flex_text
from attnc.runtime import block_lists as runtime_lists
from attnc.runtime.attention_flex import flex_attention, flex_attention_lse
from attnc.runtime.batch import Batch
from attnc.runtime.block_lists import Stretch, block_lists
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near, row
from attnc.runtime.keys import persistent_keys
from attnc.runtime.softmax import attend


def listed(counts, index, columns):
    """[1, P, rows, columns], whether a block is in its row's list; a list names no block twice."""
    found = torch.zeros(*counts.shape, columns, dtype=torch.int64)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in counts.shape)).view(-1, counts.dim()).tolist():
        chosen = index[tuple(place)][: int(counts[tuple(place)])].long()
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        found[tuple(place)][chosen] = 1
    return found.bool()


def by_blocks(q, k, v, score_mod, block_mask, scale, enable_gqa, return_aux):
    """What flex_attention is to do with a block mask: full blocks whole, partial ones through the mask, others not at all."""
    assert enable_gqa
    assert return_aux.lse
    size = block_mask.BLOCK_SIZE[0]
    rows, columns = (-(-x.shape[2] // size) for x in (q, k))
    partial = listed(block_mask.kv_num_blocks, block_mask.kv_indices, columns)
    full = listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, columns)
    assert torch.equal(partial, listed(block_mask.q_num_blocks, block_mask.q_indices, rows).transpose(2, 3))
    assert torch.equal(full, listed(block_mask.full_q_num_blocks, block_mask.full_q_indices, rows).transpose(2, 3))
    assert not (partial & full).any()
    b, h, i, j = (torch.arange(n) for n in (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
    seen = block_mask.mask_mod(b.view(-1, 1, 1, 1), h.view(-1, 1, 1), i.view(-1, 1), j)
    in_partial, in_full = (x[:, :, i[:, None] // size, j // size] for x in (partial, full))
    seen = (in_full | (in_partial & seen)).expand(q.shape[0], q.shape[1], -1, -1)
    repeat = q.shape[1] // k.shape[1]
    logits = q @ k.repeat_interleave(repeat, 1).transpose(2, 3) * scale
    logits = logits if score_mod is None else score_mod(logits, b, h, i, j)
    some = seen.any(-1)
    logits = logits.masked_fill(~seen, float("-inf")).masked_fill(~some.unsqueeze(-1), 0.0)
    weights = logits.softmax(-1) * some.unsqueeze(-1)
    lse = torch.where(some, logits.logsumexp(-1), float("-inf"))
    return weights @ v.repeat_interleave(repeat, 1), SimpleNamespace(lse=lse)


def eager(*arguments, **options):
    """PyTorch's own, which warns that it is not compiled."""
    from torch.nn.attention.flex_attention import flex_attention as plain

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain(*arguments, **options)


def flex(*arguments, using=by_blocks, **options):
    return flex_attention(*arguments, **options, using=using)


@pytest.fixture
def blocks_of(monkeypatch):
    """Sets the size of a block, so that short texts have many."""

    def resize(size):
        for module in (attention_flex, runtime_lists):
            monkeypatch.setattr(module, "BLOCK", size)
        attention_flex._mask.cache_clear()

    yield resize
    resize(128)


SIZES = st.sampled_from([1, 4, 7, 16])


def test_it_equals_dense_attention_for_any_rows(blocks_of):
    @given(layers(), st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(0, 2**31), SIZES)
    def law(layer, sizes, seed, block):
        blocks_of(block)
        groups, causal, heads, repeat, width, value_width = layer
        form, batch = Form.of(groups, causal), packed(sizes)
        q, k, v = random_qkv(seed, sum(sizes), heads, repeat, width, value_width)
        found = attend(flex, q, k, v, batch, None, groups, form, 0.5)
        pieces = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
        wanted = torch.cat([dense(*piece, groups, causal, 0.5) for piece in pieces])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)

    law()


def test_chunks_and_decode_steps_on_a_poisoned_cache_equal_the_whole(blocks_of):
    @given(layers(), schedules(), st.integers(0, 2**31), SIZES)
    def law(layer, schedule, seed, block):
        blocks_of(block)
        groups, _, heads, repeat, width, value_width = layer
        totals = [sum(call[s] for call in schedule) for s in range(len(schedule[0]))]
        groups = tuple(with_mask(without_shares(g, max(totals)), True) for g in groups)
        form = Form.of(groups, True)
        texts = [random_qkv(seed + s, total, heads, repeat, width, value_width) for s, total in enumerate(totals)]
        cache = cache_for(groups, len(totals), max(totals), width, value_width)
        found, done = [[] for _ in totals], [0] * len(totals)
        with torch.no_grad():
            for call in schedule:
                batch = packed(call, cache=cache)
                q, k, v = (torch.cat([texts[s][x][done[s] : done[s] + n] for s, n in enumerate(call)]) for x in range(3))
                out = attend(flex, q, k, v, batch, cache.layer(0), groups, form, 0.5)
                cache.advance(batch)
                for s, piece in enumerate(torch.split(out, call)):
                    found[s].append(piece)
                    done[s] += call[s]
        for s, text in enumerate(texts):
            torch.testing.assert_close(torch.cat(found[s]), dense(*text, groups, True, 0.5), rtol=1e-12, atol=1e-12)

    law()


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("causal", [True, False])
def test_sink_logits_soft_caps_head_scales_and_persistent_keys_are_part_of_the_softmax(cap, causal, blocks_of):
    blocks_of(4)
    groups = (
        with_mask(HeadGroup(0, 0, sink=2, near=(Near(back=3),)), causal),
        with_mask(HeadGroup(1, 1, near=(FULL,)), causal),
    )
    q, k, v = random_qkv(1, 24, 2, 2, 4, 6)
    own_k, own_v = random_qkv(2, 3, 2, 2, 4, 6)[1:]
    sink, scale = torch.randn(4, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0, 0.25])
    for sizes in ([12, 12], [5, 19]):
        batch, form = packed(sizes), Form.of(groups, causal)
        found = attend(flex, q, k, v, batch, None, groups, form, scale, cap, sink, persistent_keys(own_k, own_v, 2))
        pieces = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
        wanted = [dense(*piece, groups, causal, scale, cap=cap, sink=sink, persistent=(own_k, own_v)) for piece in pieces]
        torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [[5, 6], [11]])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("with_sink", [False, True])
def test_gradients_are_those_of_dense_attention(sizes, cap, with_sink, blocks_of):
    """Through queries, keys, values and the sink's logit; a query that sees nothing has none."""
    blocks_of(4)
    groups = (
        with_mask(HeadGroup(0, 0, 1, (Near(back=2), Near(align=4))), True),
        with_mask(HeadGroup(1, 1, strides=(3,)), True),
        with_mask(HeadGroup(2, 2, near=(Near(align=4, back=-2),)), True),
        with_mask(HeadGroup(3, 3), True),
    )
    inputs = [x.requires_grad_() for x in (*random_qkv(3, 11, 4, 2, 4, 6), torch.randn(8, dtype=torch.float64))]
    q, k, v, sink = (*inputs[:3], inputs[3] if with_sink else None)
    inputs = inputs if with_sink else inputs[:3]
    batch, form = packed(sizes), Form.of(groups, True)
    weight = torch.randn(11, 8, 6, dtype=torch.float64)
    found = torch.autograd.grad((attend(flex, q, k, v, batch, None, groups, form, 0.7, cap, sink) * weight).sum(), inputs)
    pieces = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
    parts = [dense(*piece, groups, True, 0.7, cap, sink) for piece in pieces]
    wanted = torch.autograd.grad((torch.cat(parts) * weight).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_the_log_sum_exp_counts_the_sink_and_is_minus_infinity_where_nothing_is_seen():
    groups = (HeadGroup(0, 0, near=(Near(align=4, back=-2),)), HeadGroup(1, 1, near=(FULL,)))
    q, k, v = random_qkv(4, 9, 2, 1, 4, 4)
    batch, form = packed([9]), Form.of(groups, True)
    part = (batch.keys(k, v),)
    o, lse = flex_attention_lse(q, part, groups, form, batch, 1.0, using=by_blocks)
    causal = torch.ones(9, 9).tril() == 0
    logits = torch.einsum("id,jd->ij", q[:, 1], k[:, 1]).masked_fill(causal, float("-inf"))
    torch.testing.assert_close(lse[:, 1], logits.logsumexp(1))
    unseen = torch.tensor([True, True, False, False, True, True, False, False, True])
    assert torch.equal(lse[:, 0] == float("-inf"), unseen)
    assert (o[unseen, 0] == 0).all()
    sink = torch.tensor([1.0, -2.0], dtype=torch.float64)
    _, both = flex_attention_lse(q, part, groups, form, batch, 1.0, None, sink, using=by_blocks)
    torch.testing.assert_close(both, torch.logaddexp(lse, sink))


@settings(max_examples=max(1, settings.default.max_examples // 20))
@given(layers(), st.sampled_from([[300], [150, 150], [9, 200, 0, 131]]), st.integers(0, 2**31))
def test_pytorchs_own_reads_the_same_masks(layer, sizes, seed):
    """Uncompiled, in float64: a key more or less would show."""
    groups, causal, heads, repeat, _, _ = layer
    batch, form = packed(sizes), Form.of(groups, causal)
    q, k, v = random_qkv(seed, sum(sizes), heads, repeat, 16, 16)

    def run(using, cap, sink):
        o, lse = flex_attention_lse(q, (batch.keys(k, v),), groups, form, batch, 0.25, cap, sink, using=using)
        assert torch.equal(lse == float("-inf"), ~o.any(-1)) or sink is not None
        return o, lse

    for cap, sink in ((None, None), (3.0, torch.linspace(-1, 1, heads * repeat, dtype=torch.float64))):
        for own, exact in zip(run(eager, cap, sink), run(by_blocks, cap, sink), strict=True):
            torch.testing.assert_close(own, exact)


def brute(group, causal, queries, keys):
    """[queries, keys] of a packed launch, pair by pair."""
    positions = [[(s.sequence, s.position + x) for s in side for x in range(s.size)] for side in (queries, keys)]
    longest = 1 + max(position for side in positions for _, position in side)
    seen = table(group, longest, longest, causal)
    return torch.tensor([[a == b and bool(seen[i, j]) for b, j in positions[1]] for a, i in positions[0]])


def test_lists_hold_every_visible_pair_and_full_blocks_nothing_else(blocks_of):
    @given(layers(), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=3), SIZES)
    def law(layer, texts, block):
        blocks_of(block)
        groups, causal, *_ = layer
        queries = tuple(Stretch(s, past, n) for s, (past, n) in enumerate(texts))
        keys = tuple(Stretch(s, past // 2, n + past - past // 2) for s, (past, n) in enumerate(texts))
        longest = max(past + n for past, n in texts)
        form = Form.of(groups, causal)
        patterns = [torch.tensor([row(without_shares(group, longest), form, longest)]) for group in groups]
        found = block_lists(patterns, form.nears, form.strides, causal, queries, keys)
        columns = -(-sum(one.size for one in keys) // block)
        for at, group in enumerate(groups):
            seen = brute(group, causal, queries, keys)
            full, partial = (
                listed(lists.counts[None], lists.members[None], columns)[0, at]
                .repeat_interleave(block, 0)
                .repeat_interleave(block, 1)[: seen.shape[0], : seen.shape[1]]
                for lists in (found.full_by_query, found.partial_by_query)
            )
            assert not (seen & ~full & ~partial).any(), "a visible pair is in no list"
            assert not (full & ~seen).any(), "a full block hides a pair"

    law()


def test_a_window_over_a_long_text_lists_few_blocks_and_most_of_them_full():
    length = 2**18
    group = HeadGroup(0, 0, sink=64, near=(Near(back=1023),))
    rows = torch.tensor([row(group, Form.of((group,), True), length)])
    text = (Stretch(0, 0, length),)
    found = block_lists([rows], 1, 0, True, text, text)
    assert found.partial_by_query.members.shape[2] <= 3, "the diagonal, the window's end and the sinks"
    assert int(found.full_by_query.counts.max()) == 7
    everything = torch.tensor([row(HeadGroup(0, 0, near=(FULL,)), Form(1, 0, 0, True), length // 32)])
    text = (Stretch(0, 0, length // 32),)
    found = block_lists([everything], 1, 0, True, text, text)
    assert found.partial_by_query.counts.tolist() == [[1] * 64]
    assert found.full_by_query.counts.tolist() == [list(range(64))]


def test_equal_numbers_and_lengths_share_a_mask_and_other_lengths_share_the_code(monkeypatch):
    attention_flex._mask.cache_clear()
    flex_text.mask_code.cache_clear()
    groups = (HeadGroup(0, 1, near=(Near(back=5),)),)
    for sizes in ([20], [20], [31], [64]):
        q, k, v = random_qkv(0, sum(sizes), 2, 2, 4, 4)
        attend(flex, q, k, v, packed(sizes), None, groups, Form.of(groups, True), 0.5)
    assert attention_flex._mask.cache_info().misses == 3
    assert flex_text.mask_code.cache_info().misses == 1


def test_the_code_of_a_mask_has_a_source_without_which_pytorch_compiles_all_masks_in_one_frame():
    code = flex_text.attend_code("(k <= q)", 0.5, None)
    assert inspect.getsourcefile(code) == code.__code__.co_filename
    assert "scale=0.5" in inspect.getsource(code)
    assert not trace_rules.check(code)


def test_a_launch_is_compiled_for_its_first_length_and_once_for_all_others(monkeypatch):
    """Traced as on a GPU, the mask, the cap and the sink's share in one graph; run as it was traced."""
    graphs, original = [], torch.compile

    def count(graph, _inputs):
        graphs.append(graph)
        return graph

    def compile_counted(code, fullgraph, backend=count):  # uncompiled, flex_attention names a backend of its own
        return original(code, fullgraph=fullgraph, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_counted)
    monkeypatch.setattr(attention_flex, "complain", lambda *_: None)
    attention_flex._attend.cache_clear()
    groups = (HeadGroup(0, 0, near=(FULL,)), HeadGroup(1, 1, sink=64, near=(Near(back=130),)))
    form, sink, compiled = Form.of(groups, True), torch.randn(4), []
    for sizes in ([640], [700], [1000], [300, 500], [200, 1, 400], [77, 600]):
        q, k, v = (x.float() for x in random_qkv(0, sum(sizes), 2, 2, 16, 16))
        batch = packed(sizes)
        with torch.no_grad():
            found = flex_attention_lse(q, (batch.keys(k, v),), groups, form, batch, 0.2, 5.0, sink)
            same = flex_attention_lse(q, (batch.keys(k, v),), groups, form, batch, 0.2, 5.0, sink, using=eager)
        for one, other in zip(found, same, strict=True):
            assert torch.equal(one, other)
        compiled.append(len(graphs))
    attention_flex._attend.cache_clear()
    assert compiled[0] == 1
    assert compiled[2] == compiled[1] <= 2
    assert compiled[5] == compiled[4] <= 4


def test_a_model_on_a_cpu_or_of_narrow_heads_is_told_so():
    groups = (HeadGroup(0, 0, near=(FULL,)),)
    q, k, v = random_qkv(0, 8, 1, 1, 4, 4)
    _, batch = Batch.of(torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="runs on a GPU"):
        attend(flex_attention, q, k, v, batch, None, groups, Form.of(groups, True), 0.5)
