"""Feeds the compiler texts that nobody means well with: `python tools/fuzz.py --count 100000 --seed 1`.

Half of the texts are shipped specs with words and bytes exchanged, the others are drawn from the grammar and the declared
kinds. A text is found guilty if it raises anything but SpecError, takes over 5 seconds or over 1 GiB, if a message does not
print, if laying it out changes what it says, if a fix cannot be made, or if its comments or its file's name reach generated
code. The number of a run and of a text in it name the text for ever; what was found guilty is kept in tests/fuzz.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attnc.codegen.build import Options, plan_all, write_texts
from attnc.compiler import graph, passes
from attnc.compiler.attributes import Attributes
from attnc.compiler.check import check
from attnc.compiler.fields import fields, options
from attnc.compiler.mixers import MIXERS
from attnc.compiler.model_settings import ModelSettings
from attnc.compiler.partial import check_source
from attnc.compiler.recipe import Recipe
from attnc.compiler.spec import Spec
from attnc.compiler.table_text import table_text
from attnc.compiler.unbuilt import unbuilt
from attnc.compiler.units import Units
from attnc.dsl import Source, SpecError, parse, read
from attnc.dsl.fixes import apply_fixes
from attnc.dsl.grammar import RESERVED
from attnc.dsl.reformat import reformatted

TOP = Path(__file__).parent.parent
SPECS = [path.read_bytes() for path in sorted((TOP / "specs").glob("*.attn"))]
KEPT = TOP / "tests" / "fuzz"
SECONDS, MEMORY = 5.0, 2**30
LARGE = 2**16
LAID_OUT = 3
"""Of so many texts one is laid out, which takes as long as all the rest."""

BATCH = 1000
STUCK = 12 * SECONDS
"""Seconds of a clock on the wall after which a text is given up, on a machine that has much else to do."""

MARK = "MARK"
"""Stands in comments of the texts drawn."""

NAME = 'x"""\nEVIL = 1\n#EVIL.attn'
"""A file's name that would be code if it were printed as it is."""

HEAD = b"model m { vocab = 9, dim = 64, layers = 4, heads = 4, ffn = none, norm = rms(1e-6) }\n"
TAIL = b"layers { all: full }\n"


def hostile(many: int = 1500) -> dict[str, bytes]:
    """Texts too large to keep as files; `many` is many times what a spec has of anything."""
    doubling = b"".join(b"mix a%d = a%d + a%d\n" % (i + 1, i, i) for i in range(60))
    unions = b"".join(b"mix a%d = a%d | a%d\n" % (i + 1, i, i) for i in range(60))
    chained = b"".join(b"mix a%d = a%d { rope = %d }\n" % (i + 1, i, i + 1) for i in range(many))
    return {
        "ten megabytes": HEAD + b"# " + b"x" * 10 * 2**20,
        "a mebibyte of comment": HEAD + TAIL + b"#" * (2**20 - 200),
        "a mebibyte of one name": HEAD + b"mix " + b"a" * 2**19,
        "a mebibyte of names": HEAD + b"mix a = " + b"a " * 2**19,
        "a mebibyte of entries": HEAD + b"mix a = [" + b"1," * (2**19 - 100) + b"1]",
        "a mebibyte of lines": b"\n" * (2**20 - 200) + HEAD + TAIL,
        "a mebibyte of quotes": b'"' * 2**20,
        "a mebibyte of foreign letters": ("\u0430" * 2**18).encode(),
        "parentheses 10,000 deep": HEAD + b"mix a = " + b"(" * 10_000 + b"full" + b")" * 10_000 + TAIL,
        "lists 10,000 deep": HEAD + b"mix a = " + b"[" * 10_000,
        "braces 10,000 deep": HEAD + b"layers { all: " + b"when { a: " * 10_000,
        "calls 30 deep": HEAD + b"mix a = " + b"gate(full, " * 30 + b"full" + b")" * 30 + TAIL,
        "sums that double": HEAD + b"mix a0 = full\n" + doubling + b"layers { all: a60 }",
        "unions that double": HEAD + b"mix a0 = full\n" + unions + b"layers { all: a60 }",
        "attributes around attributes": HEAD + b"mix a0 = full\n" + chained + b"layers { all: a%d }" % many,
        "a number of 5,000 digits": HEAD.replace(b"64", b"9" * 5000) + TAIL,
        "an exponent of 5,000 digits": HEAD.replace(b"1e-6", b"1e" + b"9" * 5000) + TAIL,
        "a billion layers": HEAD.replace(b"layers = 4", b"layers = 1000000000") + TAIL,
        "ranges of a billion": HEAD + b"layers { 0..999999999: full, else: full }",
        "many cases": HEAD + b"layers {\n" + b"".join(b"%d: full\n" % i for i in range(many)) + b"}",
        "many mixes": HEAD + b"".join(b"mix a%d = full\n" % i for i in range(many)) + TAIL,
        "a long union": HEAD + b"mix a = full" + b" | window(8)" * many + b"\n" + TAIL,
        "a long chain": HEAD + b"mix a = full" + b" >> full" * many + b"\nlayers { all: a }",
        "a long name": HEAD + b"mix " + b"a" * 5000 + b" = full\n" + TAIL,
        "NUL bytes": HEAD + b"\0" + TAIL,
        "UTF-16": (HEAD + TAIL).decode().encode("utf-16"),
    }


