"""`attnc eval`: what it measures is what it says, whichever way a model reads, and what cannot be measured is an error."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

import attnc
from attnc.cli import invoke
from attnc.cli.evaluate import table
from attnc.compiler.data import from_json
from attnc.dsl import SpecError
from attnc.evaluate import asking, intervals, subject
from attnc.evaluate.report import Depth, EvalReport, Loss, Share
from attnc.evaluate.run import DEPTHS, Options, evaluate
from attnc.evaluate.subject import Subject, enough_memory
from attnc.evaluate.tokenizer import FolderTokenizer
from attnc.tasks.examples import NOT_ASKED, UNSEEN, Examples
from attnc.tasks.passkeys import Passkey
from attnc.tasks.recall import Mqar
from attnc.tasks.text import Text, topics, windows

SPEC = """model tiny {{
  vocab = {vocab}, dim = 16, layers = 2, ffn = swiglu(32), norm = rms(1e-6), context = 192
  heads = 2, kv_heads = 2, rope = 10000{more}
}}
layers {{ 0: {mixer}, 1: full }}
"""
MODELS = {
    "tokens": (64, "sink(2) | window(8)", ""),
    "bytes": (256, "sink(2) | window(8)", ""),
    "long": (64, "when { length < 40: window(8), else: full }", ""),
    "both": (64, "full", ", causal = false"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Built models by their names, each built once."""
    made = {}

    def find(name):
        if name not in made:
            vocab, mixer, more = MODELS[name]
            made[name] = tmp_path_factory.mktemp("built") / name
            attnc.build(attnc.check(SPEC.format(vocab=vocab, mixer=mixer, more=more)), made[name], init=0)
        return made[name]

    return find


@pytest.fixture
def asked(folder):
    """A model, ready to be asked; in float64, so that only what is wrong differs."""
    return lambda name: Subject.of(folder(name), "cpu", torch.float64, reference=False)


def quiet(*_):
    """Hears of progress."""


def run(model, **options):
    return evaluate(model, Options(**options), quiet).rows


