"""Every mistake has a message that says where, what was expected and what to write: one golden file for each code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attnc.dsl import Diagnostic, Source, SpecError, parse, read
from attnc.dsl.codes import CODES

BODY = "model m { dim = 8 }\n"
RULE = "layers { all: full }\n"
MOST = 50

BAD: dict[str, list[str]] = {
    "A001": ["", " \n\n", "# only a comment\n"],
    "A002": ["#" * (2**20 + 1)],
    "A003": [f"{BODY}mix deep = {'(' * 33}a{')' * 33}\n{RULE}"],
    "A004": [f"model {'m' * 65} {{ dim = 8 }}\n{RULE}"],
    "A005": [
        f"model m {{ dim = {'9' * 25} }}\n{RULE}",
        f"model m {{ rope = 1e999, norm = rms(1e-999) }}\n{RULE}",
    ],
    "A006": [
        f"{BODY}layers {{ [0\uff0c1]: full }}\n",
        f"{BODY}layers {{ 0\u20133: full, else: full }}\n",
        f"{BODY}mix a = full \u00a0| full\n{RULE}",
        f"{BODY}layers {{ length \u2264 8: full }}\n",
        f'{BODY}layers {{ all: "full" }}\n',
        f"{BODY}layers {{ all: full; 3: 'a b' }}\n",
        f"model m {{ dim = 8 * 2 }}\n{RULE}",
        f"model m {{ dim = 50 % }}\n{RULE}",
        f"{BODY}layers {{ length != 8: full }} // end\n",
        f"{BODY}layers {{ all -> full }}\n",
        f"{BODY}mix a = full & sink(4)\n{RULE}",
        f"{BODY}{RULE}\u200b\n",
        f"{BODY}{RULE}\x07\n",
        f"{BODY}{RULE}\U0001f600\n",
    ],
    "A007": [f"{BODY}{RULE}\0"],
    "A008": [
        f"model m {{ rope = 1,000,000 }}\n{RULE}",
        f"model m {{ a = .5, b = 5., c = 8k, d = 1_000, e = 0x10, f = 1.5.2, g = 5E3 }}\n{RULE}",
    ],
    "A009": ["model gpt-oss { dim = 8, _x = 1 }\nlayers { \u0430ll: Full }\n", f"{BODY}mix \u540d = full\n{RULE}"],
    "A010": [
        f"{BODY}mix a = window 1024\nlayers {{ 0: window(8, aligned 64) }}\n",
        f"{BODY}layers {{ 0-3: full }}\n",
        f"{BODY}layers {{ 3..: full }}\n",
        f"{BODY}layers {{ all: full {{ a = 1 }} {{ b = 2 }} }}\n",
        f"{BODY}layers {{ all: full {{ a = 1 }} | sink(4) }}\n",
        f"model m {{ dim = a | b }}\n{RULE}",
        f"model m {{ dim = when {{ a: b }} }}\n{RULE}",
        f"{BODY}mix a = full sink\n{RULE}",
        f"{BODY}mix a = | full\n{RULE}",
        f"{BODY}layers {{\n  first(3), last(1): full\n  else: window[8]\n}}\n",
        f"{BODY}layers {{\n  all: when {{ length < 8 and phase == train: full, else: full }}\n  3: if length < 8: full\n}}\n",
        f"{BODY}layers all: full\n",
        f"{BODY}layers {{ all: route }}\n",
        f"{BODY}layers {{ a b c: full }}\n",
    ],
    "A011": [
        f"{BODY}layers {{\n  every(6): full {{ rope = 1\n  else: window(8)\n}}\n",
        f"{BODY}layers {{\n  all: when {{\n    phase == train: full\n    else: full\n}}\nmix a = full\n",
        f"{BODY}layers {{\n  all: full\n",
        f"{BODY}layers {{\n  every(6: full\n  else: (full\n}}\n",
        f"{BODY}mix a = window(5,\n{RULE}",
        f"{BODY}mix a = [1, 2\n{RULE}",
    ],
    "A012": [f"{BODY}{RULE}}}\n", f"{BODY}mix a = full)\n{RULE}"],
    "A013": [
        f"{BODY}layers {{ all: full() }}\n",
        f"{BODY}layers {{ all: full {{ }} }}\n",
        "model m { }\nlayers { }\n",
        f"model m {{ a = [] }}\n{RULE}",
        f"{BODY}mix a = ()\n{RULE}",
    ],
    "A014": [
        f"model m {{\n  heads =\n  dim = 8\n}}\n{RULE}",
        f"{BODY}layers {{\n  every(6):\n  else: full\n}}\n",
        f"{BODY}layers {{\n  0: full +\n  1: full\n}}\n",
        f"{BODY}{RULE}mix a = full >>",
        f"{BODY}mix a\nmix = full\n{RULE}",
        f"model {{ dim = 8 }}\n{RULE}",
        f"model m {{ dim = , a = }}\n{RULE}",
    ],
    "A015": [f"{BODY}mix heads = full\nmix model = full\nlayers {{ all: full {{ a = layers }} }}\n"],
    "A016": [
        "model m { a = 1 b = 2 }\nlayers { 0: full 1: full else: full }\n",
        f"{BODY}layers {{ 0: window(8 aligned = 2), 1: when {{ length < 8: full {{ a = [q k, 1 2] }}, else: sink(4 5) }} }}\n",
    ],
    "A017": [
        f"{BODY}layer {{ all: full }}\n",
        f"{BODY}{RULE}near = full\n",
        f"{BODY}{RULE}else: full\n",
        f"mdel\n{BODY}{RULE}",
    ],
    "A018": [
        f"model m {{ dim: 8 }}\n{RULE}",
        f"{BODY}layers {{ all = full }}\n",
        f"{BODY}layers = {{ all: full }}\n",
        "model m { dim 8 }\nmix a window(8)\nlayers { 0..3 full, else full }\n",
        f"{BODY}layers {{ length = 8: full }}\n",
        f"{BODY}mix a: window(8, aligned: 2)\n{RULE}",
    ],
    "A019": [f"{BODY}{RULE}mix a = {'a|' * 25_000}a\n"],
    "A020": [RULE],
    "A021": [f"{BODY}model n {{ dim = 8 }}\n{RULE}"],
    "A022": [BODY],
    "A023": [f"{BODY}{RULE}{RULE}"],
    "A024": [f"{BODY}{RULE}recipe {{ loss = lm }}\nrecipe {{ loss = lm }}\n"],
    "A025": [f"{BODY}{RULE}driver retrieve {{ window = 8 }}\ndriver retrieve {{ window = 8 }}\n"],
    "A026": [f"{BODY}mix a = full\nmix a = full\n{RULE}"],
    "A027": [f"model m {{ dim = 8, heads = 2\n  dim = 16 }}\n{RULE}"],
    "A028": [f"{BODY}layers {{ all: window(8, aligned = 2, aligned = 4) }}\n"],
    "A029": [f"{BODY}layers {{ else: full, 0: full }}\n"],
    "A030": [f"{BODY}layers {{ 0: full, else: full, else: full }}\n"],
    "A031": [f"{BODY}layers {{ 7..3: full, else: sink(budget(50%..1%)) }}\n"],
    "A099": [f"{BODY}{RULE}{'; ' * MOST}"],
}

FILES: dict[str, bytes | None] = {"A501": None, "A502": None, "A503": b"\x7fELF\0\0", "A504": b" " * (2**20 + 1), "A505": None}


def mistakes(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        parse(Source("bad.attn", text))
    return caught.value.diagnostics


def mistakes_or_none(text: str) -> tuple[Diagnostic, ...]:
    try:
        parse(Source("mended.attn", text))
    except SpecError as error:
        return error.diagnostics
    return ()


def shown(text: str) -> str:
    """A bad text as golden files show it: long ones only by their size."""
    if len(text) > 1000:
        return f"<{len(text)} characters>\n"
    return "".join(sign if sign == "\n" or sign.isprintable() else repr(sign)[1:-1] for sign in text)


@pytest.mark.parametrize("code", BAD)
def test_a_bad_text_gets_its_code_and_its_message(code: str, golden) -> None:
    pages = []
    for text in BAD[code]:
        found = mistakes(text)
        assert {d.code for d in found} == ({"A006", "A099"} if code == "A099" else {code}), SpecError(found)
        pages.append(f"{shown(text)}{'-' * 40}\n{SpecError(found)}\n")
    golden(f"{code}.txt", f"{'=' * 40}\n".join(pages))


def test_every_code_has_a_bad_text_and_every_bad_text_a_code() -> None:
    assert set(CODES) == set(BAD) | set(FILES)


@pytest.mark.parametrize("code", FILES)
def test_a_file_that_cannot_be_a_spec_gets_its_code(code: str, golden, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full.attn").write_text(BODY + RULE)
    Path("folder").mkdir()
    if FILES[code] is not None:
        Path("given.attn").write_bytes(FILES[code])
    if code == "A505":
        os.symlink("given.attn", "given.attn")
    path = {"A501": "ful.attn", "A502": "folder"}.get(code, "given.attn")
    with pytest.raises(SpecError) as caught:
        read(path)
    assert [d.code for d in caught.value.diagnostics] == [code]
    golden(f"{code}.txt", f"{caught.value}\n")


@pytest.mark.parametrize("data", [b"\xff\xfem\0o\0", b"model m\xe9 {", b"\xed\xa0\x80"], ids=["utf16", "latin1", "surrogate"])
def test_what_is_not_utf_8_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "given.attn").write_bytes(data)
    with pytest.raises(SpecError, match="A503"):
        read(tmp_path / "given.attn")


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "given.attn"
    path.write_bytes(b"\xef\xbb\xbf" + (BODY + RULE).replace("\n", "\r\n").encode())
    assert parse(read(path)) == parse(Source("given", BODY + RULE))


FIXABLE = [(code, text) for code, texts in BAD.items() for text in texts if code not in ("A002", "A019")]


@pytest.mark.parametrize(("code", "text"), FIXABLE, ids=[f"{code}-{i}" for i, (code, _) in enumerate(FIXABLE)])
def test_a_fix_mends_what_it_belongs_to(code: str, text: str) -> None:
    found = mistakes(text)
    edits = {d.fix for d in found if d.fix}
    for edit in sorted(edits, key=lambda edit: -edit.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    left = mistakes_or_none(text)
    assert len(left) <= len([d for d in found if not d.fix])
    assert not [d for d in left if d.fix]


def test_a_code_is_grouped_with_its_like() -> None:
    assert all(code[:2] in ("A0", "A5") and len(code) == 4 for code in CODES)
    assert list(CODES) == sorted(CODES)
