"""What tasks ask: each example is what its docstring says, alike for the same seed, and texts come whole in small pieces."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc

import pytest
import torch

from attnc.dsl import SpecError
from attnc.tasks import examples
from attnc.tasks import text as texts
from attnc.tasks.copying import Copy
from attnc.tasks.examples import NOT_ASKED, TaskError, distinct
from attnc.tasks.named import TASKS
from attnc.tasks.passkeys import Multikey, Needle, Passkey
from attnc.tasks.prompts import FILLER, multikey, passkey
from attnc.tasks.recall import Mqar
from attnc.tasks.text import Text, topics, windows

SIZE, LENGTH, VOCABULARY = 40, 97, 61


def made(task, step=3, size=SIZE, length=LENGTH, vocabulary=VOCABULARY):
    found = task.batch(seed=1, step=step, size=size, length=length, vocabulary=vocabulary)
    return found.tokens, found.targets


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_token_ids_that_a_seed_decides(name):
    task = TASKS[name]()
    tokens, targets = made(task)
    assert tokens.shape == targets.shape == (SIZE, LENGTH)
    assert tokens.dtype == targets.dtype == torch.int64
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < VOCABULARY
    asked = targets[targets != NOT_ASKED]
    assert 0 <= int(asked.min()) <= int(asked.max()) < VOCABULARY
    for one, same in zip(made(task), (tokens, targets), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(made(task, step=4)[0], tokens), "steps are alike"
    assert not torch.equal(task.batch(2, 3, SIZE, LENGTH, VOCABULARY).tokens, tokens), "seeds are alike"
    assert len({tuple(row) for row in tokens.tolist()}) == SIZE, "examples of a batch are alike"


def test_random_numbers_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for task in TASKS.values():
        for part in made(task()):
            digest.update(part.numpy().tobytes())
    assert digest.hexdigest()[:16] == "477671c6c094360e"


@pytest.mark.parametrize(("count", "space", "spare"), [(2, 8, 8), (2, 8, -2), (2, 5, 8), (5, 5, 8)])
def test_what_is_drawn_without_repetition_is_drawn_evenly(count, space, spare, monkeypatch):
    monkeypatch.setattr(examples, "SPARE", spare)
    rows = 40_000
    found = distinct(rows, count, 3, 3 + space, torch.Generator().manual_seed(1)) - 3
    assert 0 <= int(found.min()) <= int(found.max()) < space
    assert (found.sort(dim=1).values.diff(dim=1) > 0).all()
    pairs = torch.bincount(found[:, 0] * space + found[:, -1], minlength=space**2).view(space, space).double()
    share = 1 / (space * (space - 1))
    assert ((pairs / rows - share).abs() < 5 * (share / rows) ** 0.5)[~torch.eye(space, dtype=torch.bool)].all()


def test_mqar_asks_each_key_once_and_its_value_is_what_followed_it():
    pairs = 7
    tokens, targets = made(Mqar(pairs=pairs))
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        told = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(told) == pairs == len(set(told.values()))
        assert max(told) < VOCABULARY // 2 <= min(told.values())
        asked = [place for place, target in enumerate(wanted) if target != NOT_ASKED]
        assert sorted(row[place] for place in asked) == sorted(told), "every key is asked"
        assert all(wanted[place] == told[row[place]] for place in asked)
        assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)


def test_gaps_of_mqar_follow_the_power_law_or_are_uniform():
    space = 20
    for power in (0.01, 1.0):
        _, targets = made(Mqar(pairs=1, power=power, noise=False), size=20000, length=2 + 2 * space, vocabulary=16)
        found = (targets != NOT_ASKED).double().mean(0)[2::2]
        law = torch.arange(1, space + 1, dtype=torch.float64) ** (power - 1)
        law /= law.sum()
        assert ((found - law).abs() < 5 * (law * (1 - law) / 20000).sqrt()).all(), "five standard errors"
    tokens, _ = made(Mqar(pairs=2, noise=False), length=40)
    assert int((tokens != 0).sum()) == SIZE * 6


def test_copy_says_the_items_in_order_and_never_shows_the_answer():
    tokens, targets = made(Copy(items=9))
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        items = [token for token in row[:-9] if token != 0]
        assert len(items) == 9
        assert min(items) >= 2
        assert row[-9:] == [1] * 9
        assert wanted == [NOT_ASKED] * (LENGTH - 9) + items


@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
def test_a_needle_is_where_its_depth_says_and_nowhere_else(depth):
    tokens, targets = made(Needle(depth=depth))
    places = []
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        places.append(row.index(row[-1]))
        assert row.count(row[-1]) == 2
        assert wanted == [NOT_ASKED] * (LENGTH - 1) + [row[places[-1] + 1]]
    at_depth(places, depth, LENGTH - 3)


def at_depth(places, depth, spare):
    if depth is None:
        assert len(set(places)) > SIZE // 2
        assert 0 <= min(places) < spare / 4 < 3 * spare / 4 < max(places) <= spare
    else:
        assert set(places) == {round(depth * spare)}


@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
def test_a_passkey_is_said_once_and_asked_at_the_end(depth):
    tokens, targets = made(Passkey(digits=4, depth=depth))
    places = []
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        places.append(row.index(1))
        answer = row[places[-1] + 1 : places[-1] + 5]
        assert row.count(1) == row.count(2) == 1
        assert min(answer) >= VOCABULARY // 2
        assert row[-4:] == [2, *answer[:-1]]
        assert wanted == [NOT_ASKED] * (LENGTH - 4) + answer
    at_depth(places, depth, LENGTH - 9)


@pytest.mark.parametrize("depth", [None, 0.0, 1.0])
def test_multikey_asks_one_of_several_names(depth):
    tokens, targets = made(Multikey(keys=5, digits=3, depth=depth))
    ranks = []
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        told = {row[place + 1]: row[place + 2 : place + 5] for place, token in enumerate(row) if token == 1}
        assert len(told) == 5, "names differ, and no key is written over another"
        asked = row[-3]
        assert row[-4:] == [2, asked, *told[asked][:-1]]
        assert wanted == [NOT_ASKED] * (LENGTH - 3) + told[asked]
        ranks.append(list(told).index(asked))
    assert set(ranks) == (set(range(5)) if depth is None else {0} if depth == 0 else {4})


@pytest.mark.parametrize(
    ("task", "length", "vocabulary"),
    [
        (Mqar(pairs=3), 12, 8),
        (Needle(depth=1.0), 3, 10),
        (Passkey(digits=2), 5, 8),
        (Multikey(keys=2, digits=2), 11, 10),
        (Copy(items=3), 6, 4),
    ],
)
def test_the_shortest_length_and_the_smallest_vocabulary_are_enough_and_one_less_is_an_error(task, length, vocabulary):
    tokens, targets = made(task, length=length, vocabulary=vocabulary)
    assert max(int(tokens.max()), int(targets.max())) < vocabulary
    with pytest.raises(TaskError, match=f"A560: length = {length - 1} is too short: .* take {length} tokens") as short:
        made(task, length=length - 1, vocabulary=vocabulary)
    with pytest.raises(TaskError, match=f"A560: a vocabulary of {vocabulary - 1} is too small: .* take {vocabulary}") as few:
        made(task, length=length, vocabulary=vocabulary - 1)
    assert (short.value.argument, few.value.argument) == ("length", "vocabulary")


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Mqar(pairs=0), "pairs"),
        (lambda: Mqar(power=0.0), "power"),
        (lambda: Copy(items=0), "items"),
        (lambda: Passkey(depth=1.5), "depth"),
        (lambda: Multikey(keys=0), "keys"),
        (lambda: Passkey(digits=0), "digits"),
    ],
)
def test_a_setting_that_means_nothing_is_named(make, argument):
    with pytest.raises(TaskError, match=f"A560: {argument} = ") as error:
        make()
    assert error.value.argument == argument


class Letters:
    """A token a character, and one before each text."""

    def encode(self, text):
        return [0, *map(ord, text)]

    def decode(self, tokens):
        return "".join(map(chr, tokens))


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prompt", [passkey, multikey])
def test_a_prompt_is_as_long_as_it_may_be_and_tells_its_answer_at_its_depth(prompt, depth):
    found = prompt(Letters(), 0, 5, 1500, depth)
    text = Letters().decode(found.tokens[1:])
    assert 1500 - max(map(len, FILLER)) - 2 <= len(found.tokens) + found.decoded <= 1500
    assert text.endswith(" is")
    assert text.count(found.answer) == (2 if prompt is passkey else 1)
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if found.answer in line)
    before, after = ("".join(part).count(".") for part in (lines[1:at], lines[at + 1 :]))
    if prompt is passkey:
        assert before == round(depth * (before + after))
    assert prompt(Letters(), 0, 5, 1500, depth) == found
    assert prompt(Letters(), 0, 6, 1500, depth).answer != found.answer
    assert found.answered(f" {found.answer}. ")
    assert not found.answered(f"{found.answer}0")
    assert not found.answered("The " + found.answer)


def test_a_prompt_that_does_not_fit_says_how_long_it_is():
    with pytest.raises(TaskError, match="length = 50 is too short: the prompt takes 253"):
        passkey(Letters(), 0, 0, 50, 0.5)
    with pytest.raises(TaskError, match="keys = 100"):
        multikey(Letters(), 0, 0, 5000, 0.5, keys=100)


def test_the_text_of_every_python_is_split_once_and_for_all():
    learned, asked = topics(held_out=False), topics()
    assert 0 <= len(learned.source) - 0.8 * (len(learned.source) + len(asked.source)) < 5000
    assert asked.source.startswith("\n\n"), "cut between paragraphs"
    assert asked.digest() == hashlib.sha256(asked.source.encode()).hexdigest()
    assert asked.source not in learned.source


def test_a_file_is_read_in_pieces_that_end_between_words(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 50)
    words = " ".join(["naïve", "漢字", "x" * 30, "end.\n\nNext"] * 40)
    (tmp_path / "a.txt").write_text(words, "utf-8")
    pieces = list(Text("a.txt", tmp_path / "a.txt").pieces())
    assert "".join(pieces) == words
    assert len(pieces) > 20
    assert all(one[-1].isalpha() and other[0].isspace() for one, other in itertools.pairwise(pieces))
    (tmp_path / "b.txt").write_text("漢" * 2000, "utf-8")
    assert {len(piece) for piece in Text("b", tmp_path / "b.txt").pieces()} <= set(range(100, 251)), "no blank anywhere"


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for lines in (20_000, 100_000):
        path = tmp_path / "long.txt"
        path.write_text("some words on a line\n" * lines)
        tracemalloc.start()
        found = sum(len(asked) for _, asked in windows(Text("long", path).tokens(lambda piece: [len(piece)] * 9), 16))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found > 10
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("place", [0, 5, 49, 50, 120])
def test_a_byte_that_is_no_utf8_is_found(tmp_path, monkeypatch, place):
    monkeypatch.setattr(texts, "PIECE", 50)
    data = bytearray(("é" + "a" * 9).encode() * 20)
    data[place : place + 1] = b"\xff"
    (tmp_path / "wrong.txt").write_bytes(data)
    with pytest.raises(SpecError, match=rf"A561[^?]*byte {place} of wrong.txt is no UTF-8: 0x"):
        Text("wrong.txt", tmp_path / "wrong.txt").digest()


@pytest.mark.parametrize("content", ["", " \n\n "])
def test_a_blank_text_is_an_error(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(SpecError, match=r"A562.*empty.txt holds no text"):
        Text("empty.txt", tmp_path / "empty.txt").digest()


@pytest.mark.parametrize("first", [(), (99,), (98, 99)])
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8, 9, 30])
def test_every_token_of_a_text_is_asked_once(first, tokens):
    found = list(windows(iter(range(tokens)), 8, first))
    asked = [target for _, targets in found for target in targets if target != NOT_ASKED]
    assert asked == list(range(0 if first else 1, tokens))
    for inputs, targets in found:
        assert len(inputs) == len(targets) <= 8
        assert tuple(inputs[: len(first)]) == first
        text = [token for token in inputs[len(first) :] if token < 90]
        assert [*text, targets[-1]][-len(text) - 1 :] == list(range(targets[-1] - len(text), targets[-1] + 1))
    assert all(len(inputs) == 8 for inputs, _ in found[:-1]), "only the last is shorter"
