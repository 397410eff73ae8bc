"""Reading weights with exact complaints, and starting them from a seed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attnc.runtime.layers import RMSNorm
from attnc.runtime.weights import CODES, WeightsError, load_weights, started


class Small(nn.Module):
    def __init__(self, tie=False, flip=False):
        super().__init__()
        parts = {
            "embed": nn.Embedding(5, 4),
            "norm": RMSNorm(4, 1e-6, centre=1),
            "layer": nn.LayerNorm(4),
            "out": nn.Linear(4, 3),
        }
        for name in reversed(parts) if flip else parts:
            setattr(self, name, parts[name])
        self.lm_head = nn.Linear(4, 5, bias=False)
        self.sink_logit = nn.Parameter(torch.randn(2))
        if tie:
            self.lm_head.weight = self.embed.weight


def tensors(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_was_saved_is_loaded_into_any_float_dtype(tmp_path, device, dtype):
    source = Small()
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    whole = tensors(source)
    save_file({"embed.weight": whole.pop("embed.weight")}, first)
    save_file(whole, second)
    with torch.device(device):
        model = Small().to(dtype)
    load_weights(model, [first, second], dtype=dtype)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(dtype)), name
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(p.requires_grad for p in model.parameters())


def test_the_dtype_of_a_file_is_kept_where_none_is_asked_for(tmp_path):
    save_file({name: value.half() for name, value in tensors(Small()).items()}, tmp_path / "w.safetensors")
    with torch.device("meta"):
        model = Small()
    load_weights(model, tmp_path / "w.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("left_out", ["lm_head.weight", "embed.weight"])
def test_one_name_of_tied_tensors_is_enough_and_they_stay_tied(tmp_path, device, left_out):
    whole = tensors(Small(tie=True))
    wanted = whole["embed.weight"]
    del whole[left_out]
    save_file(whole, tmp_path / "w.safetensors")
    with torch.device(device):
        model = Small(tie=True)
    load_weights(model, tmp_path / "w.safetensors")
    assert model.lm_head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, wanted)


def test_tied_tensors_that_differ_are_refused(tmp_path):
    whole = tensors(Small(tie=True))
    save_file(whole, tmp_path / "same.safetensors")
    load_weights(Small(tie=True), tmp_path / "same.safetensors")
    whole["lm_head.weight"] = whole["lm_head.weight"] + 1
    save_file(whole, tmp_path / "w.safetensors")
    model = Small(tie=True)
    before = tensors(model)
    with pytest.raises(WeightsError, match=r"embed\.weight and lm_head\.weight") as caught:
        load_weights(model, tmp_path / "w.safetensors")
    assert caught.value.code == "A547"
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def bad(change):
    def make(path):
        whole = tensors(Small())
        change(whole)
        save_file(whole, path)

    return make


def truncated(path):
    save_file(tensors(Small()), path)
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: None, "A541", ["w.safetensors"]),
        (lambda path: path.write_bytes(b""), "A542", ["w.safetensors"]),
        (lambda path: path.write_bytes(bytes(range(256))), "A542", ["w.safetensors"]),
        (truncated, "A542", ["w.safetensors"]),
        (bad(lambda w: (w.pop("out.bias"), w.pop("embed.weight"))), "A543", ["embed.weight", "out.bias"]),
        (bad(lambda w: w.update(extra=torch.zeros(1))), "A544", ["extra"]),
        (bad(lambda w: w.update({"out.weight": torch.zeros(4, 3)})), "A545", ["out.weight is [4, 3]", "has [3, 4]"]),
        (
            bad(lambda w: w.update({"out.bias": torch.zeros(3, dtype=torch.int64)})),
            "A546",
            ["out.bias holds I64", "torch.float32"],
        ),
    ],
)
def test_weights_that_do_not_fit_name_what_does_not_and_change_nothing(tmp_path, make, code, words):
    path = tmp_path / "w.safetensors"
    make(path)
    model = Small()
    before = tensors(model)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert caught.value.code == code
    for word in [*words, CODES[code][0]]:
        assert word in str(caught.value)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_name_in_two_files_is_refused(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_file(tensors(Small()), path)
    with pytest.raises(WeightsError, match="and again in") as caught:
        load_weights(Small(), paths)
    assert caught.value.code == "A544"


def test_a_complaint_lists_some_names_and_counts_the_rest(tmp_path):
    whole = tensors(Small()) | {f"extra.{n:02}": torch.zeros(1) for n in range(20)}
    save_file(whole, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"extra\.07 and 12 more") as caught:
        load_weights(Small(), tmp_path / "w.safetensors")
    assert len(caught.value.names) == 20


def test_a_start_depends_on_the_name_and_the_seed_alone():
    one = started("a.weight", (300, 300), (0.0, 0.02), 7)
    torch.randn(3)
    assert torch.equal(one, started("a.weight", (300, 300), (0.0, 0.02), 7))
    assert not torch.equal(one, started("b.weight", (300, 300), (0.0, 0.02), 7))
    assert not torch.equal(one, started("a.weight", (300, 300), (0.0, 0.02), 8))
    assert abs(one.std().item() - 0.02) < 0.001
    assert abs(one.mean().item()) < 0.001
    assert started("a.weight", (3,), 5.0, 7).tolist() == [5.0] * 3
