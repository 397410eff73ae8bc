"""Hostile texts, texts that were found guilty once, and a few thousand drawn ones: no traceback, no hang, no leak."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).parent.parent
COUNT = 2000


def tool() -> ModuleType:
    """tools/fuzz.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("fuzz", TOP / "tools" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


fuzz = tool()


def judged(texts) -> list[str]:
    """How the texts were taken; fails on the first guilty one, with what it did."""
    outcomes = []
    for outcome in fuzz.run(texts):
        if isinstance(outcome, fuzz.Finding):
            pytest.fail(f"{outcome.name}: {outcome.what}", pytrace=False)
        outcomes.append(outcome)
    return outcomes


def test_a_hostile_text_costs_no_more_than_an_error() -> None:
    texts = list(fuzz.corpus())
    assert len(judged(texts)) == len(texts)
    assert len(texts) > 40


def test_a_few_thousand_texts_are_taken_in_every_way() -> None:
    outcomes = judged(fuzz.numbered(0, 0, COUNT))
    assert len(outcomes) == COUNT
    assert set(outcomes) == {"file", "syntax", "meaning", "checked", "built"}


def test_texts_depend_on_their_numbers_alone() -> None:
    assert fuzz.text(1, 2) == fuzz.text(1, 2)
    random.seed(0)
    assert len({fuzz.text(1, number) for number in range(50)}) > 45


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("raise RuntimeError('oh')", "RuntimeError: oh"),
        ("bytearray(2**31)", "MemoryError"),
        ("while True: pass", "takes over 1 seconds"),
        ("import os; os._exit(1)", "ends the process"),
    ],
)
def test_a_compiler_that_does_wrong_is_found_out(wrong: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(data: bytes, **_: object) -> str:
        exec(wrong if data == b"guilty" else "", {})
        return "checked"

    monkeypatch.setattr(fuzz, "judge", judge)
    monkeypatch.setattr(fuzz, "STUCK", 1.0)
    texts = [("a", b"good"), ("b", b"guilty"), ("c", b"good")]
    first, finding, last = fuzz.run(texts)
    assert (first, last) == ("checked", "checked")
    assert (finding.name, finding.data) == ("b", b"guilty")
    assert what in finding.what


def test_a_step_that_takes_too_long_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.0)
    with pytest.raises(AssertionError, match="reading takes"):
        fuzz.judge(fuzz.HEAD + fuzz.TAIL, lay_out=False, build=False)
