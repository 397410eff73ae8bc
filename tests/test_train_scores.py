"""Scores with weights of their own learn from attention: the loss is that of plain loops, and a run lowers it."""

from __future__ import annotations

import pytest
import torch
from models import made
from test_models_composed import spec_text
from torch.nn import functional as F
from training import settings

import attnc
from attnc.compiler import check_text
from attnc.tasks.copying import Copy
from attnc.train import run as running
from attnc.train.objective import Objective
from attnc.train.scores import taught_scores, teaches_scores

RECIPE = "recipe { freeze = [all], train = [router], distill = [attention], teacher = full }"
SPECS = {
    "dsa": "all: routed(tokens, top_k = 3, keys = indexer(heads = 2, head_dim = 6), per = layer)",
    "seer": "all: when { phase == decode: full, else: block_local(4) | routed(blocks(4), threshold = 0.1,"
    " keys = learned(pool = [max, min, mean]), queries = block(4), score = softmax, per = head) }",
}


def spec_of(name: str):
    return check_text(f"{spec_text(SPECS[name])}{RECIPE}\n")


def full_weights(q, k):
    """[H, N, N] of causal attention; q [N, H, D], k [N, G, D]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = torch.einsum("nhd,lhd->hnl", q, k) / q.shape[2] ** 0.5
    later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -torch.inf).softmax(-1)


def expected(name: str, layer, x, q, k) -> torch.Tensor:
    """The mean divergence of one text: x [N, W], q [N, H, D] and k [N, G, D] turned."""
    weights, losses = full_weights(q, k), []
    if name == "dsa":
        net = layer.indexer
        from_net = net(x, _Plain(len(x)))
        for t in range(len(x)):
            scores = (torch.relu(from_net.q[t] @ from_net.k[: t + 1, 0].T) * from_net.weights[t][:, None]).sum(0)
            true = weights[:, t, : t + 1].sum(0) / len(weights)
            losses.append((true * (true.log() - scores.log_softmax(0))).sum())
    else:
        net, n = layer.selector, len(x) // 4
        plain = [net.plain(one.transpose(0, 1), 0) for one in (q, k)]
        keys = net.keys(k.transpose(0, 1), 0, 4, 0)
        means = torch.stack([plain[0][:, b * 4 : b * 4 + 4].mean(1) for b in range(n)], dim=1)
        asks = net.queries(means, torch.arange(n) * 4 + 3, 4, 0, len(keys))
        for h in range(len(asks)):
            for b in range(n):
                scores = asks[h, b] @ keys[h // (len(asks) // len(keys)), : b + 1].T / q.shape[2] ** 0.5
                true = torch.stack([weights[h, b * 4 : b * 4 + 4, c * 4 : c * 4 + 4].max() for c in range(b + 1)])
                true = true / true.sum()
                losses.append((true * (true.log() - scores.log_softmax(0))).sum())
    return torch.stack(losses).mean()


class _Plain:
    """A call of one text without cache."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def angles(self, rope):
        from attnc.runtime.rotary import Rope, angles

        return angles(Rope(rope.dim, rope.base), torch.arange(self.tokens))