def judge(data: bytes, *, lay_out: bool, build: bool) -> str:
    """How a text is taken: `file`, `syntax`, `meaning`, `checked` or `built`. Raises whatever is a mistake of ours."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        with tempfile.NamedTemporaryFile(suffix=".attn") as file:
            file.write(data)
            file.flush()
            _expect_refusal(lambda: read(file.name))
        return "file"
    source = Source(NAME, text)
    try:
        tree = _soon("reading", parse, source)
    except SpecError:
        _soon("checking in part", _judge_all, source)
        return "syntax"
    if lay_out:
        again = _soon("laying out", reformatted, source)
        assert len(text) > LARGE or reformatted(Source(NAME, again)) == again, "laying out twice is not laying out once"
    try:
        spec = _soon("checking", check, tree)
    except SpecError as error:
        _judge_messages(source, error)
        _judge_fixes(source, error)
        return "meaning"
    assert _soon("resolving", table_text, spec).isascii()
    assert _soon("counting what can be tuned", Units(spec).undecided) >= 0
    waiting = unbuilt(spec)
    if waiting or not build or len(spec.layers) > 64:
        str(SpecError(waiting)) if waiting else None
        return "checked"
    texts = _soon("building", _code, spec)
    for name, code in texts.items():
        if name.endswith(".py"):
            assert MARK not in code, f"{name} holds a comment of the spec"
            assert "EVIL = " not in code, f"{name} holds the name of the file as it is"
            ast.parse(code)
    return "built"


def _judge_all(source: Source) -> None:
    """A text with syntax errors, whose names and values are checked all the same."""
    try:
        check_source(source)
    except SpecError as error:
        _judge_messages(source, error)
    else:
        raise AssertionError("syntax errors were forgotten")


def _soon(what: str, step: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a step, which is a command's whole work. Counts the time of this process alone: machines are shared."""
    began = time.process_time()
    try:
        return step(*arguments)
    finally:
        taken = time.process_time() - began
        assert taken < SECONDS, f"{what} takes {taken:.1f} seconds"


def _code(spec: Spec) -> dict[str, str]:
    whole = passes.run(graph.build(spec))
    texts, _ = write_texts(spec, whole, plan_all(whole, Options(device="h100"), cap=spec.model.score_cap is not None))
    return texts


def _judge_messages(source: Source, error: SpecError) -> None:
    shown = str(error)
    assert all(line.isprintable() for line in shown.split("\n")), "a message that does not print"
    fixed, made = apply_fixes(source, error.diagnostics)
    if made:
        try:
            check_source(fixed)
        except SpecError as left:
            str(left)


def _judge_fixes(source: Source, error: SpecError) -> None:
    """The fixes of a text that can be read leave one, but that two misspelt keys may become the same."""
    fixed, _ = apply_fixes(source, error.diagnostics)
    try:
        parse(fixed)
    except SpecError as left:
        codes = {one.code for one in left.diagnostics} - {"A026", "A027", "A028"}
        assert not codes, f"fixes make a text that cannot be read: {', '.join(sorted(codes))}"


def _expect_refusal(action: Callable[[], object]) -> None:
    try:
        action()
    except SpecError as error:
        str(error)
    else:
        raise AssertionError("bytes that are no UTF-8 were read")


# Texts -----------------------------------------------------------------------------------------------------------------

WORDS = tuple(
    dict.fromkeys(
        [*RESERVED, *MIXERS, "gate", "context", "select", "budget", "first", "last", "every", "all", "length", "phase", "dim"]
        + [key for owner in (ModelSettings, Attributes, Recipe) for key in fields(owner)]
        + [key for mixer in MIXERS.values() for key in fields(mixer.parameters)]
        + [word for mixer in MIXERS.values() for field in fields(mixer.parameters).values() for word in options(field.types)]
    )
)
NUMBERS = (
    *("0", "1", "2", "3", "4", "7", "8", "16", "64", "1024", "65536", "65537", "16777216", "1e9", "1e999", "-1", "-0", "0.5"),
    *("1e-6", "25%", "0%", "100%", "150%", "0..3", "3..0", "1..1", "9"),
)
SIGNS = ["(", ")", "[", "]", "{", "}", ",", ":", "=", "==", "<", ">", "<=", ">=", "|", "+", ">>", "..", "#", "\n"]
ODD = [
    "\u0430",
    "\u2013",
    "\uff0c",
    "\u202e",
    "\u200b",
    "\ufeff",
    "\0",
    "\r",
    "\t",
    '"',
    "'",
    "//",
    "!=",
    "->",
    ";",
    "\U0001f600",
    "\ud800",
]


