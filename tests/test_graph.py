"""The layer graph: what it says before and after each pass, and that passes change how a model runs but not what it means."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dense
import pytest
import torch
from formulas import mask
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FLOAT64, Case, made, rms
from strategies import Sizes, key_sets, spec_texts

from attnc.compiler import check_path, check_text, graph, passes
from attnc.compiler.graph import Combine, Graph, Mix
from attnc.compiler.intervals import resolve, visible
from attnc.compiler.mixers import MIXERS
from attnc.compiler.plan import reachable
from attnc.compiler.show import graph_text
from attnc.compiler.spec import PHASES
from attnc.compiler.verify import verify
from attnc.compiler.walk import parts

SPECS = Path(__file__).parent.parent / "specs"
GOLDEN = ("echoatt", "longlora", "ls-attention", "power", "window-global")
MIXED = """
model mixed { vocab = 64, dim = 48, layers = 3, heads = 12, kv_heads = 6, ffn = none, norm = rms(1e-6) }
mix local = sink(2) | window(8)
layers {
  0: heads { 0: full, 1: full | local, 2..3: local, 4: window(8) | sink(2), 5: local { rope = none } }
  1: heads { 0..2: when { length < 64: full, phase == decode: local, else: stride(4) }, else: local }
  2: (when { phase == train: heads { 50%: block_local(8), else: local }, else: full }) + gate(conv(3), full)
}
"""


def stages(spec):
    """(what was done, the graph after it)."""
    found = graph.build(spec)
    yield "as built", found
    for step in passes.PASSES:
        found = step(found)
        yield step.__name__, found


@pytest.mark.parametrize("name", [*GOLDEN, "mixed"])
def test_the_graph_before_and_after_each_pass_is_as_accepted(name, golden):
    spec = check_text(MIXED) if name == "mixed" else check_path(SPECS / f"{name}.attn")
    golden(f"{name}.txt", "\n".join(f"--- {what}\n{graph_text(found)}" for what, found in stages(spec)))


def groups_seen(found: Graph, layer: int, scope: str, phase: str, length: int) -> dict[int, list]:
    """KV group -> the head groups that run for it in this case: one, if all is well."""
    owners: dict[int, list] = {}
    mixes = [node for _, node in found.nodes(layer) if isinstance(node, Mix) and node.scope == scope]
    for mix in mixes:
        for variant in [one for one in mix.variants if reachable(one.guards, phase, length)][:1]:
            for group in variant.groups:
                for head in range(group.first, group.last + 1):
                    owners.setdefault(head, []).append((group, mix.attributes))
    return owners


@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(spec_texts(Sizes(rich=True, route=True, causal=None)), st.integers(1, 60))
def test_every_kv_group_reads_once_what_the_spec_says_after_every_pass(text, length):
    spec = check_text(text)
    for _, found in stages(spec):
        verify(found)
        for layer, phase in itertools.product(spec.layers, PHASES):
            for scope, mixer, _ in parts(layer.mixer):
                if mixer.node in ("mixing", "route"):
                    continue
                groups = groups_seen(found, layer.index, scope, phase, length)
                for head in range(dense.any_attention(mixer).attributes.kv_heads):
                    leaf = dense.owner(mixer, head, phase, length)
                    ((group, attributes),) = groups[head]
                    assert attributes == leaf.attributes
                    assert equal_keys(group, leaf, length)


def equal_keys(group, leaf, length) -> bool:
    """Whether a head group sees what an attention of the spec says: by its key sets, by its intervals, and learned keys."""
    causal = leaf.attributes.causal
    wanted = mask(leaf.keys, 0, length, length, causal)
    numbers = visible(torch.arange(length)[:, None], torch.arange(length)[None], resolve(group.intervals, length))
    learned = [[key for key in keys if MIXERS[key.kind].own_keys(key)] for keys in (group.keys, leaf.keys)]
    same = torch.equal(mask(group.keys, 0, length, length, causal), wanted) and torch.equal(numbers, wanted)
    return same and learned[0] == learned[1]


def dropped(keys, causal):
    """The key sets of a union that a pass leaves out."""
    rules = f"all: {' | '.join(map(word, keys))}"
    text = (
        f"model m {{ vocab = 8, dim = 8, layers = 1, heads = 1, ffn = none, norm = rms(1e-6), causal = {str(causal).lower()} }}"
    )
    found = passes.run(graph.build(check_text(f"{text} layers {{ {rules} }}")))
    (mix,) = [node for _, node in found.nodes() if isinstance(node, Mix)]
    return [key for key in keys if key not in mix.variants[0].groups[0].keys]


def word(kind):
    given = {key: value for key, value in vars(kind).items() if key not in ("kind", "detect")}
    numbers = [str(value) if key == "n" else f"{key} = {value}" for key, value in given.items()]
    return f"{kind.kind}({', '.join(numbers)})" if numbers else kind.kind


def blocks(kind):
    """The size of a kind's blocks of tokens; 1 where it goes by single tokens."""
    return getattr(kind, "aligned", kind.n if kind.kind in ("block_local", "power_of_two") else 1)


LONG = 150
"""Tokens; several times what the drawn key sets reach, so that these see all that can ever be different."""


