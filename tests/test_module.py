"""What a build writes: the same bytes anywhere, text that stands alone, tensors that the compiler foretold."""

from __future__ import annotations

import ast
import keyword
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from strategies import Sizes, spec_texts

import attnc
from attnc.codegen.build import Options, build, plan_all, write_texts
from attnc.compiler import check_text, graph, parameters, passes
from attnc.compiler.part_names import RESERVED, part_names

MODEL = """model {name} {{ vocab = 32, dim = 24, layers = {layers}, ffn = swiglu(32), norm = rms(1e-6), heads = 6, kv_heads = 3
  {more} }}"""
SPECS = {
    "mixed_heads": (1, "head_dim = 8, rope = 10000", "all: heads { 0: full, else: sink(2) | window(5) }"),
    "echo": (2, "head_dim = 8, rope = 10000, tie = true", "0: full\n  1: full { qk_from = previous }"),
    "branches": (
        3,
        "head_dim = 8, rope = 10000",
        "0: full + conv(3)\n  1: gate(full, window(4), by = product)\n  2: full >> window(4)",
    ),
    "phases": (
        *(1, "head_dim = 8, rope = 10000"),
        "all: when { phase == train: block_local(25%, shift = 50%), length < 12: full, else: window(4) }",
    ),
    "attributes": (
        *(2, "head_dim = 8, rope = 10000, qk_norm = rms, norm_place = sandwich, logit_cap = 5, score_cap = 4"),
        "0: full { sink_logit = learned, output_gate = silu, output_norm = rms, scale = learned(init = 0.5) }\n"
        "  1: full { score = softplus(exponent = 3), short_conv = 3, temperature = log_position }",
    ),
    "spaces": (
        *(3, "head_dim = 8"),
        "0: ssm(mamba, state = 3) { short_conv = 3, output_gate = silu }\n"
        "  1: ssm(mamba2, state = 5) { heads = 4, short_conv = 4, output_gate = silu, output_norm = rms }"
        " + ssm(s4d, state = 4)\n"
        "  2: linear(decay = vector, state = vector)",
    ),
    "nets": (
        *(2, "head_dim = 8"),
        "0: memory(mlp, chunk = 16, momentum = learned, decay = 0.01) { short_conv = 3, qk_norm = l2, output_norm = rms }\n"
        "  1: window(4) + memory(swiglu, lr = learned(per = head), residual = true, norm = layer, read = after_write)",
    ),
    "routed": (
        1,
        "head_dim = 8, rope = 10000",
        "all: route(per = token, by = router(linear)) { exact: full, near: window(4) }",
    ),
}


def text_of(name: str) -> str:
    layers, more, cases = SPECS[name]
    return f"{MODEL.format(name=name, layers=layers, more=more)}\n\nlayers {{\n  {cases}\n}}\n"


def texts(spec) -> dict[str, str]:
    made = passes.run(graph.build(spec))
    return write_texts(spec, made, plan_all(made, Options(), cap=spec.model.score_cap is not None))[0]


@pytest.mark.parametrize("name", SPECS)
def test_emitted_modules(name, golden):
    written = texts(check_text(text_of(name), f"{name}.attn"))
    for file in ("model.py", "reference.py"):
        golden(f"{name}/{file}", written[file])


@pytest.mark.parametrize("name", SPECS)
def test_the_same_spec_gives_the_same_bytes_wherever_it_lies(name):
    here, there = (texts(check_text(text_of(name), folder + f"{name}.attn")) for folder in ("", "/some/where/else/"))
    assert here == there


@pytest.mark.parametrize("name", SPECS)
def test_emitted_files_are_clean_python(name, tmp_path):
    written = texts(check_text(text_of(name), f"{name}.attn"))
    for file, text in written.items():
        if file.endswith(".py") and not file.startswith("runtime/"):
            ast.parse(text)
            (tmp_path / file.replace("/", "_")).write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,W", "--line-length", "160", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(text=spec_texts(Sizes(rich=True, route=True, causal=None)))
