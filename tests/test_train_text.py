"""`attnc train DIR FILE --task text`: a text of any size, read piece by piece."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from training import HEAD, built

from attnc import cli
from attnc.dsl import SpecError
from attnc.train import text as texts
from attnc.train.text import FromText, encoder

WORDS = "Ein Fuß, zwei Füße, 漢字 and 🙂 smile.\n"


def words(text: str) -> list[int]:
    """A tokenizer that begins a word with the blank before it, as byte-pair encodings do: so its cuts can be seen."""
    return [len(word) for word in text.replace(" ", "\0 ").split("\0") if word]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(WORDS * 40, "utf-8")
    return tmp_path / "text.txt"


@pytest.mark.parametrize("block", [7, 64, 1000, 10**6])
def test_tokens_are_those_of_the_whole_text_again_and_again(file, block):
    whole = list((WORDS * 40).encode())
    source = FromText(file, 50, lambda text: list(text.encode()), block)
    found, targets = [], []
    for step in range(60):
        examples = source.examples(step, 2)
        found += examples.tokens.flatten().tolist()
        targets += examples.targets.flatten().tolist()
    assert len(found) > 3 * len(whole)
    assert found == [whole[at % len(whole)] for at in range(6000)]
    assert targets == [whole[(at + 1) % len(whole)] for at in range(6000)], "the last target of one is the first of the next"


def test_pieces_are_cut_where_a_word_begins(file):
    source = FromText(file, 10, words, block=100)
    found = torch.cat([source.examples(step, 1).tokens[0] for step in range(20)]).tolist()
    assert found == words(WORDS * 40)[: len(found)]


def test_a_text_larger_than_the_buffer_takes_no_more_memory_than_a_small_one(tmp_path):
    peaks = []
    for size in (2, 64):
        path = tmp_path / f"{size}.txt"
        path.write_bytes(b"sixteen letters\n" * (size * 2**16 // 16 * 2))
        source = FromText(path, 1000, lambda text: [1] * (len(text) // 8), block=2**16)
        tracemalloc.start()
        for step in range(3 * size):
            source.examples(step, 8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert path.stat().st_size > size * 2**16
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 2**21


def test_a_text_goes_on_where_it_stood(file):
    encode = lambda text: list(text.encode())  # noqa: E731
    one, other = FromText(file, 30, encode, 64), FromText(file, 30, encode, 64)
    for step in range(17):
        one.examples(step, 3)
    other.go_to(one.position())
    for step in range(40):
        assert torch.equal(one.examples(step, 3).tokens, other.examples(step, 3).tokens)


def test_bytes_are_tokens_where_the_folder_has_no_tokenizer(tmp_path):
    what, encode = encoder(tmp_path, 256)
    assert (what, encode("ß")) == ("bytes", [0xC3, 0x9F])
    with pytest.raises(SpecError, match=r"A575.*255 tokens"):
        encoder(tmp_path, 255)


def test_the_folder_s_tokenizer_is_taken_and_has_to_fit(tmp_path):
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**tokenizer, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []})
    )
    what, encode = encoder(tmp_path, 3)
    assert (what, encode("a b c")) == ("tokenizer.json", [1, 2, 0])
    with pytest.raises(SpecError, match=r"A567.*3 tokens, the model 2"):
        encoder(tmp_path, 2)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "A562", "no text"),
        (b" \n \n", "A562", "no text"),
        (b"x" * 70000 + b"\n\xff", "A561", "byte 70001"),
        ("né".encode() + b"\nabc \xc3", "A561", "byte 8"),
    ],
)
def test_a_text_that_is_none_stops_the_command_before_a_run_begins(tmp_path, capsys, content, code, words):
    (tmp_path / "text.txt").write_bytes(content)
    folder = built(head=HEAD.replace("vocab = 32", "vocab = 256"))
    status = cli.invoke(["train", str(folder), str(tmp_path / "text.txt"), "--task", "text"])
    err = capsys.readouterr().err
    assert status == 1
    assert f"error[{code}]" in err
    assert words in err
    assert not (folder / "training").exists()


def test_another_text_is_another_run(tmp_path, file, capsys):
    shutil.copytree(built(head=HEAD.replace("vocab = 32", "vocab = 256")), tmp_path / "model")
    command = ["train", str(tmp_path / "model"), str(file), "--task", "text", "--length", "16", "--steps", "2"]
    assert cli.invoke(command) == 0
    file.write_text("something else")
    assert cli.invoke(["train", str(tmp_path / "model"), "--resume"]) == 2
    assert "is not the text that the run began with" in capsys.readouterr().err


def test_blocks_end_between_words_lines_or_letters():
    assert texts._cut(b"one two  three") == 3
    assert texts._cut(b"one\ntwo") == 4
    assert texts._cut("ab漢字".encode()[:-1]) == 5
