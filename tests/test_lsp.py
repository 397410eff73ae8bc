"""The language server, asked by a real client over its standard input and output."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
import pytest_lsp
from lsprotocol import types
from pytest_lsp import ClientServerConfig, LanguageClient, client_capabilities

from attnc.compiler.fields import fields
from attnc.compiler.mixers import MIXERS
from attnc.dsl.reformat import reformatted
from attnc.dsl.source import Source
from attnc.lsp.completion import completions
from attnc.lsp.document import items, read
from attnc.lsp.positions import Positions
from attnc.lsp.symbols import symbols

SPECS = Path(__file__).parent.parent / "specs"
HEAD = "model small { vocab = 100, dim = 64, layers = 4, heads = 4, ffn = swiglu(128), norm = rms(1e-6) }\n"
GOOD = HEAD + "mix local = sink(4) | window(16)\nlayers {\n  every(2): full { rope = none }\n  else    : local\n}\n"
WRONG = HEAD + "# \U0001d54f\nmix local = ? windw(16)\nlayers { all: full() }\n"

module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_lsp.fixture(config=ClientServerConfig(server_command=[sys.executable, "-m", "attnc", "lsp"]), scope="module")
async def client(lsp_client: LanguageClient):
    capabilities = client_capabilities("visual-studio-code")
    await lsp_client.initialize_session(types.InitializeParams(capabilities=capabilities))
    yield
    await lsp_client.shutdown_session()


opened = 0


async def open_text(client: LanguageClient, text: str) -> tuple[str, list[types.Diagnostic]]:
    """The address of a new text, and what is said of it."""
    global opened  # noqa: PLW0603
    opened += 1
    uri = f"file:///tmp/given-{opened}.attn"
    client.text_document_did_open(types.DidOpenTextDocumentParams(types.TextDocumentItem(uri, "attn", 1, text)))
    return uri, await published(client, uri)


async def published(client: LanguageClient, uri: str) -> list[types.Diagnostic]:
    await client.wait_for_notification(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
    return client.diagnostics[uri]


def after(text: str, mark: str) -> types.Position:
    return Positions(text).position(text.index(mark) + len(mark))


def at(uri: str, text: str, mark: str) -> dict:
    return {"text_document": types.TextDocumentIdentifier(uri), "position": after(text, mark)}


@module_loop
async def test_mistakes_are_shown_where_an_editor_counts_them(client) -> None:
    _, found = await open_text(client, WRONG)
    assert [one.code for one in found] == ["A006", "A100", "A013"]
    assert found[0].range.start == types.Position(2, 12)
    assert "help" not in found[-1].message
    uri, _ = await open_text(client, HEAD + "layers { all: full \u2297 # \U0001d54f\n}\nmix \U0001d54f = full")
    wide = client.diagnostics[uri][-1]
    assert (wide.range.start, wide.range.end) == (types.Position(3, 4), types.Position(3, 6))


@module_loop
async def test_a_text_that_is_typed_is_checked_once_it_rests(client) -> None:
    uri, found = await open_text(client, GOOD)
    assert not found
    for version, text in enumerate([GOOD + "x", GOOD + "xy", GOOD.replace("16", "0")], start=2):
        client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(version, uri), [types.TextDocumentContentChangeWholeDocument(text)]
            )
        )
    (only,) = await published(client, uri)
    assert (only.code, only.severity) == ("A104", types.DiagnosticSeverity.Error)


@module_loop
async def test_what_is_not_built_yet_is_a_remark_on_its_line(client) -> None:
    text = GOOD.replace("full {", "\n    memory(linear) {").replace("rope = none", "short_conv = 4")
    _, found = await open_text(client, text)
    expected = read(Source("given", text)).unbuilt
    assert [one.message for one in found] == [one.message for one in expected]
    assert {one.severity for one in found} <= {types.DiagnosticSeverity.Information}
    assert {one.range.start.line for one in found} == {one.span.line - 1 for one in expected}


@module_loop
async def test_hovering_tells_parameters_rows_and_costs(client) -> None:
    uri, _ = await open_text(client, GOOD)
    rule = await client.text_document_hover_async(types.HoverParams(**at(uri, GOOD, "else    : lo")))
    text = rule.contents.value
    assert "mix local = sink(4) | window(16)" in text
    assert "layers 0, 2, KV heads 0..3" in text
    assert "ring of" in text
    assert "prefill" in text
    kind = await client.text_document_hover_async(types.HoverParams(**at(uri, GOOD, "| wind")))
    assert "- `aligned`: " in kind.contents.value
    key = await client.text_document_hover_async(types.HoverParams(**at(uri, GOOD, "{ ro")))
    assert key.contents.value.startswith("**rope**: a number from 1")
    assert await client.text_document_hover_async(types.HoverParams(**at(uri, GOOD + " ", "norm = "))) is None


@module_loop
async def test_a_mix_is_found_where_it_is_defined(client) -> None:
    uri, _ = await open_text(client, GOOD)
    found = await client.text_document_definition_async(types.DefinitionParams(**at(uri, GOOD, "else    : loc")))
    assert (found.uri, found.range.start) == (uri, after(GOOD, "mix "))
    assert await client.text_document_definition_async(types.DefinitionParams(**at(uri, GOOD, "every(2): fu"))) is None


@module_loop
async def test_a_text_is_laid_out_and_one_with_mistakes_left_alone(client) -> None:
    options = types.FormattingOptions(tab_size=2, insert_spaces=True)
    messy = GOOD.replace(" = ", "=").replace("\n  else", " # c\n\n\n  else")
    uri, _ = await open_text(client, messy)
    params = types.DocumentFormattingParams(types.TextDocumentIdentifier(uri), options)
    (edit,) = await client.text_document_formatting_async(params)
    assert edit.range == Positions(messy).whole()
    assert edit.new_text == reformatted(Source("messy", messy))
    for text in (GOOD, WRONG):
        uri, _ = await open_text(client, text)
        params = types.DocumentFormattingParams(types.TextDocumentIdentifier(uri), options)
        assert await client.text_document_formatting_async(params) == ()


@module_loop
async def test_fixes_are_offered_one_by_one_and_all_at_once(client) -> None:
    text = WRONG.replace("? windw(16)", "full()")
    uri, found = await open_text(client, text)
    params = types.CodeActionParams(types.TextDocumentIdentifier(uri), found[0].range, types.CodeActionContext(found))
    one, everything = await client.text_document_code_action_async(params)
    assert one.kind == types.CodeActionKind.QuickFix
    assert one.diagnostics == (found[0],)
    (edit,) = one.edit.changes[uri]
    assert (edit.new_text, edit.range.end.character - edit.range.start.character) == ("", 2)
    (whole,) = everything.edit.changes[uri]
    assert whole.new_text == text.replace("full()", "full")


@module_loop
async def test_the_outline_names_items_and_cases(client) -> None:
    uri, _ = await open_text(client, GOOD)
    params = types.DocumentSymbolParams(types.TextDocumentIdentifier(uri))
    found = await client.text_document_document_symbol_async(params)
    assert [symbol.name for symbol in found] == ["small", "local", "layers"]
    assert [case.name for case in found[2].children] == ["every(2)", "else"]


@module_loop
async def test_completion_answers_over_the_wire(client) -> None:
    text = GOOD + "mix more = "
    uri, _ = await open_text(client, text)
    found = await client.text_document_completion_async(types.CompletionParams(**at(uri, text, "mix more = ")))
    assert {"local", "window", "gate", "heads"} <= {item.label for item in found.items}


@module_loop
async def test_broken_and_huge_texts_are_answered_soon_and_the_server_lives_on(client) -> None:
    hostile = [
        "{" * 40,
        "model",
        "\x00",
        "\ufeff" + GOOD,
        "layers { all: " * 500,
        GOOD.replace("\n", "\r"),
        "#" * 2**20,
        "a|" * 2**19,
    ]
    for text in [*hostile, (GOOD * 8000)[: 2**20]]:
        start = time.monotonic()
        uri, found = await open_text(client, text)
        assert found or text in (GOOD.replace("\n", "\r"),)
        end = Positions(text).position(len(text))
        where = {"text_document": types.TextDocumentIdentifier(uri), "position": end}
        await client.text_document_hover_async(types.HoverParams(**where))
        await client.text_document_completion_async(types.CompletionParams(**where))
        await client.text_document_definition_async(types.DefinitionParams(**where))
        await client.text_document_document_symbol_async(types.DocumentSymbolParams(types.TextDocumentIdentifier(uri)))
        client.text_document_did_close(types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri)))
        assert not await published(client, uri)
        assert time.monotonic() - start < 5
    assert not (await open_text(client, GOOD))[1]
    await asyncio.sleep(0)


def labels(text: str) -> set[str]:
    """What may be written at `^`."""
    offset = text.index("^")
    return {item.label for item in completions(Source("given", text.replace("^", "")), offset)}


@pytest.mark.parametrize(
    ("text", "offered", "not_offered"),
    [
        ("^", {"model", "mix", "layers", "recipe", "driver"}, {"full"}),
        (f"{HEAD}mi^", {"mix", "layers"}, {"full"}),
        (f"{HEAD}mix a = full\nmix b = ^", {"a", "full", "when", "gate"}, {"model", "rope"}),
        (f"{HEAD}mix a = full | win^", {"window", "a"}, {"rope"}),
        ("model m { dim = 8, ^", {"vocab", "heads", "rope"}, {"dim", "full"}),
        ("model m {\n  dim = 8\n  ^\n}", {"vocab", "heads"}, {"dim"}),
        ("model m { ffn = ^", {"swiglu", "none"}, {"heads", "full"}),
        ("model m { norm = rms(^", {"centre", "eps"}, {"vocab"}),
        (f"{HEAD}layers {{ ^", {"first", "every", "else", "all"}, {"full"}),
        (f"{HEAD}layers {{ every(^", {"n", "at", "in"}, {"full"}),
        (f"{HEAD}layers {{ every(2, in = 0..1): ^", {"full", "choose"}, {"else"}),
        (f"{HEAD}layers {{ all: full\n  el^", {"else"}, {"full"}),
        (f"{HEAD}layers {{ all: full {{ ^", {"rope", "heads"}, {"vocab", "full"}),
        (f"{HEAD}layers {{ all: full {{ qk_norm = ^", {"rms", "l2", "none"}, {"rope"}),
        (f"{HEAD}layers {{ all: when {{ ^", {"length", "phase", "else"}, {"full", "first"}),
        (f"{HEAD}layers {{ all: when {{ phase == ^", {"train", "decode"}, {"length", "full"}),
        (f"{HEAD}layers {{ all: window(8, ^", {"aligned"}, {"rope", "full"}),
        (f"{HEAD}layers {{ all: window(^", {"budget", "aligned"}, {"full"}),
        (f"{HEAD}layers {{ all: choose(^", {"per", "by"}, {"full"}),
        (f"{HEAD}layers {{ all: choose(per = head, by = ^", {"loss", "coverage"}, {"full"}),
        (f"{HEAD}layers {{ all: choose(per = head, by = loss(data = ^", {"passkey", "tasks"}, {"full"}),
        (f"{HEAD}layers {{ all: choose(per = head) {{ a: ^", {"full"}, {"else"}),
        (f"{HEAD}layers {{ all: gate(full, ^", {"by", "full"}, {"rope"}),
        (f"{HEAD}mix a = gate(full, full, shared = [^", {"q", "k", "v"}, {"full"}),
        ("recipe { ^", {"freeze", "loss"}, {"rope"}),
        ("recipe { freeze = [^", {"all", "attention"}, {"full"}),
        ("driver ^", {"retrieve"}, {"model"}),
        ("driver retrieve { ^", {"window", "top_k"}, {"rope"}),
        ("model m { ] ) ^", {"vocab"}, {"full"}),
    ],
)
def test_what_may_stand_at_a_place_is_offered(text: str, offered: set[str], not_offered: set[str]) -> None:
    assert offered <= labels(text)
    assert not not_offered & labels(text)


@pytest.mark.parametrize("kind", MIXERS)
def test_every_parameter_of_every_kind_is_offered(kind: str) -> None:
    assert set(fields(MIXERS[kind].parameters)) <= labels(f"{HEAD}layers {{ all: {kind}(^")


@pytest.mark.parametrize("stem", ["infinite-hip", "sala", "minference"])
def test_every_cut_of_a_spec_can_be_completed_and_outlined(stem: str) -> None:
    text = (SPECS / f"{stem}.attn").read_text()
    for end in range(0, len(text), 7):
        source = Source("cut", text[:end])
        completions(source, end)
        symbols(source, Positions(source.text))
        assert len(items(source)) <= 9


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_positions_and_offsets_are_inverse(encoding: str) -> None:
    text = "a\u00e9\U0001d54f\r\nb\rc\n\u2028d"
    positions = Positions(text, encoding)
    assert len(positions.starts) == 4
    inside = {text.index("\r\n") + 1}
    for offset in set(range(len(text) + 1)) - inside:
        assert positions.offset(positions.position(offset)) == offset
