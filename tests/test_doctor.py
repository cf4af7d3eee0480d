"""`sensorium doctor` with broken, missing and outdated packages: never a traceback."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sensorium.cli import doctor

ROOT = Path(__file__).parents[1]
BROKEN = {
    "ImportError": "raise ImportError('libgomp.so.1: cannot open shared object file')",
    "OSError": "raise OSError('libtorch_cpu.so: undefined symbol: _ZN')",
    "absent": "raise ModuleNotFoundError('No module named torch', name='torch')",
    "half installed": "import a_module_that_is_missing",
    "exit": "import sys; sys.exit(3)",
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "chatty": "print('{\"module\": \"torch\"}')\nraise RuntimeError('several\\nlines')",
    "empty": "",
}


def fake_package(folder: Path, module: str, code: str) -> None:
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(code, encoding="utf-8")


def run_doctor(fakes: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a folder of fake packages ahead on the path."""
    path = os.pathsep.join([str(fakes), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "sensorium", *(arguments or ("doctor", "--json"))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


def health(completed: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert completed.returncode == 0, completed.stderr
    assert "Traceback" not in completed.stderr
    return json.loads(completed.stdout)


@pytest.fixture
def few_packages(tmp_path: Path) -> Path:
    """Return a folder of packages that load at once instead of the real ones."""
    for package in doctor.REQUIREMENTS:
        if package not in ("torch", "cyclopts", "rich", "protobuf"):
            module = doctor.MODULES.get(package, package)
            fake_package(tmp_path, module, "__version__ = '99.0'")
    return tmp_path


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_torch_is_named_with_a_remedy(fault: str, few_packages: Path) -> None:
    fake_package(few_packages, "torch", BROKEN[fault])
    result = health(run_doctor(few_packages))
    advice = " ".join(result["advice"])
    if fault == "empty":
        assert "torch loads, but does not compute (AttributeError" in advice
        return
    assert "does not load" in result["facts"]["torch"]
    assert "torch does not load (" in advice
    expected = {
        "ImportError": "apt install libgomp1",
        "crash": "SIGSEGV",
        "exit": "SystemExit: 3",
        "half installed": "a_module_that_is_missing",
        "chatty": "several lines",
    }
    assert expected.get(fault, 'pip install --force-reinstall "torch>=2.6"') in advice
    assert result["facts"]["numpy"] == "99.0"  # those after it are checked, too
    assert result["facts"]["lightgbm"] == "99.0 (training boosted trees (fusion --head boosting))"


def test_outdated_torch_is_named(few_packages: Path) -> None:
    fake_package(few_packages, "torch", "__version__ = '1.13.1+cpu'")
    result = health(run_doctor(few_packages))
    assert result["facts"]["torch"] == "1.13.1+cpu, older than 2.6"
    assert any("torch 1.13.1+cpu is older than 2.6: pip install" in s for s in result["advice"])


def test_other_broken_packages_are_named(few_packages: Path) -> None:
    modules = {"numpy": "numpy", "pillow": "PIL", "tokenizers": "tokenizers", "pyarrow": "pyarrow"}
    fake_package(few_packages, "torch", "raise ImportError('numpy is broken')")
    for module in modules.values():
        (few_packages / module / "__init__.py").write_text("raise ImportError('no _core')")
    completed = run_doctor(few_packages, "doctor")
    assert completed.returncode == 0
    assert "Traceback" not in completed.stderr
    text = " ".join(completed.stdout.split())
    for package in modules:
        assert f"{package} does not load (ImportError: no _core)" in text
    assert 'pip install --force-reinstall "sensorium[data]"' in text


def test_other_commands_point_to_the_doctor(few_packages: Path, tmp_path: Path) -> None:
    fake_package(few_packages, "torch", BROKEN["ImportError"])
    completed = run_doctor(few_packages, "data", "emoji")
    assert completed.returncode == 1
    assert "Traceback" not in completed.stderr
    assert "does not load: " in completed.stderr
    assert "sensorium doctor" in completed.stderr


def test_absent_packages_say_what_they_give() -> None:
    absent = {"error": "ModuleNotFoundError", "is_absent": True}
    for package, (_, extra) in doctor.REQUIREMENTS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(doctor, "_installed_version", lambda _: None)
            state = doctor.describe_package(package, absent)
        if extra:
            assert state.text == (
                f'absent: pip install "sensorium[{extra}]" ({doctor.EXTRAS[extra]})'
            )
            assert not state.advice
        else:
            assert f"{package} is not installed: pip install" in state.advice


def test_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    expected = {("", requirement) for requirement in project["dependencies"]}
    own = {name for name in extras if name not in ("all", "test", "dev")}
    expected |= {(extra, requirement) for extra in own for requirement in extras[extra]}
    stated = {
        (extra, f"{package}>={oldest}") for package, (oldest, extra) in doctor.REQUIREMENTS.items()
    }
    assert stated == expected
    assert set(doctor.EXTRAS) == own


def test_command_line_imports_nothing_heavy() -> None:
    code = "import sys, sensorium.cli.app, sensorium.cli.doctor; print(*sys.modules)"
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {doctor.MODULES.get(name, name) for name in doctor.REQUIREMENTS} - {"cyclopts", "rich"}
    loaded = {re.split(r"\.", name)[0] for name in completed.stdout.split()}
    assert not heavy & loaded
