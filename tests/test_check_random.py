"""Random legal specs check, print, and read back as the same spec."""

from __future__ import annotations

import json

from hypothesis import given
from strategies import Sizes, spec_texts

from attnc.compiler import check_text, graph, passes
from attnc.compiler.cache_spec import cache_bytes, cache_spec, full_attention_bytes
from attnc.compiler.data import from_json, to_data, to_json
from attnc.compiler.kept import kept_heads
from attnc.compiler.mixer import Kept
from attnc.compiler.spec import Spec
from attnc.compiler.table import table
from attnc.compiler.table_text import table_text


def without_origins(spec: Spec) -> str:
    def stripped(value):
        if isinstance(value, dict):
            return {key: stripped(inner) for key, inner in value.items() if key not in ("origin", "file", "text")}
        return [stripped(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(stripped(to_data(spec)))


@given(spec_texts(Sizes(causal=None, route=True)))
def test_a_random_spec_checks_and_its_canonical_text_means_the_same(text):
    spec = check_text(text)
    assert without_origins(check_text(spec.text)) == without_origins(spec)
    assert check_text(spec.text).text == spec.text


@given(spec_texts(Sizes(causal=None, route=True)))
def test_a_spec_survives_json(text):
    spec = check_text(text)
    assert from_json(Spec, to_json(spec)) == spec


@given(spec_texts(Sizes(route=True)))
def test_rows_own_every_group_and_caches_count_what_they_hold(text):
    spec = check_text(text)
    assert table_text(spec)
    assert {layer for row in table(spec) for layer in row.layers} == set(range(spec.model.layers))
    for tokens in (1, 7, 100):
        rows = cache_spec(spec, "float32")
        fixed = sum(row.bytes_fixed for row in rows)
        exact = all(isinstance(row.tokens_kept, int | None) for row in rows)
        if exact:
            assert cache_bytes(spec, tokens, "float32") == fixed + tokens * sum(row.bytes_per_token for row in rows)
    assert full_attention_bytes(spec, 10, "float32") == 10 * full_attention_bytes(spec, 1, "float32")


@given(spec_texts(Sizes(groups=6)))
def test_the_cache_of_a_spec_is_the_cache_of_its_graph(text):
    """`cache_spec` walks the spec, the emitter the graph after all passes: two ways to one answer, KV head by KV head."""
    spec = check_text(text)
    from_graph = {}
    for _, node in passes.run(graph.build(spec)).nodes():
        if isinstance(node, graph.Mix) and node.attributes.causal:
            for first, last, kept in kept_heads(node):
                for head in range(first, last + 1):
                    from_graph[node.layer, node.scope, head] = kept
    from_spec = {}
    for row in cache_spec(spec, "float32"):
        if row.kind == "fixed":
            continue
        name, _, heads = row.name.removeprefix(f"layers.{row.layer}").removeprefix(".").rpartition("heads.")
        whole = not heads or not heads[0].isdigit()
        scope = row.name.removeprefix(f"layers.{row.layer}").removeprefix(".") if whole else name.removesuffix(".")
        first = 0 if whole else int(heads.partition("-")[0])
        for head in range(first, first + row.kv_heads):
            from_spec[row.layer, scope, head] = Kept(pinned=row.pinned, recent=row.recent)
    assert from_spec == from_graph
