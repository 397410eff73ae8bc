"""Prints how many emitted kernels have no row in docs/gpu.json: those that no Hopper GPU has compared with the reference yet.

The emitted kernels are those of all specs that this version builds, and the accepted ones of tests/golden.
"""

from __future__ import annotations

from pathlib import Path

import attnc
from attnc.cli.verified import digests
from attnc.codegen import build, kernels
from attnc.compiler import graph, passes
from attnc.compiler.unbuilt import unbuilt

TOP = Path(__file__).parent.parent
ARCHITECTURE = "sm_90"


def emitted() -> dict[str, str]:
    """Every different kernel by its digest, with one place where it is found."""
    found = {}
    for path in sorted((TOP / "tests" / "golden" / "kernels").glob("*.py")):
        found[kernels.digest(path.read_text("utf-8"), ARCHITECTURE)] = path.name
    for path in sorted((TOP / "specs").glob("*.attn")):
        spec = attnc.check(path)
        if unbuilt(spec):
            continue
        layers = passes.run(graph.build(spec))
        texts, _ = build.write_texts(spec, layers, build.plan_all(layers, build.Options()))
        found |= {
            kernels.digest(text, ARCHITECTURE): f"{path.stem}/{name}"
            for name, text in texts.items()
            if name.startswith(build.KERNELS)
        }
    return found


def main() -> None:
    """One line, and one for each kernel that waits for a GPU."""
    found, known = emitted(), digests(TOP / "docs" / "gpu.json", ARCHITECTURE)
    waiting = [place for digest, place in found.items() if digest not in known]
    print(f"{len(waiting)} of {len(found)} emitted kernels have no row in docs/gpu.json{':' if waiting else ''}")
    for place in waiting:
        print(f"  {place}")


if __name__ == "__main__":
    main()