def test_emitted_files_of_random_specs_are_clean_python(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    for file, written in texts(check_text(text)).items():
        if file in ("__init__.py", "model.py", "reference.py", "kernels/__init__.py"):
            (folder / file.replace("/", "_")).write_text(written)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,W", "--ignore", "E501", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{text}\n{run.stdout}"


def test_names_of_parts_are_free_in_python_and_in_torch():
    own = [name for name in dir(torch.nn.Module()) if re.fullmatch("[a-z][a-z0-9_]*", name)]
    assert set(own) <= RESERVED
    assert set(keyword.kwlist) <= RESERVED
    assert part_names(["full", "class", "full", "full_2", "forward"]) == ("full", "class_", "full_2_", "full_2", "forward_")
    words = ["full", "full", "full_2", "full_2_", "to", "to_", "to__2", "to"]
    assert len(set(part_names(words))) == len(words)
    assert not set(part_names(words)) & RESERVED


def test_a_loaded_model_can_be_copied_and_needs_no_compiler_of_torch(tmp_path):
    build(check_text(text_of("echo"), "echo.attn"), tmp_path / "out", Options(seed=0))
    code = "import attnc, copy, sys; copy.deepcopy(attnc.load(sys.argv[1])); print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False", "importing it takes seconds"


def test_a_folder_built_anew_in_one_process_is_imported_anew(tmp_path):
    """Two specs that differ in nothing but a number of model.py."""
    found = []
    for base in (10000, 500):
        text = text_of("echo").replace("rope = 10000", f"rope = {base}")
        build(check_text(text, "echo.attn"), tmp_path / "out", Options(seed=0))
        model = attnc.load(tmp_path / "out", dtype=torch.float64)
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(100)
            found.append(model(torch.arange(8)[None]).logits)
    assert not torch.equal(*found)


@pytest.mark.parametrize("name", SPECS)
def test_a_model_holds_the_tensors_that_the_compiler_foretold(name, tmp_path):
    spec = check_text(text_of(name), f"{name}.attn")
    report = build(spec, tmp_path / "out", Options(seed=0))
    model = attnc.load(tmp_path / "out")
    foretold = {w.name: w.shape for w in parameters.parameters(spec, passes.run(graph.build(spec)))}
    found = {parameter_name: tuple(parameter.shape) for parameter_name, parameter in model.named_parameters()}
    assert found == foretold
    assert report.built.parameters == sum(parameter.numel() for parameter in model.parameters())


ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"attnc", "lark", "pydantic", "networkx", "jinja2", "typer", "rich", "triton"}:
            raise ImportError(f"{name} is not for built folders")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import torch
import out

for way in ("plan", "reference"):
    model = out.load(dtype=torch.float64, use=way)
    tokens = torch.arange(12).reshape(2, 6)
    whole = model(tokens).logits
    cache = model.new_cache(2, 16)
    parts = [model(tokens[:, :4], cache=cache, phase="prefill", total_lengths=6).logits]
    parts += [model(tokens[:, 4:], cache=cache, total_lengths=6).logits]
    print(way, whole.shape, (torch.cat(parts, 1) - model(tokens, phase="prefill").logits).abs().max().item())
"""


@pytest.mark.parametrize("name", ["mixed_heads", "branches", "routed"])
def test_a_built_folder_runs_where_attnc_is_not_installed(name, tmp_path):
    build(check_text(text_of(name), f"{name}.attn"), tmp_path / "out", Options(seed=0))
    run = subprocess.run([sys.executable, "-I", "-c", ALONE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["plan", "reference"]
    assert all(float(line.split()[-1]) < 2.0**-40 for line in lines), "prefill in chunks is prefill, to float64's rounding"


@pytest.mark.parametrize(
    "hostile", ['a"""\nimport os  #.attn', "a\r\nb.attn", "x'); boom('.attn", "\u2028break.attn", "é\x0c.attn"]
)
def test_no_file_name_reaches_generated_code_as_it_is(hostile):
    plain = texts(check_text(text_of("mixed_heads"), "plain.attn"))
    written = texts(check_text(text_of("mixed_heads"), hostile))
    for file, text in written.items():
        if file.endswith(".py"):
            assert text.isascii() or text == plain[file]
            assert ast.dump(strip(ast.parse(text))) == ast.dump(strip(ast.parse(plain[file]))), file


def strip(module: ast.Module) -> ast.Module:
    """The code without its docstrings."""
    for node in ast.walk(module):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return module


def test_the_plan_lists_every_file_and_every_kernel(tmp_path):
    report = build(check_text(text_of("mixed_heads"), "mixed_heads.attn"), tmp_path / "out", Options(seed=0))
    files = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in Path(tmp_path / "out").rglob("*") if path.is_file()
    )
    assert list(report.built.files) == files
    kernels = {name for name in files if name.startswith("kernels/softmax")}
    assert set(report.built.kernels) == kernels