@pytest.mark.parametrize("name", SPECS)
def test_the_loss_of_scores_is_that_of_plain_loops(name, tmp_path):
    spec = spec_of(name)
    assert teaches_scores(spec) == "alone"
    model = made(spec, tmp_path / "built")
    layer, seen = model.model.layers[0].self_attn, {}
    layer.register_forward_pre_hook(lambda _module, inputs: seen.update(x=inputs[0].detach()))
    inner = layer.mixes[0].choosing["train"]
    assert inner is not None
    texts = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(2))
    with taught_scores(model, "alone") as found:
        recorded = layer.mixes[0].choosing["train"]

        def remember(q, parts, *rest):
            run = parts[0].read(0, 2, 0)[0]
            seen.update(q=q.detach(), k=run.k[0].transpose(0, 1).detach())
            return recorded(q, parts, *rest)

        layer.mixes[0].choosing["train"] = remember
        model(texts)
    torch.testing.assert_close(found[0], expected(name, layer, seen["x"], seen["q"], seen["k"]))
    found[0].backward()
    moved = {one for one, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved
    assert all(".indexer." in one or ".selector." in one for one in moved), "the rest of the model stays"
    assert layer.mixes[0].choosing["train"] is inner


def test_beside_a_model_that_learns_scores_are_compared_among_what_they_choose(tmp_path):
    """DSA's sparse stage: the weights of the three chosen keys, summed over heads, teach the indexer; `lm` teaches the rest."""
    spec = check_text(f"{spec_text(SPECS['dsa'])}{RECIPE.replace('freeze = [all], train = [router]', 'loss = [lm]')}\n")
    assert teaches_scores(spec) == "beside"
    model = made(spec, tmp_path / "built")
    layer, seen = model.model.layers[0].self_attn, {}
    layer.register_forward_pre_hook(lambda _module, inputs: seen.update(x=inputs[0].detach()))
    inner = layer.mixes[0].choosing["train"]

    def remember(q, parts, *rest):
        seen.update(q=q.detach(), k=parts[0].read(0, 2, 0)[0].k[0].transpose(0, 1).detach())
        return inner(q, parts, *rest)

    layer.mixes[0].choosing["train"] = remember
    texts = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(2))
    plain = model(texts).logits
    with taught_scores(model, "beside") as found:
        logits = model(texts).logits
    assert torch.equal(plain, logits), "the launch is as it was"
    from_net = layer.indexer(seen["x"], _Plain(16))
    q, k = seen["q"], seen["k"].repeat_interleave(seen["q"].shape[1] // seen["k"].shape[1], dim=1)
    losses = []
    for t in range(16):
        scores = (torch.relu(from_net.q[t] @ from_net.k[: t + 1, 0].T) * from_net.weights[t][:, None]).sum(0)
        chosen = scores.topk(min(3, t + 1)).indices
        weights = (torch.einsum("hd,lhd->hl", q[t], k[chosen]) / q.shape[2] ** 0.5).softmax(-1)
        true = weights.sum(0) / len(weights)
        losses.append((true * (true.log() - scores[chosen].log_softmax(0))).sum())
    torch.testing.assert_close(found[0], torch.stack(losses).mean())
    objective = Objective.of(spec, lambda: pytest.fail("no other model is needed"), "x.attn")
    call = lambda tokens, at: model(tokens, at=at)  # noqa: E731
    total, terms = objective(model, call, texts, texts.roll(-1), 16, 1.0)
    total.backward()
    assert set(terms) == {"lm", "attention"}
    for name, weight in model.named_parameters():
        (of_lm,) = torch.autograd.grad(F.cross_entropy(model(texts).logits[0], texts.roll(-1)[0]), weight, allow_unused=True)
        assert ((of_lm is None) or not of_lm.any()) == (".indexer." in name), name
        if ".indexer." not in name:
            torch.testing.assert_close(weight.grad, of_lm)
    assert any(weight.grad.any() for name, weight in model.named_parameters() if ".indexer." in name)


def test_a_gate_that_looks_ahead_in_blocks_is_trained_and_nothing_else_moves(tmp_path):
    place = tmp_path / "seer"
    attnc.build(spec_of("seer"), place, device="cpu", init=0)
    before = attnc.load(place).state_dict()
    running.train(place, settings(steps=2), Copy(items=3), lambda _: None, lambda _: None)
    after = attnc.load(place).state_dict()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in after if ".selector." in name}


def test_what_is_taught_comes_nearer(tmp_path):
    model = made(spec_of("seer"), tmp_path / "built")
    texts, losses = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(2)), []
    moving = [weight for name, weight in model.named_parameters() if ".selector." in name]
    optimizer = torch.optim.Adam(moving, lr=0.03)
    for _ in range(10):
        with taught_scores(model, "alone") as found:
            model(texts)
        optimizer.zero_grad()
        found[0].backward()
        optimizer.step()
        losses.append(float(found[0].detach()))
    assert losses[-1] < 0.7 * losses[0]