@pytest.fixture
def said(capsys):
    """Runs `attnc eval`: (exit code, stdout, stderr)."""

    def run_command(*words):
        code = invoke(["eval", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.mark.parametrize("name", ["bytes", "long"])
def test_the_loss_is_that_of_the_whole_text_read_at_once(asked, monkeypatch, name):
    model = asked(name)
    monkeypatch.setattr(subject, "LOGITS", 1)
    monkeypatch.setattr(subject, "LEAST", 20)
    form = "bytes" if name == "bytes" else "tokens"
    text = Text("a text", "Somewhere, somehow, somebody. " * 10 if form == "bytes" else "\x01\x02\x03\x0f\x20?" * 50)
    found = asking.losses(model, model.tokenizer("bytes"), text, 48, 100, 4, quiet)
    assert model.read == ("chunks" if name == "bytes" else "whole")
    tokens = torch.tensor(list(text.source.encode()))
    starts = range(0, len(tokens) - 1, 48)
    truth = []
    for start in starts:
        part = tokens[start : start + 49]
        with torch.no_grad():
            logits = model.model(part[None, :-1]).logits[0]
        truth.append(float(F.cross_entropy(logits, part[1:], reduction="sum")))
    assert [count for _, count in found] == [min(48, len(tokens) - 1 - start) for start in starts]
    assert [nats for nats, _ in found] == pytest.approx(truth, rel=1e-12)


def test_the_same_question_gives_the_same_answer_and_says_what_it_asked(asked):
    model = asked("bytes")
    rows = run(model, tasks=("nll",), lengths=(32, 64), trials=5)
    assert rows == run(model, tasks=("nll",), lengths=(32, 64), trials=5)
    assert [(row.length, row.windows, row.tokens) for row in rows] == [(32, 5, 160), (64, 5, 320)]
    for row in rows:
        assert row.sha256 == topics().digest()
        assert row.low < row.value < row.high
        assert row.perplexity == math.exp(row.value)
        assert row.cache_bytes == model.model.new_cache(1, row.length).bytes()
    assert abs(rows[0].value - math.log(256)) < 0.5, "random weights know nothing"
    one, other = (run(model, tasks=("passkey",), form="tokens", lengths=(64,), trials=5, batch=batch) for batch in (1, 5))
    assert one == other


@pytest.mark.parametrize(("task", "length"), [("mqar", 64), ("copy", 64), ("needle", 24)])
def test_random_weights_answer_by_chance(asked, task, length):
    (row,) = run(asked("tokens"), tasks=(task,), lengths=(length,), trials=300, batch=100)
    assert row.asked == 300 * {"mqar": 8, "copy": 16, "needle": 1}[task]
    assert row.value < 2 * row.chance
    assert row.low <= 1 / 64, "any of 64 tokens"
    assert row.trials <= row.effective <= row.asked


def test_every_right_answer_is_counted_and_no_other(asked, monkeypatch):
    model = asked("tokens")
    examples = Mqar(pairs=4).batch(0, UNSEEN, 12, 40, 64)
    wrong = examples.targets.clone()
    places = (wrong != NOT_ASKED).nonzero()
    for row, place in places[::3].tolist():  # a third of the answers is another token
        wrong[row, place] = (wrong[row, place] + 1) % 64

    def logits(tokens):
        at = next(start for start in range(0, 12, 4) if torch.equal(tokens, examples.tokens[start : start + 4]))
        made = F.one_hot(wrong[at : at + 4].clamp(min=0), 64).double()
        yield from ((0, made[:, :25]), (25, made[:, 25:]))

    monkeypatch.setattr(Subject, "logits", lambda _, tokens: logits(tokens))
    found = asking.read(model, examples, 4, quiet)
    assert [count for _, count in found] == [4] * 12
    assert sum(right for right, _ in found) == 48 - 16


def test_answers_are_decoded_one_by_one_with_the_cache(asked):
    model = asked("tokens")
    examples = Passkey(digits=3).batch(0, UNSEEN, 6, 40, 64)
    read = examples.tokens[:, : 40 - 3 + 1]
    best = []
    for _ in range(3):  # without a cache, the whole text anew for each token
        with torch.no_grad():
            best.append(model.model(torch.cat([read, *best], dim=1)).logits[:, -1:].argmax(-1))
    decoded = torch.cat(best, dim=1)
    targets = examples.targets.clone()
    targets[:, -3:] = decoded
    targets[1, -1] = (targets[1, -1] + 1) % 64
    targets[4, -3] = (targets[4, -3] + 1) % 64
    found = asking.decode(model, Examples(examples.tokens, targets), 4, quiet)
    assert found == [True, False, True, True, False, True]


def test_prompts_of_several_lengths_are_answered_as_each_alone(asked):
    model = asked("bytes")
    prompts = [list(b"What is it?"), list(b"Who"), list(b"A longer question, and then the end.")]
    together = asking._decoded(model, prompts, [3, 5, 4], 3, quiet)
    alone = [asking._decoded(model, [one], [5], 1, quiet)[0] for one in prompts]
    assert together == [row[:count] for row, count in zip(alone, (3, 5, 4), strict=True)]


def test_intervals_cover_what_they_claim():
    assert intervals.wilson(0.0, 10) == pytest.approx((0, 0.27753), abs=1e-4)
    assert intervals.wilson(0.5, 40) == pytest.approx((0.35200, 0.64800), abs=1e-4)
    draw = random.Random(0)
    shares, means = 0, 0
    for _ in range(1000):  # trials of 8 questions, which are more alike within a trial
        right = [sum(draw.random() < level for _ in range(8)) for level in (draw.choice((0.4, 0.8)) for _ in range(60))]
        number = intervals.effective(right, [8] * 60)
        low, high = intervals.wilson(sum(right) / 480, number)
        shares += low <= 0.6 <= high
        low, high = intervals.mean(right, [8] * 60)
        means += low <= 0.6 <= high
    assert 930 <= shares <= 970
    assert 925 <= means <= 970
    assert intervals.effective([8] * 20, [8] * 20) == 20, "nothing is known of how questions go together"
    assert intervals.effective([4] * 20, [8] * 20) == 160
    assert intervals.mean([3.0], [2]) is None


def test_the_command_gives_a_row_for_each_task_length_and_number_of_pairs(folder, said):
    words = ("--task", "mqar,needle,passkey,multikey,copy", "--length", "40,64", "--pairs", "4,8", "--trials", 10, "--json")
    status, out, err = said(folder("tokens"), *words, "--no-noise")
    assert (status, err) == (0, "")
    report = from_json(EvalReport, out)
    assert (report.schema_version, report.context, len(report.rows)) == (1, 192, 12)
    assert [row.settings["pairs"] for row in report.rows if row.task == "mqar"] == [4, 8, 4, 8]
    for row in report.rows:
        assert row.depths == () or [sum(row.right for row in row.depths), len(row.depths)] == [row.right, 5]
    assert json.loads(out)["rows"][0]["settings"] == {"pairs": 4, "power": 0.01, "noise": False}
    assert repr(report.rows[0].settings) == repr({"pairs": 4, "power": 0.01, "noise": False}), "read back as it was written"


def test_the_table_reads_well(golden, capsys):
    depths = tuple(Depth(depth=depth, right=right, trials=8) for depth, right in zip(DEPTHS, (8, 8, 5, 7, 8), strict=True))
    sizes = {"length": 512, "read": "chunks", "cache_bytes": 2**20}
    share = Share(
        task="passkey", form="text", settings={}, value=0.9, low=0.769, high=0.96, effective=40.0, right=36, asked=40,
        trials=40, chance=1 / 90000, depths=depths, **sizes,
    )  # fmt: skip
    more = {"task": "mqar", "form": "tokens", "settings": {"pairs": 16}, "asked": 640, "depths": (), "effective": 99.0}
    loss = Loss(form="text", value=2.6415, low=2.461, high=2.822, perplexity=14.03, windows=40, tokens=20480, text="a text",
                sha256="58c767908c8909b1" * 4, **sizes)  # fmt: skip
    report = EvalReport(
        folder="out", name="tiny", context=None, parameters=12345, device="cpu", dtype="float32", seed=0, batch=8, torch="2",
        attnc="1", rows=(loss, share, replace(share, **more), replace(loss, low=None, high=None)),
    )  # fmt: skip
    table(report)
    golden("table.txt", capsys.readouterr().out)


def test_a_model_of_bytes_is_asked_about_text(folder, said, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("naïve " * 50, "utf-8")
    status, out, err = said(folder("bytes"), "--task", "nll", "--text", path, "--length", "100", "--batch", 2)
    assert (status, err) == (0, "")
    assert [line.split()[:4] for line in out.split("\n") if line.startswith("nll ")] == [["nll", "bytes", "100", "4"]]
    assert f"{path}, SHA-256 " in out


@pytest.mark.parametrize(
    ("model", "words", "code", "message"),
    [
        ("tokens", "--length 193", 2, r"error[A563]: 193 tokens are more than the context of tiny, 192"),
        ("tokens", "--task nll", 2, "error[A564]: "),
        ("tokens", "--task mqar --length 20", 2, "A560: length = 20 is too short: 8 pairs"),
        ("tokens", "--task mqar --pairs 40", 2, "A560: a vocabulary of 64 is too small: 40 keys"),
        ("tokens", "--task nll --as bytes", 1, "error[A567]: the tokenizer gives token"),
        ("bytes", "--task passkey", 2, "A560: length = 192 is too short: the prompt takes "),
        ("both", "--task needle", 1, "error[A566]: needle cannot be asked: later tokens reach earlier places"),
        ("both", "--task nll --as bytes", 1, "error[A566]: nll cannot be asked"),
        ("bytes", "--task nll --text wrong.txt", 1, "error[A561]: byte 3 of wrong.txt is no UTF-8: 0xff"),
        ("bytes", "--task nll --text empty.txt", 1, "error[A562]: empty.txt holds no text"),
        ("bytes", "--task nll --text short.txt", 1, "error[A562]: short.txt is a single token"),
        ("bytes", "--task nll --text none.txt", 2, "error: there is no file none.txt"),
        ("tokens", "--task mqar --text short.txt", 2, "error: --text is for nll"),
        ("tokens", "--task ppl", 2, "error: there is no task ppl"),
        ("tokens", "--length 12k", 2, "error: --length 12k is no number above 0"),
        ("tokens", "--device gpu", 2, "error: there is no device gpu"),
    ],
)
def test_what_cannot_be_asked_is_said(folder, said, tmp_path, monkeypatch, model, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.txt").write_bytes(b"abc\xff" * 20)
    (tmp_path / "empty.txt").write_bytes(b"\n \n")
    (tmp_path / "short.txt").write_bytes(b"a")
    status, out, err = said(folder(model), *words.split())
    assert message in err
    assert "help: " in err
    assert (status, out) == (code, "")


def test_a_folder_without_weights_or_no_folder_at_all_is_an_error(said, tmp_path):
    attnc.build(attnc.check(SPEC.format(vocab=64, mixer="full", more="")), tmp_path / "none")
    status, _, err = said(tmp_path / "none")
    assert status == 2
    assert "A541: no such file of weights" in err
    assert said(tmp_path)[0] == 2


def test_a_model_that_sees_all_is_asked_what_is_nowhere_in_the_text(folder, said):
    status, out, err = said(folder("both"), "--task", "mqar", "--length", 64, "--trials", 4)
    assert status == 0
    assert "mqar 8" in out
    assert "note: texts are read in one call" in err


def test_an_error_that_is_not_about_memory_stays_as_it_is(tmp_path):
    for error in (RuntimeError("sizes differ"), ValueError("out of memory")):
        with pytest.raises(type(error)) as caught, enough_memory(tmp_path, 1, 8):
            raise error
        assert caught.value is error
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")):
        with pytest.raises(SpecError, match="A565"), enough_memory(tmp_path, 1, 8):
            raise error


@pytest.mark.parametrize(("batch", "advice"), [(4, "--batch below 4"), (1, "--dtype bfloat16, or a shorter --length")])
def test_out_of_memory_says_what_to_lower(folder, said, monkeypatch, batch, advice):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Subject, "logits", full)
    status, _, err = said(folder("tokens"), "--task", "copy", "--length", 64, "--batch", batch)
    assert status == 4
    assert f"error[A565]: out of memory with {batch} sequence" in err
    assert f"help: try {advice}" in err


def test_an_error_of_another_sort_is_not_called_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="another"), subject.enough_memory(None, 1, 1):
        raise RuntimeError("another")


def test_windows_of_a_text_are_streamed_no_further_than_asked(asked, monkeypatch):
    model, read = asked("bytes"), []
    pieces = Text.pieces
    monkeypatch.setattr(Text, "pieces", lambda self: (read.append(piece) or piece for piece in pieces(self)))
    text = Text("long", "some words " * 100_000)
    assert len(asking.losses(model, model.tokenizer("bytes"), text, 32, 3, 2, quiet)) == 3
    assert len(read) <= 2
    assert len(list(windows(text.tokens(model.tokenizer("bytes").plain), 1000))) == 1100


@pytest.mark.parametrize(("template", "first"), [("$A", ()), ("[BOS] $A", (1,)), ("[BOS] $A [EOS]", (1,)), ("$A [EOS]", ())])
def test_what_a_tokenizer_puts_before_a_text_is_known(tmp_path, template, first):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[BOS]": 1, "[EOS]": 2, "a": 3, "word": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[BOS]", "[EOS]"])
    marks = [(mark, number) for mark, number in (("[BOS]", 1), ("[EOS]", 2)) if mark in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = FolderTokenizer(tmp_path)
    assert found.first == first
    assert found.plain("a word") == [3, 4]
    assert found.encode("a word") == [*first, 3, 4]
    assert found.decode([1, 3, 4, 2]) == "a word"
