"""The kernels of a built folder: one file for each distinct kernel, and a table from launches to files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from attnc.codegen.gluon import files as gluon
from attnc.codegen.gluon import lists as gluon_lists
from attnc.codegen.triton import channels, fast, lists, scan
from attnc.codegen.triton import emit as triton
from attnc.compiler import channel_providers, scan_providers
from attnc.compiler.attributes import Softplus
from attnc.compiler.cost import Launch, Seen
from attnc.compiler.families import FAMILIES, Channels, FastWeights, Recurrence, Softmax
from attnc.compiler.graph import Apply, Graph, Mix, Smooth
from attnc.compiler.list_providers import chosen, chunks_of, listed, ungraded, unmade, unread, unread_in_gluon
from attnc.compiler.plain_providers import PlainLaunch
from attnc.compiler.plan import launch_of, states, unsaid
from attnc.compiler.providers import KERNEL_WIDTHS, no_gluon
from attnc.compiler.spec import Model

INDEX = '''"""The generated kernels of each launch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

{channel_imports}{net_imports}from ..runtime.launch import Kernels
{list_imports}{state_imports}from ..runtime.softplus import SoftplusKernels
from ..runtime.tuning import blocks

TUNING = Path(__file__).parents[1] / "tuning.json"

# launch -> files of its kernels: prefill, decode, backward of queries, backward of keys
FILES = {{
{rows}
}}

# the same with those in Gluon, for sm_90; where there is none, that of FILES
GLUON = {{
{gluon}
}}

# the same of launches whose weights are softplus masses: those that sum masses, then those that re-weigh them
SOFTPLUS = {{
{softplus}
}}
{channels}{states}{nets}{lists}

def kernel(launch: str, *, gluon: bool = False) -> {others}Kernels | SoftplusKernels | None:
    """The kernels of a launch, or None where it has none; their files are imported now, which needs triton.

    gluon: those of which some are written in Gluon
    """
{first}    if gluon:
        return Kernels.of(*map(_file, GLUON[launch])) if launch in GLUON else None
    files = [_file(name) for name in (*FILES.get(launch, ()), *SOFTPLUS.get(launch, ()))]
    if not files:
        return None
    return SoftplusKernels.of(files) if launch in SOFTPLUS else Kernels.of(*files)


def _file(name: str) -> ModuleType:
    """A kernel file, with the blocks that were tuned for it."""
    file = import_module(f".{{name}}", __package__)
    file.BLOCKS.update(blocks(TUNING, name, file.triton.__version__))
    return file
