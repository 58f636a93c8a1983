"""A program of ours that starts QEMU on the host and stays between it and the kernel."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

#: EX_CONFIG of sysexits.h: the status of a launcher that cannot work on its host.
CANNOT = 78


@dataclass(frozen=True)
class Launcher:
    """Sent to the host as a zip application, and run there as

        python3 launcher.pyz CONTROL LOG OPTIONS... -- QEMU ARGUMENT...

    `entry` is its main function as "module:function", `modules` are all of ours that it imports.
    CONTROL is the descriptor of a listening socket.
    """

    entry: str
    modules: tuple[str, ...]
    options: tuple[str, ...] = ()

    def archive(self) -> bytes:
        """The zip: the same bytes for the same sources."""
        module, function = self.entry.split(":")
        packages = {name.rsplit(".", depth)[0] for name in self.modules for depth in range(1, 3)}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted({*packages, *self.modules}):
                spec = importlib.util.find_spec(name)
                if spec is None or spec.origin is None:
                    raise HarnessError(f"launcher: no module {name}")
                path = name.replace(".", "/")
                path += "/__init__.py" if spec.submodule_search_locations else ".py"
                archive.writestr(zipfile.ZipInfo(path), Path(spec.origin).read_bytes())
            start = f"from {module} import {function}\n{function}()\n"
            archive.writestr(zipfile.ZipInfo("__main__.py"), start)
        return buffer.getvalue()
