"""Every word of `recipe` carried out: each test fails if its word is passed over."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from training import HEAD, MIXED, built, examples, trainer

import attnc
from attnc.compiler.recipe import Recipe
from attnc.dsl import SpecError
from attnc.train import terms
from attnc.train.budgets import compiles_numbers
from attnc.train.lora import Adapter
from attnc.train.moves import moves, parts

ROUTED = "0: full, 1: route(per = token, by = router(linear{more})) {{ far: full, near: window(3) }}"
GATED = "0: full { qk_norm = rms, output_gate = silu, sink_logit = learned }, 1: conv(2) + persistent(2) | window(4)"


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def moved(tmp_path: Path, layers: str, recipe: str = "", steps: int = 2) -> tuple[set[str], set[str]]:
    """(tensors that changed, tensors that did not) after some steps."""
    one = trainer(tmp_path, layers, recipe)
    before = weights_of(one.model)
    for step in range(steps):
        one.step(examples(seed=step))
    after = one.weights()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after.get(name, weight))}
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(one.model).items() if name not in changed)
    return changed, set(before) - changed


def only(names: set[str], *words: str) -> bool:
    return bool(names) and all(any(word in name for word in words) for name in names)


# ---- freeze, train, lora ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("attention", ("self_attn", "mixer")),
        ("ffn", (".mlp.",)),
        ("embedding", ("embed_tokens", "lm_head")),
        ("norm", ("norm",)),
        ("q", (".q_proj.",)),
        ("o", (".o_proj.",)),
    ],
)
def test_what_is_frozen_keeps_its_bits_and_what_trains_moves_alone(word, names, tmp_path):
    changed, kept = moved(tmp_path / "a", GATED, f"freeze = [{word}]")
    assert only(kept, *names), kept
    assert not [name for name in changed if any(part in name for part in names) and "norm" not in name]
    changed, _ = moved(tmp_path / "b", GATED, f"train = [{word}]")
    assert only(changed, *names), changed
    assert {name for name in kept if "norm" not in name} == {name for name in changed if "norm" not in name}


def test_without_a_recipe_everything_trains(tmp_path):
    assert moved(tmp_path, GATED)[1] == set()


def test_a_router_moves_alone_where_it_is_trained(tmp_path):
    changed, _ = moved(tmp_path, ROUTED.format(more=""), "freeze = [all], train = [router]")
    assert changed == {f"model.layers.1.self_attn.{name}.weight" for name in ("router", "join")}


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "q"),
        ("model.layers.0.self_attn.k_conv.weight", "k"),
        ("model.layers.0.mixer.window.v_proj.bias", "v"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.self_attn.kv_b_proj.weight", "k"),
        ("model.layers.0.self_attn.sink_logit", "attention"),
        ("model.layers.0.mixer.memory.net.0.weight", "memory"),
        ("model.layers.0.self_attn.indexer.q.weight", "router"),
        ("model.layers.0.mlp.up_proj.weight", "ffn"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "embedding"),
    ],
)
def test_a_tensor_belongs_to_its_narrowest_part_and_to_all(name, first):
    levels = parts(name)
    assert first in levels[0]
    assert levels[-1] == ("all",)


def test_the_narrower_part_decides():
    names = [f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qkvo"] + ["model.layers.0.mlp.up_proj.weight"]
    found = moves(Recipe(freeze=("all", "q"), train=("attention",), lora=("v",)), names)
    assert found.train == {names[1], names[3]}
    assert found.lora == {names[2]}
    assert moves(Recipe(train=("memory", "ffn")), names).empty == (("train", "memory"),)


def test_a_memory_moves_whatever_its_mix_is_called():
    own = {f"model.layers.0.mixer.ttt.{name}" for name in ("q_proj.weight", "net.map_0", "lr_proj.bias", "scale")}
    others = {"model.layers.0.mixer.local.q_proj.weight", "model.layers.0.mixer.ttt_2.q_proj.weight"}
    assert moves(Recipe(freeze=("attention",), train=("memory",)), own | others).train == own


def test_lora_trains_beside_frozen_matrices(tmp_path):
    one = trainer(tmp_path, MIXED, "lora = [q, k, v, o], train = [embedding, norm]")
    before = weights_of(one.model)
    first = one.model(examples().tokens).logits
    for step in range(3):
        one.step(examples(seed=step))
    assert set(one.adapters) == {name for name in before if any(f".{letter}_proj." in name for letter in "qkvo")}
    assert all(torch.equal(before[name], one.model.get_parameter(name)) for name in one.adapters)
    merged = one.weights()
    for name, adapter in one.adapters.items():
        change = merged[name].double() - before[name].double()
        assert change.any()
        assert int(torch.linalg.matrix_rank(change, tol=1e-6)) <= adapter.down.shape[0] == 2
    assert all(torch.equal(before[name], merged.get(name, before[name])) for name in before if ".mlp." in name)
    assert not torch.equal(first, one.model(examples().tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_merged_is_lora_beside_within_the_dtype_s_rounding(dtype):
    """y = W x + s B (A x) against y = W' x, W' = W + s B A rounded once, u the unit roundoff of the dtype.

    Both are compared with exact numbers. A dot product of n terms is off by at most g(n) = n u / (1 - n u) times the sum of
    absolute terms (Higham, Accuracy and stability, 3.5), in whatever order; the weight's own rounding adds u |W'|.
    """
    generator = torch.Generator().manual_seed(0)
    out, inside, rank, scale = 12, 20, 3, 2.0
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    weight, down, up, x = draw(out, inside), draw(rank, inside), draw(out, rank), draw(50, inside)
    merged = Adapter(torch.nn.Parameter(down), torch.nn.Parameter(up), scale).merged(weight)
    w, a, b, z = (tensor.double() for tensor in (weight, down, up, x))
    exact = z @ (w + scale * b @ a).T
    u = torch.finfo(dtype).eps / 2
    gamma = lambda n: n * u / (1 - n * u)  # noqa: E731
    together = F.linear(x, merged).double()
    wide = merged.double().abs()
    assert ((together - exact).abs() <= z.abs() @ wide.T * (gamma(inside + 1) + u * (1 + gamma(inside + 1)))).all()
    beside = (F.linear(x, weight) + scale * F.linear(F.linear(x, down), up)).double()
    low = z.abs() @ a.abs().T @ b.abs().T * scale
    assert ((beside - exact).abs() <= z.abs() @ w.abs().T * gamma(inside + 2) + low * gamma(inside + rank + 5)).all()
    assert not torch.equal(merged, weight)


def test_what_lora_cannot_stand_beside_is_said(tmp_path):
    two = GATED.replace("conv(2) +", "conv(2) + conv(3) +")
    one = trainer(tmp_path, two, "lora = [attention, norm, router]")
    own = ("conv.conv.weight", "conv_2.conv.weight", "persistent_window.persistent_key")
    names = ", ".join(f"model.layers.1.mixer.{name}" for name in own)
    assert one.decisions == [
        "`lora` of the recipe names `router`, which this model has not",
        "`lora` of the recipe names `norm`, which has no matrix of a linear map: it stays as it is",
        f"no LoRA beside {names} and 1 more: what is no linear map stays as it is",
    ]
    assert trainer(tmp_path, GATED, "lora = [q], freeze = [norm]").decisions == []


def test_lora_of_a_tied_embedding_changes_head_and_embedding_alike(tmp_path):
    head = f"{HEAD}, tie = true"
    one = trainer(tmp_path, MIXED, "lora = [embedding]", head, dtype=torch.float64)
    first = one.model(examples().tokens).logits
    for step in range(2):
        one.step(examples(seed=step))
    beside = one.model(examples().tokens).logits
    merged = attnc.load(built(MIXED, head), dtype=torch.float64)
    with torch.no_grad():
        merged.get_parameter("model.embed_tokens.weight").copy_(one.weights()["model.embed_tokens.weight"])
    scale = (first - beside).abs().max()
    assert scale > 1e-3
    assert (merged(examples().tokens).logits - beside).abs().max() < 1e-12 * scale / 1e-3


# ---- loss ------------------------------------------------------------------------------------------------------------


def test_lm_is_the_mean_cross_entropy_of_what_is_asked(tmp_path):
    one = trainer(tmp_path, accumulate=2, batch=1)
    batch = examples()
    batch.targets[0, 3:] = -100
    logits = one.model(batch.tokens).logits.detach()
    found, loss, _ = one.step(batch)
    asked = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    assert loss == found["lm"] == pytest.approx(float(asked), rel=1e-6)


@pytest.mark.parametrize("estimator", ["gumbel", "straight_through"])
def test_a_lagrangian_brings_the_share_of_sparse_choices_to_its_target(estimator, tmp_path):
    recipe = "freeze = [all], train = [router], loss = [lm, lagrangian(sparsity = 20%)]"
    layers = ROUTED.format(more=f", estimator = {estimator}")
    one = trainer(tmp_path, layers, recipe, lr=0.1, steps=30)
    shares = [one.step(examples(rows=4, seed=step % 4))[0]["lagrangian"] for step in range(30)]
    assert abs(shares[0] - 0.5) < 0.2, "a router begins undecided"
    assert abs(sum(shares[-10:]) / 10 - 0.2) < 0.08
    assert float(one.objective.multiplier) != 0


def test_the_share_of_sparse_choices_is_what_a_router_chooses():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert terms.sparse_share([logits], [(1, 2)], ["straight_through"]) == 0.5
    expected = F.softmax(logits, dim=-1)[:, 1:].sum(-1).mean()
    assert torch.equal(terms.sparse_share([logits], [(1, 2)], ["gumbel"]), expected)
    generator = torch.manual_seed(0)
    noisy = logits - torch.empty(20000, 2, 3).exponential_(generator=generator).log()
    drawn = (noisy.argmax(-1) > 0).float().mean()
    assert abs(drawn - expected) < 4 * math.sqrt(0.25 / 40000), "Gumbel noise draws from the softmax"


def test_routers_draw_noise_while_training_and_get_gradients(tmp_path):
    one = trainer(tmp_path, ROUTED.format(more=", estimator = gumbel"))
    tokens = examples(rows=8).tokens
    assert not torch.equal(one.model(tokens).logits, one.model(tokens).logits)
    quiet = trainer(tmp_path, ROUTED.format(more=", estimator = straight_through"))
    assert torch.equal(quiet.model(tokens).logits, quiet.model(tokens).logits)
    quiet.step(examples())
    assert quiet.model.get_parameter("model.layers.1.self_attn.router.weight").grad.any()


# ---- distill, teacher ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["kl", "mse", "hidden", "attention"])
def test_a_distance_is_zero_for_an_identical_student_alone(word, tmp_path):
    one = trainer(tmp_path, "all: full", f"distill = [{word}], teacher = full", lr=3e-3, clip=0.0, decay=0.0)
    loss = one.loss(examples())
    assert loss == 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in one.moving.values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    values = [one.step(examples())[0][word] for _ in range(8)]
    assert 0 < values[-1] < 0.8 * values[0], "the student learns from its teacher"


def test_distances_are_those_of_the_two_models_and_are_weighed(tmp_path):
    recipe = (
        "loss = [lm], distill = [kl(weight = 2), mse(weight = 3), hidden(weight = 5), attention(weight = 7)], teacher = full"
    )
    layers = "0: heads { 0: full, 1: sink(1) | window(3) }, 1: window(5)"
    one = trainer(tmp_path, layers, recipe, dtype=torch.float64)
    plain = attnc.load(built("all: full"), dtype=torch.float64)
    plain.load_state_dict(one.model.state_dict())
    batch = examples()
    ours, theirs = (captured(model, batch.tokens) for model in (one.model, plain))
    found, loss, _ = one.step(batch)
    logp, logq = (F.log_softmax(logits, -1) for logits, _, _ in (ours, theirs))
    maps = [(x - y).square().sum(-1).mean() for x, y in zip(ours[2], theirs[2], strict=True)]
    right = {
        "lm": F.cross_entropy(ours[0].flatten(0, 1), batch.targets.flatten()),
        "kl": F.kl_div(logp, logq, log_target=True, reduction="none").sum(-1).mean(),
        "mse": F.mse_loss(ours[0], theirs[0]),
        "hidden": torch.stack([F.mse_loss(x, y) for x, y in zip(ours[1], theirs[1], strict=True)]).mean(),
        "attention": torch.stack(maps).mean(),
    }
    assert found == {word: pytest.approx(float(value), rel=1e-9) for word, value in right.items()}
    weights = {"lm": 1, "kl": 2, "mse": 3, "hidden": 5, "attention": 7}
    assert loss == pytest.approx(sum(weights[word] * float(value) for word, value in right.items()), rel=1e-6)


def captured(model: torch.nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Logits, layers' outputs, attention maps [S, H, N, N]: the maps by dense masks, apart from the trainer's way to them."""
    layers, inputs = [], []
    handles = [layer.register_forward_hook(lambda _m, _i, y: layers.append(y)) for layer in model.model.layers]
    handles += [l.self_attn.register_forward_pre_hook(lambda _m, i: inputs.append(i[0])) for l in model.model.layers]  # noqa: E741
    logits = model(tokens).logits.detach()
    for handle in handles:
        handle.remove()
    maps = []
    for layer, x in zip(model.model.layers, inputs, strict=True):
        attention = layer.self_attn
        n = tokens.shape[1]
        q, k = (p(x).unflatten(-1, (2, 8)).view(len(tokens), n, 2, 8) for p in (attention.q_proj, attention.k_proj))
        q, k = (turned(y).transpose(1, 2) for y in (q, k))
        i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
        groups = [group for group in attention.mixes[0].variants[0].groups for _ in range(group.first, group.last + 1)]
        seen = torch.stack([group.visible(i, j, n) for group in groups])
        maps.append((q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(~seen, -math.inf).softmax(-1).detach())
    return logits, [y.detach() for y in layers], maps


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions, half-split, of x [S, N, H, 8]."""
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * 10000.0 ** (-torch.arange(4, dtype=x.dtype) / 4)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def test_the_teacher_keeps_the_weights_that_training_began_with(tmp_path):
    one = trainer(tmp_path, MIXED, "distill = [kl], teacher = full, train = [attention]")
    teacher = one.objective.teacher
    before = weights_of(teacher)
    one.step(examples())
    assert all(torch.equal(before[name], weight) for name, weight in teacher.named_parameters())
    assert all(group.near[0].back > 10**6 for mix in teacher.launches() for group in mix.variants[0].groups)
    shared = teacher.get_parameter("lm_head.weight").data_ptr() == one.model.get_parameter("lm_head.weight").data_ptr()
    assert shared, "what does not move is held once"


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ("all: when { length < 8: full, else: window(3) }", 0),
        ("all: heads { 0: sink(1) | window(2), 1: full { rope = none } }", 0),
        ("all: conv(2) + window(4)", 3),
        ("all: gate(window(4), persistent(2) | window(2))", 7),
        (ROUTED.format(more=""), 2),
    ],
)
def test_a_teacher_has_the_student_s_weights_but_those_of_what_is_left_out(layers, left, tmp_path):
    one = trainer(tmp_path, layers, "distill = [kl], teacher = full")
    mine, theirs = weights_of(one.model), weights_of(one.objective.teacher)
    assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())
    assert len(mine) - len(theirs) == left * (1 if left == 2 else 2), sorted(set(mine) - set(theirs))


# ---- randomize -------------------------------------------------------------------------------------------------------

BUDGETS = "0: heads { 0: sink(budget(0..4, default = 1)) | window(budget(2..9, default = 4)), 1: full }, 1: full"


def test_budgets_are_drawn_anew_every_step_within_their_ranges(tmp_path):
    one = trainer(tmp_path, BUDGETS, "randomize = budgets")
    drawn = []
    for step in range(12):
        one.step(examples(seed=step))
        (variant,) = one.model.model.layers[0].self_attn.mixes[0].variants
        drawn.append((variant.groups[0].sink, variant.groups[0].near[0].back + 1))
    sinks, windows = (set(values) for values in zip(*drawn, strict=True))
    assert sinks <= set(range(5))
    assert windows <= set(range(2, 10))
    assert len(sinks) > 2
    assert len(windows) > 3


def test_a_drawn_budget_is_the_model_that_would_be_built_with_it(tmp_path):
    one = trainer(tmp_path, BUDGETS, "randomize = budgets", dtype=torch.float64)
    tokens = examples().tokens
    for step in range(3):
        values = one.budgets.draw(step)
        layers = BUDGETS.replace("budget(0..4, default = 1)", str(values[0])).replace(
            "budget(2..9, default = 4)", str(values[1])
        )
        fixed = attnc.load(built(layers), dtype=torch.float64)
        for way in ("torch", "reference"):
            assert torch.equal(one.model.use(way)(tokens).logits, fixed.use(way)(tokens).logits), (way, values)


def test_budgets_of_each_head_and_layer_are_drawn_apart(tmp_path):
    layers = "all: window(budget(2..60, default = 4, per = {per}))"
    backs = {}
    for per in ("head", "layer"):
        one = trainer(tmp_path / per, layers.format(per=per), "randomize = budgets")
        one.step(examples())
        found = [one.model.model.layers[at].self_attn.mixes[0].variants[0].groups for at in (0, 1)]
        backs[per] = [[group.near[0].back for group in groups for _ in range(group.first, group.last + 1)] for groups in found]
    assert len({back for layer in backs["head"] for back in layer}) == 4
    assert len({back for layer in backs["layer"] for back in layer}) == 2
    assert all(len(set(layer)) == 1 for layer in backs["layer"])


def test_what_content_chooses_is_drawn_and_compared_too(tmp_path):
    layers = "all: block_local(4) | routed(blocks(4), top_k = budget(1..3, default = 2), keys = mean, per = head)"
    one = trainer(tmp_path, layers, "distill = [attention], teacher = full, randomize = budgets")
    drawn, distances = set(), []
    for step in range(6):
        distances.append(one.step(examples(length=20, seed=step))[0]["attention"])
        (variant,) = one.model.model.layers[1].self_attn.mixes[0].variants
        drawn |= {selector.top_k for group in variant.groups for selector in group.choices}
    assert len(drawn) > 1
    assert drawn <= {1, 2, 3}
    assert max(distances) > 0


def test_lengths_and_temperatures_are_drawn_too(tmp_path):
    layers = "0: when { length < budget(4..40, default = 20): full, else: window(2) }"
    layers += ", 1: full { temperature = budget(0.5..1, default = 0.8) }"
    one = trainer(tmp_path, layers, "randomize = budgets")
    limits, scales = set(), set()
    for step in range(6):
        one.budgets.draw(step)
        limits |= {guard.right for variant in one.model.model.layers[0].self_attn.mixes[0].variants for guard in variant.guards}
        scales.add(one.model.model.layers[1].self_attn.mixes[0].scale)
    assert len(limits) > 2
    assert len(scales) == 6
    assert all(8**-0.5 <= scale <= 2 * 8**-0.5 for scale in scales)


def test_flex_attention_is_left_where_every_draw_would_be_compiled():
    model = lambda planned: SimpleNamespace(providers={"cuda": {"Window": {"train": planned}}})  # noqa: E731
    assert compiles_numbers(model("flex"), "cuda")
    assert compiles_numbers(model((("torch", 0, 0), ("flex", 1, 3))), "cuda")
    assert not compiles_numbers(model((("torch", 0, 0), ("triton", 1, 3))), "cuda")
    assert not compiles_numbers(model("flex"), "cpu")


# ---- what cannot be carried out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "recipe", "code", "words"),
    [
        (MIXED, "freeze = [all]", "A570", "nothing of this model move"),
        (MIXED, "train = [router]", "A570", "nothing of this model move"),
        (MIXED, "lora = [norm]", "A570", "nothing of this model move"),
        (MIXED, "loss = [lm, lagrangian(sparsity = 50%)]", "A570", "no route per token"),
        (ROUTED.format(more=""), "distill = [attention], teacher = full", "A570", "model.layers.1.self_attn routes tokens"),
        ("0: conv(2), 1: full", "distill = [kl], teacher = full", "A578", "layer 0 has no softmax"),
        ("every(budget(1..2, default = 2)): full, else: window(3)", "randomize = budgets", "A570", "decides shapes or layers"),
    ],
)
def test_a_word_that_cannot_be_carried_out_stops_the_run(layers, recipe, code, words, tmp_path):
    with pytest.raises(SpecError) as caught:
        trainer(tmp_path, layers, recipe)
    (diagnostic,) = caught.value.diagnostics
    assert (diagnostic.code, words in diagnostic.message) == (code, True), diagnostic.message
    assert diagnostic.help