'''

NO_STATES = {"state_imports": "", "states": "", "others": "", "first": ""}
WITH_STATES = {
    "state_imports": "from ..runtime.recurrence import Scan\nfrom ..runtime.scan_kernels import scan_kernels\n",
    "others": "Scan | ",
    "first": """    if launch in STATES:
        return scan_kernels([_file(name) for name in STATES[launch]])
""",
}
STATES = """
# the same of launches of matrix states: what chunks need, chunk by chunk, token by token, back, gradients
STATES = {{
{rows}
}}
"""
NO_LISTS = {"list_imports": "", "lists": "", "others": "", "first": ""}
WITH_LISTS = {
    "list_imports": "from ..runtime.list_kernels import ListKernels\n",
    "others": "ListKernels | ",
    "first": """    if launch in LISTS:
        others = [Kernels.of(*map(_file, files)) if files else None for files in SUMMARIES.get(launch, (None, None))]
        names = (*(LISTS_IN_GLUON.get(launch, ()) if gluon else ()), *LISTS[launch])
        return ListKernels.of([_file(name) for name in names], *others)
""",
}
LISTS = """
# the same of keys that content chooses for launches: what reads lists, what makes them
LISTS = {{
{rows}
}}

# those in Gluon, which read lists that many queries share
LISTS_IN_GLUON = {{
{gluon}
}}

# those of FILES for what such a launch reads beside its lists: tokens that are shown, or nothing, and what stands for chunks
SUMMARIES = {{
{summaries}
}}
"""
NO_CHANNELS = {"channel_imports": "", "channels": "", "others": "", "first": ""}
WITH_CHANNELS = {
    "channel_imports": "from ..runtime.channel_kernels import channel_kernels\nfrom ..runtime.channels import ChannelScan\n",
    "others": "ChannelScan | ",
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
NO_NETS = {"net_imports": "", "nets": "", "others": "", "first": ""}
WITH_NETS = {
    "net_imports": "from ..runtime.fast import Teach\nfrom ..runtime.fast_kernels import fast_kernels\n",
    "others": "Teach | ",
    "first": """    if launch in NETS:
        return fast_kernels(*(_file(name) if name else None for name in NETS[launch]))
""",
}
NETS = """
# the same of launches of fast weights: from chunk to chunk, or nothing, and token by token
NETS = {{
{rows}
}}
"""


def emit(graph: Graph, launches: Mapping[str, str], model: Model) -> dict[str, str]:
    """File name below kernels/ -> text, for every launch that a family of kernels can say."""
    numbers: dict[Softmax, int] = {}
    rows: list[str] = []
    softplus: list[str] = []
    of_gluon: dict[str, Softmax] = {}
    for launch, node in launches.items():
        served = graph.network.nodes[node]["node"]
        kernel = family(served, model) if isinstance(served, Mix) else None
        if kernel is not None:
            needed = (kernel.masses, kernel) if kernel.exponent else (kernel,)
            found = [numbers.setdefault(one, len(numbers)) for one in needed]
            names = [", ".join(f'"{skeleton}_{number}"' for skeleton in FAMILIES["softmax"]) for number in found]
            if kernel.exponent:
                softplus.append(_over_lines(launch, names))
            else:
                rows.append(f'    "{launch}": ({names[0]}),')
                if no_gluon(kernel.head_width, kernel.value_width) is None:
                    of_gluon[launch] = kernel
    others = [of(graph, launches) for of in (_of_channels, _of_states, _of_nets)]
    others.append(_of_lists(graph, launches, model, numbers))
    files = {name: text for _, made in others for name, text in made.items()}
    for kernel, number in numbers.items():
        for skeleton in FAMILIES["softmax"]:
            files[f"{skeleton}_{number}.py"] = triton.emit(skeleton, kernel)
    in_gluon = []
    for launch, kernel in of_gluon.items():
        named = {f"{name}_{numbers[kernel]}": name for name in gluon.names(kernel)}
        files |= {f"{file}.py": gluon.text(name, kernel) for file, name in named.items() if f"{file}.py" not in files}
        in_gluon.append("\n".join([f'    "{launch}": (', *(f'        "{file}",' for file in named), "    ),"]))
    joined = {key: "".join(one[key] for one, _ in others) for key in ("others", "first")}
    parts = {key: value for one, _ in others for key, value in one.items()}
    index = INDEX.format(rows="\n".join(rows), gluon="\n".join(in_gluon), softplus="\n".join(softplus), **(parts | joined))
    return {"__init__.py": index, **files}


def _of_channels(graph: Graph, launches: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the index says of launches of channel states, and their files."""
    numbers: dict[Channels, int] = {}
    rows = []
    for launch, family in _families(graph, launches):
        if isinstance(family, Channels) and channel_providers.unkept(family) is None:
            rows.append(f'    "{launch}": "{channels.SKELETON}_{numbers.setdefault(family, len(numbers))}",')
    index = WITH_CHANNELS | {"channels": CHANNELS.format(rows="\n".join(rows))} if rows else NO_CHANNELS
    return index, {f"{channels.SKELETON}_{number}.py": channels.emit(one) for one, number in numbers.items()}


def _of_states(graph: Graph, launches: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the index says of launches of matrix states, and their files."""
    numbers: dict[Recurrence, int] = {}
    rows: list[str] = []
    files: dict[str, str] = {}
    for launch, family in _families(graph, launches):
        if isinstance(family, Recurrence) and scan_providers.unkept(family) is None:
            number = numbers.setdefault(family, len(numbers))
            named = {f"{name}_{number}": text for name, text in scan.files(family).items()}
            rows.append("\n".join([f'    "{launch}": (', *(f'        "{name}",' for name in named), "    ),"]))
            files |= {f"{name}.py": text for name, text in named.items()}
    index = WITH_STATES | {"states": STATES.format(rows="\n".join(rows))} if rows else NO_STATES
    return index, files


def _of_nets(graph: Graph, launches: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the index says of launches of fast weights, and their files."""
    numbers: dict[str, str] = {}
    rows = []
    for launch, family in _families(graph, launches):
        texts = of_states(family) if isinstance(family, FastWeights) else {}
        names = [numbers.setdefault(text, f"{name}_{len(numbers)}") for name, text in texts.items()]
        if names:
            chunks = "" if len(names) == 1 else names[0]
            rows.append(f'    "{launch}": ("{chunks}", "{names[-1]}"),')
    index = WITH_NETS | {"nets": NETS.format(rows="\n".join(rows))} if rows else NO_NETS
    return index, {f"{name}.py": text for text, name in numbers.items()}


def _of_lists(
    graph: Graph, launches: Mapping[str, str], model: Model, softmaxes: dict[Softmax, int]
) -> tuple[dict[str, str], dict[str, str]]:
    """What the index says of keys that content chooses, and the files that read lists and make them.

    softmaxes: numbers of kernels that others emit; those of summaries come to them.
    """
    numbers: dict[str, int] = {}
    rows: list[str] = []
    in_gluon: list[str] = []
    summaries: list[str] = []
    named: dict[str, str] = {}
    for launch, node in launches.items():
        served = graph.network.nodes[node]["node"]
        if not isinstance(served, Mix) or not reads_lists(served, model):
            continue
        texts = list_texts(served, model)
        names = [f"{skeleton}_{numbers.setdefault(text, len(numbers))}" for text, skeleton in texts.items()]
        named |= dict(zip(names, texts, strict=True))
        copying = [name for name in names if name.startswith(gluon_lists.PREFILL)]
        rows.append(_files_of(launch, [name for name in names if name not in copying]))
        in_gluon += [_files_of(launch, copying)] if copying else []
        beside = [one if one is None else softmaxes.setdefault(one, len(softmaxes)) for one in summary_kernels(served, model)]
        if beside:
            summaries.append(_over_lines(f"{launch}.choice", [_four(number) for number in beside]))
    lines = {"rows": "\n".join(rows), "gluon": "\n".join(in_gluon), "summaries": "\n".join(summaries)}
    index = WITH_LISTS | {"lists": LISTS.format(**lines)} if rows else NO_LISTS
    return index, {f"{name}.py": text for name, text in named.items()}


def _files_of(launch: str, names: list[str]) -> str:
    return "\n".join([f'    "{launch}.choice": (', *(f'        "{name}",' for name in names), "    ),"])


def _four(number: int | None) -> str:
    """The files of a kernel of the softmax family."""
    names = ", ".join(f'"{skeleton}_{number}"' for skeleton in FAMILIES["softmax"])
    return "None" if number is None else f"({names})"


def _choosing(mix: Mix, model: Model) -> tuple[Launch, list[tuple[Seen, ...]]]:
    """The launch, and the groups of each variant in which content chooses keys."""
    launch = launch_of(mix, model.score_cap is not None)
    return launch, [variant.groups for variant in launch.variants if any(group.selectors for group in variant.groups)]


def reads_lists(mix: Mix, model: Model) -> bool:
    """Whether content chooses keys for a mix, and kernels read them."""
    launch, choosing = _choosing(mix, model)
    narrow = max(mix.attributes.key_width, mix.attributes.value_dim) <= KERNEL_WIDTHS[1]
    return bool(choosing) and narrow and not launch.unsaid and all(unread(launch, groups) is None for groups in choosing)


def summary_kernels(mix: Mix, model: Model) -> list[Softmax | None]:
    """What attends to shown tokens, or nothing, and to chunks; empty where there are none of them."""
    launch, choosing = _choosing(mix, model)
    groups = [group for found in choosing for group in found]
    chunks = chunks_of(groups)
    if chunks is None:
        return []
    softmax = softmax_of(mix, model)
    shown = launch.learned or any(group.intervals and (group.intervals.near or group.intervals.sink) for group in groups)
    return [softmax if shown else None, replace(softmax, chunks=chunks)]


def list_texts(mix: Mix, model: Model) -> dict[str, str]:
    """Text -> skeleton of the kernels of lists for a mix whose lists kernels read."""
    launch, choosing = _choosing(mix, model)
    found: dict[str, str] = {}
    for groups in choosing:
        softmax = softmax_of(mix, model)
        for group in groups:
            reading = listed(softmax, group.selectors)
            found |= {lists.emit_lists(lists.ATTEND, one): lists.ATTEND for one in reading}
            if unread_in_gluon(launch, (group,)) is None:
                found |= {gluon_lists.emit(one): gluon_lists.PREFILL for one in reading if gluon_lists.fits(one)}
            if ungraded((group,)) is None:
                found |= {lists.emit_lists(lists.BACKWARD, one): lists.BACKWARD for one in reading}
            if unmade(launch, groups) is None:
                found |= {lists.emit_choose(one, softmax): lists.CHOOSE for one in chosen(group.selectors)}
    return found


def _families(graph: Graph, launches: Mapping[str, str]) -> Iterator[tuple[str, Channels | FastWeights | Recurrence]]:
    """The launches of states, and the members of the families that they are."""
    for launch, node in launches.items():
        served = graph.network.nodes[node]["node"]
        launched = states(served, graph) if isinstance(served, Apply | Smooth) else None
        if launched is not None and not isinstance(launched, PlainLaunch):
            yield launch, launched.family


def of_states(served: Channels | FastWeights | Recurrence) -> dict[str, str]:
    """Skeleton -> text of the kernels of a member of the families of states; none where it has none."""
    if isinstance(served, Channels) and channel_providers.unkept(served) is None:
        return {channels.SKELETON: channels.emit(served)}
    if isinstance(served, Recurrence) and scan_providers.unkept(served) is None:
        return scan.files(served)
    if isinstance(served, FastWeights):
        return fast.files(served)
    return {}


def _over_lines(launch: str, names: list[str]) -> str:
    return "\n".join([f'    "{launch}": (', *(f"        {four}," for four in names), "    ),"])


def family(mix: Mix, model: Model) -> Softmax | None:
    """The kernel of the softmax family that serves a mix, or None where it cannot be said."""
    a = mix.attributes
    if unsaid(mix) is not None or max(a.key_width, a.value_dim) > 256:
        return None
    if all(any(group.choices for group in variant.groups) for variant in mix.variants):
        return None  # kernels of lists.py alone run it
    return softmax_of(mix, model)


def softmax_of(mix: Mix, model: Model) -> Softmax:
    """The smallest kernel of the softmax family in which the intervals of a mix fit."""
    a = mix.attributes
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
    """What names a kernel's text; with an architecture, what a GPU of that one runs: kernels and constants without the blocks
    of the others. The functions that launch them are the host's.
    """
    kept = text.splitlines()
    if architecture is not None:
        parts = (one for one in triton.statements(text) if one.kernel or not one.function)
        kept = [line for one in parts for line in kept[one.first : one.end] if not _of_another(line, architecture)]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _of_another(line: str, architecture: str) -> bool:
    """Whether a line is a row of BLOCKS for another architecture."""
    found = re.match(r'    \("(\w+)", \d\): ', line)
    return found is not None and found[1] != architecture
