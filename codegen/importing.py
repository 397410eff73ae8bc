"""A built folder as a Python package, whatever its path and name."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_folder(folder: Path) -> ModuleType:
    """The package in `folder`; imported anew if its plan.json changed since it was last asked for."""
    folder = folder.resolve()
    digest = hashlib.sha256(str(folder).encode() + (folder / "plan.json").read_bytes()).hexdigest()[:16]
    name = f"attnc_built_{digest}"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert found is not None, f"{folder} holds a package"
        assert found.loader is not None, f"{folder} holds a package"
        package = importlib.util.module_from_spec(found)
        sys.modules[name] = package
        try:
            found.loader.exec_module(package)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
