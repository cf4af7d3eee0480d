"""Check this machine and this installation; attach the output to bug reports.

Nothing that may be broken is imported here: a process of its own tries every package.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium import __version__
from sensorium.errors import escape_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

EXTRAS = {  # extra -> what it gives
    "data": "Parquet files",
    "fast": "JPEG decoding, 1.3 to 5 times as fast as Pillow",
    "search": "approximate search",
    "emoji": "building the full emoji dataset",
    "audio": "FLAC, OGG and MP3 files",
    "pretrained": "quantized decoders (GGUF)",
    "predict": "metrics of predictions",
    "boosting": "training boosted trees (fusion --head boosting)",
    "export": "export to ONNX",
    "hf": "encoders that only transformers has",
}
REQUIREMENTS = {  # package -> (oldest version, extra; "" for what is always needed)
    "torch": ("2.6", ""),
    "numpy": ("1.26", ""),
    "pillow": ("11.3", ""),
    "safetensors": ("0.8", ""),
    "tokenizers": ("0.21", ""),
    "einops": ("0.8", ""),
    "jaxtyping": ("0.3", ""),
    "cyclopts": ("5", ""),
    "rich": ("13", ""),
    "pyarrow": ("17", "data"),
    "simplejpeg": ("1.8", "fast"),
    "faiss-cpu": ("1.9", "search"),
    "resvg-py": ("0.5", "emoji"),
    "soundfile": ("0.12.1", "audio"),
    "gguf": ("0.17", "pretrained"),
    "scikit-learn": ("1.5", "predict"),
    "lightgbm": ("4", "boosting"),
    "onnx": ("1.17", "export"),
    "onnxscript": ("0.5", "export"),
    "onnxruntime": ("1.20", "export"),
    "transformers": ("5", "hf"),
    "sentencepiece": ("0.2", "hf"),
    "protobuf": ("5", "hf"),
}
MODULES = {  # package -> module, where the names differ
    "pillow": "PIL",
    "faiss-cpu": "faiss",
    "resvg-py": "resvg_py",
    "scikit-learn": "sklearn",
    "protobuf": "google.protobuf",
}
# not used here, but a broken one breaks other libraries
KNOWN_BROKEN_PACKAGES = ("torchvision", "torchaudio", "torchcodec")
SYSTEM_LIBRARIES = {"libgomp": "apt install libgomp1", "libsndfile": "apt install libsndfile1"}
TORCH_FACTS = "torch facts"
MIN_PILLOW_VERSION = "13"  # older versions have known vulnerabilities in their decoders
MIN_FREE_BYTES = 2e9  # what a cache and a run may need
IMPORT_CHECK = Path(__file__).with_name("import_check.py")
IMPORT_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Health:
    """The state of the installation.

    Attributes:
        facts: versions and properties by name.
        advice: what to do about known problems.
    """

    facts: dict[str, str]
    advice: list[str] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False)
        for name, value in self.facts.items():
            table.add_row(name, Text(escape_line(value)))
        yield table
        for line in self.advice or ["No problems found."]:
            yield Text(escape_line(line), "yellow")


def check_environment(folder: Path = Path()) -> Health:
    """Check this machine and installation.

    Args:
        folder: where runs would be written.
    """
    free = shutil.disk_usage(folder).free
    modules = {package: MODULES.get(package, package) for package in REQUIREMENTS}
    others = [name for name in KNOWN_BROKEN_PACKAGES if _installed_version(name)]
    checks = run_checks([modules["torch"], TORCH_FACTS, *list(modules.values())[1:], *others])
    states = {
        package: describe_package(package, checks.get(module, {}))
        for package, module in modules.items()
    }
    torch = checks.get(TORCH_FACTS, {}).get("facts", {})
    facts = {
        "sensorium": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: state.text for name, state in states.items()},
        **({"devices": torch["devices"]} if torch else {}),
        "threads": f"{torch['threads']} of {os.cpu_count()} cores" if torch else "unknown",
        **({"matrix products": torch["matrix products"]} if torch else {}),
        "disk": f"{free / 1e9:,.1f} GB free",
    }
    advice = [state.advice for state in states.values() if state.advice]
    torch_fault = checks.get(TORCH_FACTS, {}).get("error", "")
    if torch_fault and "error" not in checks.get("torch", {}):
        advice.append(f"torch loads, but does not compute ({torch_fault}): reinstall it.")
    advice += [
        f"{name} is installed and does not load ({checks[name]['error']}). Sensorium does not need "
        f"it: pip uninstall {name}."
        for name in others
        if "error" in checks.get(name, {})
    ]
    return Health(facts, [*advice, *_iter_advice(folder, free)])


@dataclass(frozen=True)
class PackageState:
    """The state of one package.

    Attributes:
        text: its version, or what is wrong, and what an optional one gives.
        advice: what to do; "" for nothing.
    """

    text: str
    advice: str = ""


def describe_package(package: str, check: Mapping[str, Any]) -> PackageState:
    """Return the state of a package, from what importing it gave.

    Args:
        package: one of REQUIREMENTS.
        check: the line of `import_check` about its module; {} if there is none.
    """
    oldest, extra = REQUIREMENTS[package]
    use = f" ({EXTRAS[extra]})" if extra else ""
    target = f'"sensorium[{extra}]"' if extra else f'"{package}>={oldest}"'
    installed = _installed_version(package)
    version = check.get("version") or installed or "unknown version"
    if "error" in check:
        if check.get("is_absent") and installed is None:
            advice = "" if extra else f"{package} is not installed: pip install {target}."
            return PackageState(f"absent: pip install {target}{use}", advice)
        fault = check["error"]
        fix = f"pip install --force-reinstall {target}"
        for library, command in SYSTEM_LIBRARIES.items():
            if library in fault:
                fix = f"{command}, or the package of {library} of your system"
        version = installed or "installed"
        return PackageState(
            f"{version}, does not load{use}",
            f"{package} does not load ({fault}). Repair it: {fix}.",
        )
    if _version_tuple(version) < _version_tuple(oldest) and version[:1].isdigit():
        return PackageState(
            f"{version}, older than {oldest}{use}",
            f"{package} {version} is older than {oldest}: pip install --upgrade {target}.",
        )
    return PackageState(f"{version}{use}")


def run_checks(modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Import modules in a process of its own, and in a new one after each that ends it.

    Returns:
        What `import_check` says of each module.
    """
    results: dict[str, dict[str, Any]] = {}
    left = list(modules)
    while left:
        command = [sys.executable, "-P", str(IMPORT_CHECK), *left]
        try:
            completed = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=IMPORT_TIMEOUT_SECONDS,
                check=False,
            )
            output, reason = completed.stdout, _exit_reason(completed.returncode)
        except subprocess.TimeoutExpired as e:
            output, reason = e.stdout or b"", f"no answer in {IMPORT_TIMEOUT_SECONDS} seconds"
        begun = ""
        for line in _json_lines(output):
            begun = line.get("begin", begun)
            if "module" in line:
                results[line["module"]] = line
        if begun in left and begun not in results:
            results[begun] = {"error": f"importing it ended the process: {reason}"}
        remaining = [module for module in left if module not in results]
        if len(remaining) == len(left):  # not even the check starts
            return results
        left = remaining
    return results


