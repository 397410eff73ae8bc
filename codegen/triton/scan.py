"""The kernel files of matrix states: skeletons with the holes of a decay and of the strengths filled.

As for the softmax family (emit.py), whole functions are exchanged and constants set. What several of these skeletons share they
import from each other; the emitter puts those functions in the place of the import, so that a file stands alone.
"""

from __future__ import annotations

import ast
from functools import lru_cache

from attnc.codegen.triton.emit import SKELETONS, fill, first_line, functions_of, read_holes, table
from attnc.codegen.triton.known_bugs import refusals
from attnc.codegen.triton.scan_blocks import blocks
from attnc.compiler.families import FAMILIES, Recurrence

PACKAGE = "attnc.codegen.triton.skeletons."


def emit_scan(skeleton: str, kernel: Recurrence) -> str:
    """The text of a kernel file; `skeleton` is one of the family's. Same arguments, same bytes."""
    assert skeleton in FAMILIES["recurrence"], skeleton
    source = joined((SKELETONS / f"{skeleton}.py").read_text(encoding="utf-8"))
    there = functions_of(source)
    holes: dict[str, str] = {}
    for name in chosen_holes(skeleton, kernel):
        holes |= {name: text for name, text in read_holes(name).items() if name in there}
    rows = blocks(skeleton, kernel)
    text = fill(source, holes, {**constants(skeleton, kernel), "BLOCKS": table(rows)})
    met = refusals(text, rows)
    assert not met, f"{skeleton} would meet {', '.join(met)}"
    return text


def files(kernel: Recurrence) -> dict[str, str]:
    """Skeleton -> text of every file that a launch needs."""
    chunks, flows = kernel.decay in ("scalar", "vector") or kernel.update == "delta", kernel.decay == "vector"
    out = {"scan_chunks": chunks, "scan_flows": flows, "scan_values": kernel.update == "add"}
    return {skeleton: emit_scan(skeleton, kernel) for skeleton in FAMILIES["recurrence"] if out.get(skeleton, True)}


def constants(skeleton: str, kernel: Recurrence) -> dict[str, str]:
    """The constants at the top of a skeleton."""
    every = {
        "FORM": (kernel.decay, kernel.update, kernel.erase, kernel.write, kernel.normalize),
        "KEY_WIDTH": kernel.key_width if skeleton == "scan_step" else -(-kernel.key_width // 16) * 16,  # rows are read whole
        "VALUE_WIDTH": kernel.value_width,
        "CHANNELS": kernel.decay == "vector",
        "DECAYS": kernel.decay != "none",
        "FADES": kernel.decay == "scalar",
        "DELTA": kernel.update == "delta",
        "NORMALIZE": kernel.normalize,
        "WIDE": kernel.normalize and kernel.decay in ("head", "scalar"),  # what is read less what is divided by is little
    }
    source = (SKELETONS / f"{skeleton}.py").read_text(encoding="utf-8")
    return {name: repr(value) for name, value in every.items() if f"\n{name} = " in source}


def chosen_holes(skeleton: str, kernel: Recurrence) -> tuple[str, ...]:
    """Which files of skeletons/holes a kernel needs, later ones before earlier ones."""
    delta, sweeps = kernel.update == "delta", skeleton in ("scan_forward", "scan_outputs", "scan_backward", "scan_values")
    folded = kernel.decay == "vector" and skeleton not in ("scan_step", "scan_flows")
    wanted = (
        ("scan_none", kernel.decay == "none"),
        ("scan_head", kernel.decay == "head"),
        ("scan_erase_channels", kernel.erase == "vector"),
        ("scan_write_channels", kernel.write == "vector"),
        ("scan_step_channels", kernel.decay == "vector" and skeleton == "scan_step"),
        ("scan_channels", folded),
        ("scan_folded", folded and skeleton != "scan_chunks"),
        ("scan_fades", delta and kernel.decay == "scalar" and sweeps),
        ("scan_sums", not delta and kernel.decay == "scalar" and (sweeps or skeleton == "scan_gradients")),
        ("scan_weights", kernel.decay == "vector" or delta),
    )
    return tuple(name for name, is_wanted in wanted if is_wanted)


@lru_cache(maxsize=16)  # there are few skeletons
def joined(source: str) -> str:
    """A skeleton with the functions that it imports from others, and that these call, in the place of the imports."""
    lines, nodes = source.splitlines(), ast.parse(source).body
    shared = [line for text in _imported(source).values() for line in (*text.splitlines(), "", "")]
    begin = first_line(next(node for node in nodes if isinstance(node, ast.FunctionDef)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    gone = {at for node in imports for at in range(node.lineno - 1, node.end_lineno or 0)}
    gone |= {min(gone) - 1} if gone else set()  # the empty line before them
    kept = [line for at, line in enumerate(lines[:begin]) if at not in gone]
    return "\n".join([*kept, *shared, *lines[begin:]]) + "\n"


def _imported(source: str) -> dict[str, str]:
    """Name -> text of the functions that a skeleton imports from others, then of those that these call."""
    found: dict[str, str] = {}
    left = _places(source)
    while left:
        name, file = left.pop(0)
        other = (SKELETONS / f"{file}.py").read_text(encoding="utf-8")
        own = functions_of(other)
        near = dict.fromkeys(own, file) | dict(_places(other))
        found[name] = own[name]
        names = [node for node in ast.walk(ast.parse(own[name])) if isinstance(node, ast.Name)]
        called = {node.id for node in names} - {node.id for node in names if isinstance(node.ctx, ast.Store)}
        queued = {*found, *functions_of(source), *(one for one, _ in left)}
        left += [(one, near[one]) for one in near if one in called and one not in queued]
    return found


def _places(source: str) -> list[tuple[str, str]]:
    """The names that a skeleton imports from others, and the files where they are."""
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    assert all(node.module is not None and node.module.startswith(PACKAGE) for node in imports), "skeletons import skeletons"
    return [(alias.name, (node.module or "").removeprefix(PACKAGE)) for node in imports for alias in node.names]
