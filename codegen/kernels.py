"""The kernels of a built folder: one file for each distinct kernel, and a table from launches to files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from attnc.codegen.triton import channels
from attnc.codegen.triton import emit as triton
from attnc.compiler.attributes import Softplus
from attnc.compiler.channel_providers import ChannelLaunch, unkept
from attnc.compiler.families import FAMILIES, Channels, Softmax
from attnc.compiler.graph import Apply, Graph, Mix
from attnc.compiler.plan import states, unsaid
from attnc.compiler.spec import Model

INDEX = '''"""The generated kernels of each launch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

{imports}from ..runtime.launch import Kernels
from ..runtime.softplus import SoftplusKernels
from ..runtime.tuning import blocks

TUNING = Path(__file__).parents[1] / "tuning.json"

# launch -> files of its kernels: prefill, decode, backward of queries, backward of keys
FILES = {{
{rows}
}}

# the same of launches whose weights are softplus masses: those that sum masses, then those that re-weigh them
SOFTPLUS = {{
{softplus}
}}
{channels}

def kernel(launch: str) -> {of_channels}Kernels | SoftplusKernels | None:
    """The kernels of a launch, or None where it has none; their files are imported now, which needs triton."""
{first}    names = (*FILES.get(launch, ()), *SOFTPLUS.get(launch, ()))
    files = [import_module(f".{{name}}", __package__) for name in names]
    for name, file in zip(names, files, strict=True):
        file.BLOCKS.update(blocks(TUNING, name, file.triton.__version__))
    if not files:
        return None
    return SoftplusKernels.of(files) if launch in SOFTPLUS else Kernels.of(*files)
'''

NO_CHANNELS = {"imports": "", "channels": "", "of_channels": "", "first": ""}
WITH_CHANNELS = {
    "imports": "from ..runtime.channel_kernels import channel_kernels\nfrom ..runtime.channels import ChannelScan\n",
    "of_channels": "ChannelScan | ",
    "first": """    if launch in CHANNELS:
        return channel_kernels(import_module(f".{CHANNELS[launch]}", __package__))
""",
}
CHANNELS = """
# the same of launches of channel states: one file each
CHANNELS = {{
{rows}
}}
"""


def emit(graph: Graph, launches: Mapping[str, str], model: Model) -> dict[str, str]:
    """File name below kernels/ -> text, for every launch that a family of kernels can say."""
    numbers: dict[Softmax, int] = {}
    of_channels: dict[Channels, int] = {}
    channel_rows: list[str] = []
    rows: list[str] = []
    softplus: list[str] = []
    for launch, node in launches.items():
        served = graph.network.nodes[node]["node"]
        kernel = family(served, model) if isinstance(served, Mix) else None
        launched = states(served, graph) if isinstance(served, Apply) else None
        if isinstance(launched, ChannelLaunch) and unkept(launched.family) is None:
            number = of_channels.setdefault(launched.family, len(of_channels))
            channel_rows.append(f'    "{launch}": "{channels.SKELETON}_{number}",')
        if kernel is not None:
            needed = (kernel.masses, kernel) if kernel.exponent else (kernel,)
            found = [numbers.setdefault(one, len(numbers)) for one in needed]
            names = [", ".join(f'"{skeleton}_{number}"' for skeleton in FAMILIES["softmax"]) for number in found]
            if kernel.exponent:
                softplus.append(_over_lines(launch, names))
            else:
                rows.append(f'    "{launch}": ({names[0]}),')
    more = NO_CHANNELS
    if of_channels:
        more = WITH_CHANNELS | {"channels": CHANNELS.format(rows="\n".join(channel_rows))}
    files = {"__init__.py": INDEX.format(rows="\n".join(rows), softplus="\n".join(softplus), **more)}
    files |= {f"{channels.SKELETON}_{number}.py": channels.emit(one) for one, number in of_channels.items()}
    for kernel, number in numbers.items():
        for skeleton in FAMILIES["softmax"]:
            files[f"{skeleton}_{number}.py"] = triton.emit(skeleton, kernel)
    return files


def _over_lines(launch: str, names: list[str]) -> str:
    return "\n".join([f'    "{launch}": (', *(f"        {four}," for four in names), "    ),"])


def family(mix: Mix, model: Model) -> Softmax | None:
    """The kernel of the softmax family that serves a mix, or None where it cannot be said."""
    a = mix.attributes
    if unsaid(mix) is not None or max(a.key_width, a.value_dim) > 256:
        return None
    if all(any(group.choices for group in variant.groups) for variant in mix.variants):
        return None  # no kernel reads lists yet
    unions = [group.intervals for variant in mix.variants for group in variant.groups if group.intervals is not None]
    return Softmax.of(
        unions,
        head_width=a.key_width,
        value_width=a.value_dim,
        group=a.heads // a.kv_heads,
        cap=model.score_cap is not None,
        sink_logit=a.sink_logit is not None,
        exponent=float(a.score.exponent) if isinstance(a.score, Softplus) else None,
    )


def digest(text: str, architecture: str | None = None) -> str:
    """What names a kernel's text; with an architecture, the text as that reads it: without the blocks of the others."""
    kept = [line for line in text.splitlines() if architecture is None or not _of_another(line, architecture)]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _of_another(line: str, architecture: str) -> bool:
    """Whether a line is a row of BLOCKS for another architecture."""
    found = re.match(r'    \("(\w+)", \d\): ', line)
    return found is not None and found[1] != architecture
