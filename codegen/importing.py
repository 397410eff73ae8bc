"""A built folder as a Python package, whatever its path and name."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_folder(folder: Path) -> ModuleType:
    """The package in `folder`; imported anew if any of its code changed since it was last asked for."""
    folder = folder.resolve()
    digest = hashlib.sha256(str(folder).encode())
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    name = f"attnc_built_{digest.hexdigest()[:16]}"
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
