"""Drawing tokens, and the loop around a model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnc.runtime.attention_torch import torch_attention
from attnc.runtime.batch import Batch
from attnc.runtime.cache import Cache, Growing, LayerPlan, Ring, Slots
from attnc.runtime.generate import Speed, generate
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near
from attnc.runtime.output import Output
from attnc.runtime.rotary import Rope, rotate
from attnc.runtime.sampling import Sampler, keep_top
from attnc.runtime.softmax import attend

GROUPS = (HeadGroup(0, 0, near=(FULL,)), HeadGroup(1, 1, sink=2, near=(Near(back=4),)))
FORM = Form.of(GROUPS, causal=True)


class Tiny:
    """One attention layer without weights between an embedding and its transpose; keeps the phases of its calls."""

    def __init__(self):
        make = torch.Generator().manual_seed(0)
        self.embedding, self.head = (torch.randn(23, 8, generator=make, dtype=torch.float64) for _ in range(2))
        self.calls = []

    def new_cache(self, batch, max_length):
        return Cache([LayerPlan((Slots(0, 0, Growing()), Slots(1, 1, Ring(2, 5))), 4, 4)], batch, max_length, torch.float64)

    def __call__(self, inputs, cache=None, *, lengths=None, total_lengths=None, at=None):
        tokens, batch = Batch.of(inputs, cache, lengths, total_lengths=total_lengths)
        self.calls.append((batch.phase, batch.sizes))
        x = self.embedding[tokens].view(-1, 2, 4)
        q = k = rotate(x, batch.positions, Rope(4, 100.0))
        layer = None if cache is None else cache.layer(0)
        out = attend(torch_attention, q, k, x, batch, layer, GROUPS, FORM, 0.5)
        if cache is not None:
            cache.advance(batch)
        hidden = (x + out).flatten(1)
        return Output(batch.unpack(hidden @ self.head.T) if at is None else batch.at(hidden, at) @ self.head.T, cache)


def without_cache(model, prompt, count):
    """Greedy tokens, each from a call over the whole text so far."""
    text = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


@given(st.lists(st.integers(1, 25), min_size=1, max_size=3), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 26)))
def test_cached_tokens_of_left_padded_prompts_in_chunks_equal_those_of_whole_calls(sizes, count, chunk):
    model = Tiny()
    prompts = [torch.randint(0, 23, (size,)).tolist() for size in sizes]
    padded = torch.tensor([[9] * (max(sizes) - size) + prompt for size, prompt in zip(sizes, prompts, strict=True)])
    found = torch.stack(list(generate(model, padded, count, lengths=sizes, chunk=chunk)), dim=1)
    calls = model.calls
    pieces = -(-max(sizes) // (chunk or max(sizes)))
    assert [phase for phase, _ in calls] == ["prefill"] * pieces + ["decode"] * (count - 1)
    assert all(max(call) <= (chunk or max(sizes)) for _, call in calls)
    assert found.tolist() == [without_cache(model, prompt, count) for prompt in prompts]


def test_generation_ends_when_every_sequence_has_stopped():
    model = Tiny()
    tokens = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 8]])
    free = torch.stack(list(generate(model, tokens, 12)), dim=1)
    stop = [int(free[0, 3]), int(free[1, 6])]
    ends = [next(i for i, token in enumerate(row) if token in stop) for row in free.tolist()]
    found = torch.stack(list(generate(model, tokens, 12, stop=stop)), dim=1)
    assert found.shape[1] == max(ends) + 1
    first = ends.index(min(ends))
    assert ends[0] != ends[1]
    assert len(set(free[first, ends[first] : max(ends) + 1].tolist())) > 1, "the text would have gone on"
    for row, wanted, end in zip(found.tolist(), free.tolist(), ends, strict=True):
        assert row[: end + 1] == wanted[: end + 1]
        assert set(row[end:]) == {wanted[end]}


def test_speed_counts_the_prompt_and_what_follows():
    speed = Speed()
    assert speed.tokens_per_second == 0
    assert len(list(generate(Tiny(), torch.randint(0, 23, (2, 5)), 4, speed=speed))) == 4
    assert (speed.prompt_tokens, speed.new_tokens) == (10, 6)
    assert speed.prompt_seconds > 0
    assert speed.tokens_per_second == 6 / speed.new_seconds


@pytest.mark.parametrize("options", [{"lengths": [3, 0]}, {}])
def test_an_empty_prompt_is_refused(options):
    tokens = torch.zeros(2, 3 if options else 0, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one token"):
        next(generate(Tiny(), tokens, 4, **options))


def test_no_token_is_generated_where_none_is_wanted():
    assert list(generate(Tiny(), torch.ones(1, 3, dtype=torch.int64), 0)) == []


def test_greedy_takes_the_likeliest_and_a_seed_repeats_itself():
    logits = torch.randn(4, 50)
    sampler = Sampler()
    assert torch.equal(sampler(logits, sampler.generator(logits.device)), logits.argmax(-1))
    warm = Sampler(temperature=1.0, top_p=0.9, seed=3)
    draws = []
    for seed in (3, 3, 4):
        generator = Sampler(1.0, 0.9, seed).generator(logits.device)
        draws.append([warm(logits, generator).tolist() for _ in range(8)])
    assert draws[0] == draws[1] != draws[2]


@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_the_cut_keeps_the_fewest_tokens_that_hold_top_p(seed, top_p):
    chances = torch.softmax(torch.randn(3, 20, generator=torch.Generator().manual_seed(seed)).double() * 2, -1)
    kept = keep_top(chances, top_p)
    for row, cut in zip(chances.tolist(), kept.tolist(), strict=True):
        held, wanted = 0.0, [0.0] * 20
        for place in sorted(range(20), key=lambda i: -row[i]):
            if held >= top_p:
                break
            wanted[place] = row[place]
            held += row[place]
        assert cut == wanted


def test_draws_follow_the_tempered_chances():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20000, -1)
    sampler = Sampler(temperature=2.0, seed=1)
    drawn = torch.bincount(sampler(logits, sampler.generator(logits.device)), minlength=4) / 20000
    wanted = torch.softmax(logits[0] / 2, -1)
    assert (drawn - wanted).abs().max() < 5 * (0.25 / 20000) ** 0.5


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_samplers_refuse_numbers_out_of_bounds(options):
    with pytest.raises(ValueError, match=r"at least 0|above 0"):
        Sampler(**options)
