"""The library as a wheel in somebody's project, with its hash in the lock, until it is published.

>>> wheel = write_wheel(Path("churn/wheels"))  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlops_lib.errors import WriteError

NAME = "mlops-lib"
LOCK = Path(__file__).with_name("requirements.lock")  # in a wheel; in a checkout it stands at the top


def write_wheel(folder: Path) -> Path:
    """Write this library's wheel into a folder: built from its checkout, or put together from what is installed.

    Raises
    ------
    WriteError
        What is there before is unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkout = find_checkout()
    if checkout is None:
        return _repack(folder)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["hatchling gave no wheel"])[-1]
        raise WriteError(path=folder / f"{NAME}.whl", reason=f"the library's wheel cannot be built ({reason})")
    return wheels[0]


def find_checkout() -> Path | None:
    """Return the folder that an editable installation of this library stands in, or None."""
    text = metadata.distribution(NAME).read_text("direct_url.json")
    url = json.loads(text) if text else {}
    return Path(unquote(urlsplit(url["url"]).path)) if url.get("dir_info", {}).get("editable") else None


def _repack(folder: Path) -> Path:
    """Put a wheel together from the installed files, in the order and with the hashes of its RECORD."""
    distribution = metadata.distribution(NAME)
    files = [file for file in distribution.files or () if not (file.parts[0] == ".." or "__pycache__" in file.parts)]
    added = {"INSTALLER", "REQUESTED", "direct_url.json", "RECORD", "uv_build.json", "uv_cache.json"}
    kept = [file for file in files if not (file.parts[0].endswith(".dist-info") and file.name in added)]
    record = next(file for file in files if file.name == "RECORD")
    path = folder / f"{NAME.replace('-', '_')}-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        lines = []
        for file in kept:
            content = Path(str(file.locate())).read_bytes()
            wheel.writestr(zipfile.ZipInfo(file.as_posix()), content, zipfile.ZIP_DEFLATED)
            lines.append(f"{file.as_posix()},{file.hash.mode}={file.hash.value},{len(content)}" if file.hash else "")
        lines.append(f"{record.as_posix()},,")
        wheel.writestr(zipfile.ZipInfo(record.as_posix()), "\n".join(filter(None, lines)) + "\n", zipfile.ZIP_DEFLATED)
    return path


def lock_with(wheel: Path) -> str:
    """Return the lock that this library was tested with, and the library itself by its wheel's hash."""
    checkout = find_checkout()
    lock = (checkout / LOCK.name if checkout else LOCK).read_text(encoding="utf-8")
    version, digest = wheel.name.split("-")[1], hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{lock.rstrip()}\n{NAME}=={version} \\\n    --hash=sha256:{digest}\n"