def text(run: int, number: int) -> bytes:
    """The text of this number in this run."""
    dice = random.Random(f"{run} {number}")  # noqa: S311
    if dice.random() < 0.5:
        return mutated(dice)
    return drawn(dice).encode("utf-8", "surrogatepass")


def mutated(dice: random.Random) -> bytes:
    """A shipped spec, a few times cut, doubled, spliced or with words and bytes exchanged."""
    data = dice.choice(SPECS)
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        start = dice.randrange(len(data) + 1)
        end = min(len(data), start + dice.choice((0, 1, 2, 8, 40)))
        match dice.randrange(7):
            case 0:
                data = data[:start] + data[end:]
            case 1:
                data = data[:end] + data[start:]
            case 2:
                other = dice.choice(SPECS)
                cut = dice.randrange(len(other))
                data = data[:start] + other[cut : cut + dice.choice((10, 80, 1000))] + data[end:]
            case 3:
                data = data[:start] + bytes([dice.randrange(256)]) + data[end:]
            case _:
                data = _with_other_word(data, dice)
    return data


def _with_other_word(data: bytes, dice: random.Random) -> bytes:
    words = data.split(b" ")
    words[dice.randrange(len(words))] = _token(dice).encode("utf-8", "surrogatepass")
    return b" ".join(words)


def _token(dice: random.Random) -> str:
    return dice.choice(dice.choice((WORDS, WORDS, NUMBERS, NUMBERS, SIGNS, ODD)))


def drawn(dice: random.Random) -> str:
    """A text by the grammar: names, keys and kinds are those declared, more often than not where they belong."""
    mixes: list[str] = []
    lines = [f"# {MARK}", f"model {_name(dice)} {{ {_settings(dice, (ModelSettings, Attributes), _model(dice))} }}"]
    for number in range(dice.randrange(4)):
        name = f"mix_{number}" if dice.random() < 0.95 else dice.choice(WORDS)
        lines.append(f"mix {name} = {_expression(dice, mixes, 3)}")
        mixes.append(name)
    cases = [f"{_selector(dice)}: {_expression(dice, mixes, 3)}" for _ in range(dice.randrange(3))]
    lines.append(
        "layers {\n  " + "\n  ".join([*cases, f"{'all' if not cases else 'else'}: {_expression(dice, mixes, 3)}"]) + "\n}"
    )
    if dice.random() < 0.2:
        lines.append(f"recipe {{ {_settings(dice, (Recipe,))} }}")
    joined = dice.choice(("\n", "\n", f" # {MARK}\n", "\r\n")).join(lines)
    return joined if dice.random() < 0.9 else joined.replace(" ", dice.choice(ODD), dice.randrange(3))


def _model(dice: random.Random) -> dict[str, str]:
    heads, dim = dice.choice(((4, 64), (8, 256), (6, 96)))
    kv = dice.choice((1, 2, heads))
    norm = dice.choice(("rms(1e-6)", "layer(1e-5)"))
    given = {"vocab": "100", "dim": str(dim), "layers": dice.choice("1368"), "heads": str(heads), "kv_heads": str(kv)}
    return given | {"ffn": dice.choice(("none", "swiglu(64)")), "norm": norm}


def _name(dice: random.Random) -> str:
    return dice.choice(("m", "x_1", "a" * 64, f"name_{dice.randrange(99)}"))


def _settings(dice: random.Random, owners: tuple[Any, ...], given: dict[str, str] | None = None) -> str:
    found = dict(given or {})
    declared = {key: field for owner in owners for key, field in fields(owner).items()}
    for _ in range(dice.choice((0, 0, 1, 2))):
        key = dice.choice([*declared])
        found[key] = _value(dice, declared[key])
    return ", ".join(f"{key} = {value}" for key, value in found.items()) or f"{dice.choice([*declared])} = 1"


def _value(dice: random.Random, field: Any) -> str:
    words = options(field.types)
    if words and dice.random() < 0.6:
        return dice.choice(words)
    if field.bounds and dice.random() < 0.7:
        low, high = int(field.bounds.low), int(min(field.bounds.high, 4096))
        return str(dice.choice((low, high, dice.randint(min(low, high), max(low, high)), low - 1)))
    return dice.choice((*NUMBERS, "[1, 2]", "none", "true", "budget(2..64, default = 8)"))


