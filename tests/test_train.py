"""`attnc train`: runs that are killed, resumed, diverge or do not fit; what they leave, and what they say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training import HEAD, built, examples, settings, text_of, trainer

import attnc
from attnc import cli
from attnc.dsl import SpecError
from attnc.tasks.copying import Copy
from attnc.train import checkpoint, plot, schedule
from attnc.train import run as running
from attnc.train.report import TrainReport

TASK = ("--task", "copy", "--set", "items=3", "--length", "12", "--batch", "2", "--lr", "0.01")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of its own, with the files of one that was built."""
    attnc.load(built())  # compiled once, and copied so
    shutil.copytree(built(), tmp_path / "model")
    return tmp_path / "model"


def trained(folder: Path, **changes: object) -> TrainReport:
    return running.train(folder, settings(**changes), Copy(items=3), lambda _: None, lambda _: None)


def resumed(folder: Path, **changes: object) -> TrainReport:
    return running.resume(folder, changes, lambda _: Copy(items=3), lambda _: None, lambda _: None)


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_weights_that_the_folder_takes(folder, attnc_run):
    before = load_file(folder / "model.safetensors")
    needle = ("--task", "needle", "--length", "12", "--lr", "0.01")
    code, out, err = attnc_run("train", folder, *needle, "--steps", "40", "--every", "20", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["last"]["lm"] < 0.8 * report["first"]["lm"]
    assert "step 40/40  loss" in err
    assert "tokens/s" in err
    after = load_file(folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {name: tensor.shape for name, tensor in before.items()}
    assert not any(torch.equal(before[name], tensor) for name, tensor in after.items())
    run = folder / "training" / "run-1"
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000020.safetensors", "step-00000040.safetensors"]
    model, tokens = attnc.load(folder), examples().tokens
    kept = attnc.load(folder)
    kept.load_state_dict(load_file(run / "start" / "model.safetensors"))
    assert not torch.equal(model(tokens).logits, kept(tokens).logits)
    assert torch.equal(kept(tokens).logits, attnc.load(built())(tokens).logits), "the first weights are still there"


def test_the_summary_names_what_was_trained_and_where_it_lies(folder, attnc_run):
    code, out, err = attnc_run("train", folder, *TASK, "--steps", "2")
    assert code == 0
    assert out.startswith("trained   ")
    assert f"weights   {folder}/model.safetensors\n" in out
    assert "held out" in out
    assert f"run      {folder}/training/run-1\n" in err
    assert err.endswith(f"next: attnc eval {folder}\n")
    assert attnc_run("train", folder, *TASK, "--steps", "2")[0] == 0
    assert (folder / "training" / "run-2").is_dir(), "a second run begins from the weights of the first"
    assert (folder / "training" / "run-2" / "start" / "model.safetensors").read_bytes() != bytes_of(built())


@pytest.mark.parametrize(
    ("arguments", "message", "help_line"),
    [
        ([], "--task is missing", "mqar, needle"),
        (["--task", "mqr"], "there is no task mqr", "did you mean `mqar`?"),
        (["--task", "text"], "--task text reads a file", "attnc train DIR FILE"),
        (["nothing.txt", "--task", "text"], "there is no file nothing.txt", "UTF-8"),
        (["pyproject.toml", "--task", "copy"], "reads no file", "--task text"),
        (["--task", "mqar", "--set", "pears=3"], "the task mqar has no setting pears", "it has pairs, power, noise"),
        (["--task", "mqar", "--set", "pairs=many"], "--set pairs=many gives no int", "pairs=8"),
        (["--task", "mqar", "--set", "pairs=0"], "pairs = 0", "1 or more"),
        (["--task", "mqar", "--length", "20"], "length = 20 is too short: 8 pairs", "32 or more"),
        (["--task", "mqar", "--set", "pairs=16"], "a vocabulary of 32 is too small", "34 or more"),
        (["--task", "copy", "--dtype", "float8"], "there is no number type float8", "bfloat16, float32"),
        (["--resume"], "has no run to resume", "leave `--resume` out"),
    ],
)
def test_a_slip_is_a_usage_error_and_leaves_no_run(folder, attnc_run, arguments, message, help_line):
    code, out, err = attnc_run("train", folder, *arguments)
    assert (code, out) == (2, ""), err
    assert message in err
    assert help_line in err
    assert not (folder / "training").exists()


def test_examples_longer_than_the_context_are_refused(tmp_path, attnc_run):
    folder = built(head=f"{HEAD}, context = 64")
    code, _, err = attnc_run("train", folder, "--task", "copy", "--length", "65")
    assert code == 2
    assert "error[A575]: examples of 65 tokens are longer than the model's context of 64" in err
    assert "`--length 64` or less" in err


@pytest.mark.parametrize(
    ("layers", "code", "words"),
    [
        ("all: window(3) { causal = false }", "A566", "copy can be learned"),
        ("all: routed(blocks(4), top_k = 1, keys = mean, queries = block(8)) | block_local(4)", "A301", "would see ahead"),
    ],
)
def test_a_model_that_would_see_what_it_is_to_say_is_not_trained(attnc_run, layers, code, words):
    folder = built(layers)
    status, _, err = attnc_run("train", folder, "--task", "needle", "--length", "12", "--steps", "1")
    assert status in (1, 3)
    assert f"error[{code}]" in err
    assert words in err
    assert not (folder / "training").exists()


# ---- the same run ----------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    route = "0: full, 1: route(per = token, by = router(linear)) { far: full, near: window(3) }"
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shutil.copytree(built(route), tmp_path / name)
        trained(tmp_path / name, steps=3, seed=seed)
        results.append(bytes_of(tmp_path / name))
    assert results[0] == results[1] != results[2]


def test_batches_that_are_accumulated_are_one_batch(tmp_path):
    batch, found = examples(rows=4), []
    batch.targets[1:, 4:] = -100
    for held in (4, 1):
        one = trainer(tmp_path, "all: full", "loss = [lm], distill = [mse], teacher = full", dtype=torch.float64, batch=held)
        with torch.no_grad():
            one.model.get_parameter("lm_head.weight").mul_(2)
        values, loss, norm = one.step(batch)
        found.append((values, loss, norm, one.weights()))
    (values, loss, norm, weights), (*again, others) = found
    assert again == [
        {word: pytest.approx(value, rel=1e-12) for word, value in values.items()},
        pytest.approx(loss),
        pytest.approx(norm),
    ]
    assert all((others[name] - weight).abs().max() < 1e-9 for name, weight in weights.items())


def test_the_gradient_is_clipped_and_the_rate_rises_and_falls(tmp_path):
    one = trainer(tmp_path, clip=0.01, lr=1.0, steps=10, warmup=2)
    norm = one.step(examples())[2]
    assert norm > 0.02
    clipped = torch.stack([weight.grad.norm() for weight in one.moving.values()]).norm()
    assert float(clipped) == pytest.approx(0.01, rel=1e-3)
    rates = [schedule.factor(step, 10, 2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0.1 < rates[-1] < 0.15
    assert one.optimizer.param_groups[0]["lr"] == 0.5


def test_bfloat16_is_autocast_and_weights_stay_exact(tmp_path):
    one = trainer(tmp_path, dtype=torch.float32)
    half = trainer(tmp_path, dtype=torch.float32)
    half.settings = settings(dtype="bfloat16")
    seen = []
    half.model.lm_head.register_forward_hook(lambda _m, _i, y: seen.append(y.dtype))
    losses = [t.step(examples())[1] for t in (one, half)]
    assert seen == [torch.bfloat16]
    assert 0 < abs(losses[0] - losses[1]) < 0.05
    assert {weight.dtype for weight in half.weights().values()} == {torch.float32}


def test_a_compiled_model_is_what_steps_run(tmp_path, monkeypatch):
    calls = []

    def compiled(model):
        return lambda *arguments, **options: (calls.append(1), model(*arguments, **options))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    trainer(tmp_path, compiled=True).step(examples())
    assert calls == [1]
    with pytest.raises(SpecError, match=r"(?s)A570.*--compile"):
        trainer(tmp_path, "all: window(budget(2..5, default = 3))", "randomize = budgets", compiled=True)


def test_the_format_of_weights_stays(tmp_path):
    shutil.copytree(built(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    checkpoint.replace(file, tensors, {"made": "by hand"})
    trained(tmp_path / "model", steps=1)
    with safe_open(file, framework="pt") as found:
        assert found.metadata() == {"made": "by hand"}
        assert all(found.get_tensor(name).dtype == torch.bfloat16 for name in found.keys())  # noqa: SIM118


# ---- killed and resumed ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a process that is killed would not live to see."""


def test_a_run_killed_at_any_point_loses_at_most_an_interval(folder, tmp_path, monkeypatch):
    """Killed around steps and changes of the disk, and halfway through a file; resumed, all runs end with the same bits."""
    points: list[str] = []
    clock = {"end": -1, "steps": 0}

    def tick(name):
        if len(points) == clock["end"]:
            raise Killed
        points.append(name)

    def deadly(function, name):
        def wrapped(*arguments, **options):
            tick(name)
            if name == "save_file" and len(points) == clock["end"]:
                Path(arguments[1]).write_bytes(b"half a file")
            tick(f"within {name}")
            result = function(*arguments, **options)
            clock["steps"] += name == "step"
            tick(f"after {name}")
            return result

        return wrapped

    for owner, name in ((os, "replace"), (os, "link"), (checkpoint, "save_file"), (Path, "unlink"), (running.Trainer, "step")):
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name), name))
    whole, place = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(folder, whole)
    trained(whole, steps=5)
    ends = sorted({*range(0, len(points), 7), *(at for at, name in enumerate(points) if name == "within save_file")})
    assert len(ends) > 10
    resumed_from = []
    for end in ends:
        shutil.copytree(folder, place)
        points.clear()
        clock |= {"end": end, "steps": 0}
        with pytest.raises(Killed):
            trained(place, steps=5)
        clock["end"] = -1
        load_file(place / "model.safetensors")  # whatever happened, it is whole
        runs, steps = running.folder.runs(place), clock["steps"]
        if runs:
            report = resumed(place)
            assert steps - (report.resumed or 0) <= settings().every
            assert bytes_of(place) == bytes_of(whole)
            resumed_from.append(report.resumed or 0)
        shutil.rmtree(place)
    assert resumed_from == sorted(resumed_from)
    assert set(resumed_from) == {0, 2, 4, 5}


def test_a_process_killed_by_the_system_is_resumed(folder, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    arguments = ["--task", "copy", "--set", "items=3", "--length", "12", "--batch", "2", "--steps", "20000", "--every", "5"]
    child = subprocess.Popen(
        [sys.executable, "-m", "attnc", "train", str(folder), *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    run = folder / "training" / "run-1"
    deadline = time.monotonic() + 120
    while not (run.is_dir() and checkpoint.steps(run)):
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert bytes_of(folder) == bytes_of(built())
    seen = checkpoint.steps(run)[-1]
    assert seen % 5 == 0
    assert cli.invoke(["train", str(folder), "--resume", "--steps", str(seen + 7)]) == 0
    tensors, _ = checkpoint.load(checkpoint.path_of(run, seen + 7))
    assert tensors["history"].shape == (seen + 7, 2)


def test_an_interrupt_keeps_every_step_that_was_done(folder, attnc_run, monkeypatch):
    step = running.Trainer.step

    def interrupted(self, *arguments):
        result = step(self, *arguments)
        if self.done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(running.Trainer, "step", interrupted)
    code, _, err = attnc_run("train", folder, *TASK, "--steps", "6")
    assert code == 130
    assert "stopped after step 3" in err
    assert checkpoint.steps(folder / "training" / "run-1") == [3]
    monkeypatch.setattr(running.Trainer, "step", step)
    assert attnc_run("train", folder, "--resume")[0] == 0


def test_a_resumed_run_is_the_same_run_or_says_why_not(folder, attnc_run):
    assert attnc_run("train", folder, *TASK, "--steps", "3", "--every", "2")[0] == 0
    code, _, err = attnc_run("train", folder, "--resume", "--length", "16")
    assert code == 2
    assert "error[A577]: run-1 was begun with length 12, not 16" in err
    assert attnc_run("train", folder, "--resume", "--steps", "4", "--lr", "0.001")[0] == 0
    run = folder / "training" / "run-1"
    assert json.loads((run / "run.json").read_text())["lr"] == 0.001
    newest = checkpoint.path_of(run, 4)
    newest.write_bytes(newest.read_bytes()[:1000])
    code, _, err = attnc_run("train", folder, "--resume")
    assert code == 1
    assert "error[A573]: step-00000004.safetensors is no checkpoint" in err
    newest.unlink()
    assert attnc_run("train", folder, "--resume")[0] == 0, "the one before was kept"
    (folder / "spec.attn").write_text((folder / "spec.attn").read_text().replace("window(4)", "window(5)"))
    code, _, err = attnc_run("train", folder, "--resume")
    assert code == 1
    assert "error[A572]: step-00000004.safetensors belongs to another spec" in err


# ---- bad luck --------------------------------------------------------------------------------------------------------


def test_a_diverging_loss_names_layer_and_step_and_keeps_the_last_good_checkpoint(folder, attnc_run):
    before = bytes_of(folder)
    code, _, err = attnc_run("train", folder, *TASK, "--steps", "30", "--every", "1", "--lr", "1e30", "--warmup", "0")
    assert code == 1
    assert "error[A571]: the loss is nan in step 2: the first activation that is not finite is in " in err
    assert bytes_of(folder) == before
    assert checkpoint.steps(folder / "training" / "run-1") == []
    assert "lower `--lr`" in err


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (
            lambda model: model.layers[1].mlp.up_proj.weight.data.fill_(1e38),
            "the first activation that is not finite is in layer 1: model.layers.1.mlp",
        ),
        (
            lambda model: model.norm.weight.data.fill_(float("nan")),
            "the last norm holds a weight that is not finite: model.norm.weight",
        ),
    ],
)
def test_the_place_of_the_first_number_that_is_not_finite_is_named(tmp_path, spoil, where):
    one = trainer(tmp_path)
    before = {name: weight.clone() for name, weight in one.model.named_parameters()}
    spoil(one.model.model)
    with pytest.raises(SpecError, match=f"A571.*in step 1: {where}"):
        one.step(examples())
    assert one.done == 0
    assert torch.equal(before["lm_head.weight"], one.model.lm_head.weight)


def test_a_gradient_that_is_not_finite_is_found_on_its_way_back(tmp_path):
    one = trainer(tmp_path)
    layer = one.model.model.layers[0]
    layer.register_forward_hook(
        lambda _m, _i, y: torch.where(y == y, y, (y * 0).sqrt()) + (y.detach() * 0 + (y * 0).abs().sqrt())
    )
    with pytest.raises(SpecError, match=r"A571.*the first gradient that is not finite is in layer 0: model.layers.0"):
        one.step(examples())


def test_an_error_that_is_not_about_memory_stays_as_it_is(tmp_path, monkeypatch):
    one, error = trainer(tmp_path), RuntimeError("sizes differ")

    def wrong(*_arguments):
        raise error

    monkeypatch.setattr(one, "objective", wrong)
    with pytest.raises(RuntimeError) as caught:
        one.step(examples())
    assert caught.value is error


@pytest.mark.parametrize("batch", [2, 1])
def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, batch):
    one = trainer(tmp_path, batch=batch, accumulate=3)

    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(one, "objective", full)
    with pytest.raises(SpecError) as caught:
        one.step(examples())
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "A576"
    assert ("--batch 1 --accumulate 6" if batch == 2 else "lower `--length` below 12") in diagnostic.help


def test_a_reduced_folder_has_a_teacher_and_one_whose_spec_was_changed_has_none(tmp_path, attnc_run):
    (tmp_path / "big.attn").write_text(
        text_of("all: full", "distill = [kl], teacher = full", HEAD.replace("layers = 2", "layers = 3"))
    )
    assert attnc_run("build", tmp_path / "big.attn", "-o", tmp_path / "small", "--init", "0", "--reduce")[0] == 0
    assert attnc_run("train", tmp_path / "small", *TASK, "--steps", "1")[0] == 0
    text = (tmp_path / "small/spec.attn").read_text()
    (tmp_path / "small/spec.attn").write_text(text.replace("swiglu(", "swiglu(2"))
    code, _, err = attnc_run("train", tmp_path / "small", *TASK, "--steps", "1")
    assert code == 1
    assert "error[A578]: the recipe's `teacher` needs the spec that was built" in err


# ---- the picture -----------------------------------------------------------------------------------------------------


def test_the_line_of_the_picture_is_a_mean():
    assert plot.smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert plot.smooth([2.0], 5) == [2.0]


def test_a_run_leaves_a_picture_of_its_losses(folder, attnc_run):
    assert attnc_run("train", folder, *TASK, "--steps", "3")[0] == 0
    assert (folder / "training" / "run-1" / "loss.png").read_bytes().startswith(b"\x89PNG")
