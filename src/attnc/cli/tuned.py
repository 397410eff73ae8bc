"""Where the blocks of a plan's generated kernels come from."""

from __future__ import annotations

from attnc.codegen import kernels
from attnc.codegen.triton.emit import emit
from attnc.codegen.tune import table as tables
from attnc.codegen.tune.table import FolderTuning
from attnc.compiler.families import FAMILIES, Recurrence
from attnc.compiler.graph import Apply, Graph, Mix
from attnc.compiler.plan import states
from attnc.compiler.planned import Plan
from attnc.compiler.spec import Model

OWN = "the table in each kernel's file; `attnc tune kernels DIR` measures others on a GPU"


def tuned(graph: Graph, model: Model) -> FolderTuning:
    """What `attnc build` would put into tuning.json of this graph's kernels, from the user's tables. Raises SpecError A513."""
    found = tables.read_all(tables.user_folder())
    if not found:
        return FolderTuning()
    mixes = [node for _, node in graph.network.nodes(data="node") if isinstance(node, Mix)]
    families = dict.fromkeys(family for mix in mixes if (family := kernels.family(mix, model)) is not None)
    texts = {
        f"{skeleton}_{number}": emit(skeleton, family)
        for number, family in enumerate(families)
        for skeleton in FAMILIES["softmax"]
    }
    nodes = (node for _, node in graph.network.nodes(data="node") if isinstance(node, Apply))
    launched = (getattr(states(node, graph), "family", None) for node in nodes)
    members = dict.fromkeys(one for one in launched if isinstance(one, Recurrence))
    for number, member in enumerate(one for one in members if kernels.of_states(one)):
        texts |= {f"{skeleton}_{number}": text for skeleton, text in kernels.of_states(member).items()}
    return tables.for_folder(found, texts)


def tuned_text(plan: Plan, tuning: FolderTuning) -> str:
    """A line for each tuned kernel; nothing where the plan has no generated kernels."""
    if not any(choice.provider == "triton" for choice in plan.choices):
        return ""
    lines = [
        f"  {row.kernel}, {row.bytes} bytes a number: {' '.join(map(str, row.blocks))}"
        f" (tuned on {table.device}, Triton {table.triton})\n"
        for table in tuning.tables
        for row in table.kernels
    ]
    rest = "others, and other GPUs: " if lines else ""
    return "\nblocks of the generated kernels\n" + "".join(lines) + f"  {rest}{OWN}\n"