def _kind(dice: random.Random) -> str:
    name = dice.choice([*MIXERS])
    arguments = []
    for key, field in fields(MIXERS[name].parameters).items():
        if field.required or dice.random() < 0.15:
            value = _value(dice, field)
            arguments.append(value if field.positional and field.required else f"{key} = {value}")
    return f"{name}({', '.join(arguments)})" if arguments else name


def _expression(dice: random.Random, mixes: list[str], depth: int) -> str:
    if depth == 0 or dice.random() < 0.35:
        return dice.choice(mixes) if mixes and dice.random() < 0.3 else _kind(dice)
    below = [_expression(dice, mixes, depth - 1) for _ in range(dice.choice((1, 2, 2, 3)))]
    match dice.randrange(8):
        case 0 | 1:
            return " | ".join(below)
        case 2:
            return " + ".join(below)
        case 3:
            return " >> ".join(f"({one})" for one in below)
        case 4:
            return f"({below[0]}) {{ {_settings(dice, (Attributes,))} }}"
        case 5:
            return f"when {{ {dice.choice(('length < 8', 'phase == decode', 'dim >= 64'))}: {below[0]}, else: {below[-1]} }}"
        case 6:
            return f"heads {{ {dice.choice(('0', '0..1', '50%'))}: {below[0]}, else: {below[-1]} }}"
    word = dice.choice(("choose(per = layer)", "choose(per = head)", "route(per = token, by = router(linear))"))
    return f"{word} {{ a: {below[0]}, b: {below[-1]} }}"


def _selector(dice: random.Random) -> str:
    return dice.choice(
        ("0", "0..1", "first(1)", "last(1)", "every(2)", "every(3, at = [0, 1])", "[0, last(1)]", "7", "50%", "x")
    )


# Runs ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A guilty text and what it did."""

    name: str
    data: bytes
    what: str


def run(texts: Iterable[tuple[str, bytes]], *, built: int = 4) -> Iterator[Finding | str]:
    """Outcome or finding of each text, judged within the bounds of time and memory by another process.

    Of those that check, every so manieth is `built`.
    """
    waiting = list(texts)
    at = 0
    while at < len(waiting):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_worker, args=(waiting, at, built, theirs), daemon=True)
        process.start()
        theirs.close()
        while at < len(waiting):
            name, data = waiting[at]
            try:
                answered = ours.poll(STUCK)
                outcome = ours.recv() if answered else f"takes over {STUCK:g} seconds"
            except EOFError:
                answered, outcome = False, "ends the process"
            at += 1
            yield outcome[0] if answered and not outcome[1] else Finding(name, data, outcome[1] if answered else str(outcome))
            if not answered:
                break
        process.kill()
        process.join()


def _worker(waiting: list[tuple[str, bytes]], start: int, built: int, answers: Connection) -> None:
    most = _mapped() + MEMORY  # what this process was forked from may have mapped more than that, a library's code for one
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for at in range(start, len(waiting)):
        try:
            answers.send((judge(waiting[at][1], lay_out=at % LAID_OUT == 0, build=at % built == 0), ""))
        except Exception:
            answers.send(("", traceback.format_exc()))


def _mapped() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()


def numbered(seed: int, first: int, count: int) -> Iterator[tuple[str, bytes]]:
    """The texts of a run with their names."""
    return ((f"{seed}-{number}", text(seed, number)) for number in range(first, first + count))


def corpus(many: int = 1500) -> Iterator[tuple[str, bytes]]:
    """What was found guilty once, and what is hostile on purpose."""
    yield from ((path.name, path.read_bytes()) for path in sorted(KEPT.glob("*.attn")))
    yield from hostile(many).items()


def main() -> int:
    """Runs, keeps what it finds, and says how many texts came to what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first text")
    given = parser.parse_args()
    outcomes: dict[str, int] = {}
    began, end = time.monotonic(), given.first + given.count
    batches = (numbered(given.seed, first, min(BATCH, end - first)) for first in range(given.first, end, BATCH))
    for batch in itertools.chain([corpus(many=5000)], batches):
        for outcome in run(batch):
            kind = outcome if isinstance(outcome, str) else "guilty"
            outcomes[kind] = outcomes.get(kind, 0) + 1
            if isinstance(outcome, Finding):
                (KEPT / f"found-{outcome.name.replace(' ', '-')}.attn").write_bytes(outcome.data[: 2**16])
                print(f"{outcome.name}: {outcome.what}", flush=True)
        taken = time.monotonic() - began
        print(f"{sum(outcomes.values())} texts of run {given.seed} in {taken:.0f} s: {outcomes}", flush=True)
    return int("guilty" in outcomes)


if __name__ == "__main__":
    sys.exit(main())