@settings(max_examples=2 * settings.default.max_examples)
@given(key_sets(12, shares=False), key_sets(12, shares=False), st.booleans())
def test_a_key_set_is_dropped_exactly_if_another_sees_all_of_it(one, other, causal):
    if one == other:
        return
    seen = [mask((kind,), 0, LONG, LONG, causal) for kind in (one, other)]
    inside = not bool((seen[0] & ~seen[1]).any())
    outside = not bool((seen[1] & ~seen[0]).any())
    gone = dropped((one, other), causal)
    assert one not in gone or inside
    assert other not in gone or outside
    nested = max(blocks(one), blocks(other)) % min(blocks(one), blocks(other)) == 0
    if nested:  # of blocks that cut across each other some containments are not seen
        assert bool(gone) == (inside or outside)


@settings(max_examples=max(1, settings.default.max_examples // 10))
@given(text=spec_texts(Sizes(rich=True, layers=2)))
def test_a_model_built_without_grouping_gives_the_same_logits(text, tmp_path_factory):
    spec, folder = check_text(text), tmp_path_factory.mktemp("passes")
    case = Case.of(spec, folder / "grouped", tokens=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "PASSES", (passes.variants_in_one_launch,))
        plain = made(spec, folder / "plain")
    assert plain.state_dict().keys() == case.model.state_dict().keys()
    error = rms(plain(case.texts).logits - case.model(case.texts).logits)
    assert error <= FLOAT64 * case.rounding, spec.text


@pytest.mark.parametrize("break_it", ["twice", "never", "order"])
def test_a_graph_that_joins_a_head_twice_or_never_or_too_late_is_refused(break_it):
    found = graph.build(check_text(MIXED))
    name, node = next((name, node) for name, node in found.nodes() if isinstance(node, Mix))
    if break_it == "twice":
        found.network.nodes[name]["node"] = replace(node, last=node.last + 1)
    elif break_it == "never":
        reader = next(iter(found.network.successors(name)))
        assert isinstance(found.network.nodes[reader]["node"], Combine)
        found.network.remove_edge(name, reader)
    else:
        found.network.graph["order"].reverse()
    with pytest.raises(AssertionError):
        verify(found)


MEASURE = """
import json, sys, time
from attnc.compiler import check_text, graph, passes
from attnc.compiler.cost import Workload
from attnc.compiler.device import device
from attnc.compiler.plan import choose
start = time.process_time()
plan = choose(passes.run(graph.build(check_text(sys.stdin.read()))), device("h100"), Workload(length=8192))
seconds = time.process_time() - start
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([seconds, int(peak) / 1024, len(plan.choices)]))
"""


def measured(layers: int, rule: str, mixes: str = "") -> tuple[float, float, int]:
    """CPU seconds from the text to the plan; MiB of the whole process; choices.

    The kernel's high-water mark, since getrusage's begins with what the process that started this one held.
    """
    text = f"model big {{ vocab = 64, dim = 64, layers = {layers}, heads = 64, head_dim = 16, ffn = none, norm = rms(1e-6) }}"
    text = f"{text}\n{mixes}\nlayers {{ {rule} }}"
    run = subprocess.run([sys.executable, "-c", MEASURE], input=text, capture_output=True, text=True, check=True)
    return tuple(json.loads(run.stdout))


UNLIKE = ", ".join(f"{head}: sink({head}) | window({2 * head + 2}) | stride({head + 3})" for head in range(64))
OWN_ROPE = ", ".join(f"{head}: window(8) {{ rope = {head + 2} }}" for head in range(64))
OWN_CONDITION = ", ".join(f"{head}: when {{ length < {head + 2}: full, else: window({head + 3}) }}" for head in range(64))


def test_a_thousand_layers_of_64_unlike_heads_take_seconds():
    seconds, mebibytes, choices = measured(1000, f"all: heads {{ {UNLIKE} }}")
    assert choices == 3000
    assert seconds <= 20
    assert mebibytes <= 1024


def own_rules(layers: int) -> tuple[str, str]:
    """(a rule for each layer, with attributes of its own; a mix that all use)."""
    rules = "\n".join(f"{layer}: unlike {{ scale = {layer + 1} }}" for layer in range(layers))
    return rules, f"mix unlike = heads {{ {UNLIKE} }}"


def test_a_thousand_rules_of_64_unlike_heads_take_seconds():
    seconds, mebibytes, choices = measured(1000, *own_rules(1000))
    assert choices == 3000
    assert seconds <= 20
    assert mebibytes <= 1024


def test_time_grows_no_faster_than_the_rules():
    """Twice each: other processes only ever add to the time."""
    few, many = (min(measured(layers, *own_rules(layers))[0] for _ in range(2)) for layers in (40, 160))
    assert many <= 5 * few


@pytest.mark.parametrize("heads", [UNLIKE, OWN_ROPE, OWN_CONDITION], ids=["unlike", "own rope", "own condition"])
def test_time_and_memory_grow_no_faster_than_the_layers(heads):
    few, many = (measured(layers, f"all: heads {{ {heads} }}") for layers in (10, 80))
    assert many[2] == 8 * few[2]
    assert many[0] <= 8 * max(few[0], 0.05) * 1.5
    assert many[1] <= 8 * few[1]