def _json_lines(output: bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among lines of output."""
    for line in output.decode(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _exit_reason(code: int) -> str:
    """Return how a process ended, in words."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
    except ValueError:
        return f"signal {-code}"


def _iter_advice(folder: Path, free_bytes: int) -> Iterator[str]:
    """Yield advice about this machine."""
    pillow = _installed_version("pillow")
    if pillow and _version_tuple(pillow) < _version_tuple(MIN_PILLOW_VERSION):
        yield (
            f"Pillow is older than {MIN_PILLOW_VERSION}: update it before opening images from "
            "untrusted sources."
        )
    if free_bytes < MIN_FREE_BYTES:
        yield f"Low disk space: a run and its cache may need {MIN_FREE_BYTES / 1e9:.0f} GB."
    if not os.access(folder, os.W_OK):
        yield f"{folder.absolute()} is not writable: use --out."
    if sys.dont_write_bytecode:
        yield (
            "PYTHONDONTWRITEBYTECODE is set: Python recompiles every module at each start, which "
            "can take seconds."
        )


def _version_tuple(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (2, 6, 0) for "2.6.0+cpu"."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _installed_version(package: str) -> str | None:
    """Return the version that the metadata of an installed package state, None without any."""
    try:
        return metadata.version(package) or "unknown version"
    except metadata.PackageNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, OSError):  # damaged metadata
        return "unknown version"
