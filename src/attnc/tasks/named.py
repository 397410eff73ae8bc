"""Tasks on token ids, by the word that `attnc train` and `attnc eval` take."""

from __future__ import annotations

from attnc.tasks.copying import Copy
from attnc.tasks.examples import Task
from attnc.tasks.passkeys import Multikey, Needle, Passkey
from attnc.tasks.recall import Mqar

TASKS: dict[str, type[Task]] = {
    "mqar": Mqar,
    "needle": Needle,
    "passkey": Passkey,
    "multikey": Multikey,
    "copy": Copy,
}
