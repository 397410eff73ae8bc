"""Stages as data, for `attnc show --json`."""

from __future__ import annotations

from attnc.cli.verified import Unverified
from attnc.codegen.tune.table import FolderTuning
from attnc.compiler.causality import Refusal
from attnc.compiler.laws import Law
from attnc.compiler.mixer import Causality
from attnc.compiler.picture import Picture
from attnc.compiler.planned import Plan
from attnc.compiler.recipe import Recipe, Retrieve
from attnc.compiler.spec import BudgetSite, Model
from attnc.compiler.table import TableRow
from attnc.compiler.value import Value


class TextReport(Value):
    """A stage whose text is its whole content."""

    schema_version: int = 1
    stage: str
    text: str


class TableReport(Value):
    """What `attnc show --json` prints: the resolved table; with a plan how each part runs, and which kernels no GPU has run.

    `tuning`: blocks of generated kernels that were tuned, as tuning.json has them.

    `causality` is the class of the spec's choices, `refused` what they forbid, `unbuilt` what this version cannot build yet.
    """

    schema_version: int = 1
    model: Model
    rows: tuple[TableRow, ...]
    budgets: tuple[BudgetSite, ...]
    recipe: Recipe | None
    driver: Retrieve | None
    unbuilt: tuple[str, ...]
    laws: tuple[Law, ...]
    causality: Causality
    refused: tuple[Refusal, ...]
    plan: Plan | None
    tuning: FolderTuning
    unverified: list[Unverified]


class MaskReport(Value):
    """What `attnc show --mask LAYER --json` prints."""

    schema_version: int = 1
    layer: int
    length: int
    masks: tuple[Picture, ...]
