"""The npm packages that emoji sets are built from: versions, authors, licences, and safe reading.

A package is an untrusted tarball. Nothing in it is run or unpacked to disk: its size is bounded
before it is parsed, and only the requested members are read into memory.
"""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError

MAX_UNPACKED_BYTES = 512 << 20  # the largest known package unpacks to 104 MB
FETCH_TIMEOUT_SECONDS = 1800
PERMISSIVE_LICENCES = ("Apache-2.0", "MIT", "CC-BY-4.0")
LANGUAGES = (
    "bn",
    "da",
    "de",
    "en",
    "en-gb",
    "es",
    "es-mx",
    "et",
    "fi",
    "fr",
    "hi",
    "hu",
    "it",
    "ja",
    "ko",
    "lt",
    "ms",
    "nb",
    "nl",
    "pl",
    "pt",
    "ru",
    "sv",
    "th",
    "uk",
    "vi",
    "zh",
    "zh-hant",
)


@dataclass(frozen=True)
class Package:
    """One package at a reviewed version.

    Attributes:
        name: name on npm.
        version: version on npm.
        licence: SPDX identifier.
        author: author of the drawings or names.
        project: web page of the authors.
        sha256: of the tarball, so that only the reviewed file is used.
        artist: styles derived from one another share it; "" for the package of names.
    """

    name: str
    version: str
    licence: str
    author: str
    project: str
    sha256: str
    artist: str = ""

    @property
    def style(self) -> str:
        """Name of the style."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def tarball_name(self) -> str:
        """File name of the tarball, as `npm pack` writes it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NAMES_PACKAGE = Package(
    "emojibase-data",
    "17.0.0",
    "MIT",
    "Miles Johnson",
    "https://github.com/milesj/emojibase",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
STYLE_PACKAGES = (
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "google-noto",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "google-blob",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "microsoft-fluent",
    ),
    Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "microsoft-fluent",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "Twitter",
        "https://github.com/jdecked/twemoji",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "twitter",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "CC-BY-4.0",
        "Emoji One",
        "https://github.com/EmojiTwo/emojitwo",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "emojione-2",
    ),
    Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "Apache-2.0",
        "Mozilla",
        "https://github.com/mozilla/fxemoji",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "mozilla",
    ),
    Package(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "CC-BY-4.0",
        "Streamline",
        "https://github.com/webalys-hq/streamline-vectors",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "streamline",
    ),
    Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "CC-BY-SA-4.0",
        "OpenMoji",
        "https://github.com/hfg-gmuend/openmoji",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "openmoji",
    ),
    Package(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "CC-BY-SA-4.0",
        "Emoji One",
        "https://github.com/joypixels/emojione-legacy",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "emojione-1",
    ),
)


@dataclass(frozen=True)
class PackageContents:
    """Some members of a package.

    Attributes:
        package: the package.
        version: its version, which differs from that of `package` if the user has another one.
        path: the tarball.
        members: contents by name.
    """

    package: Package
    version: str
    path: Path
    members: dict[str, bytes]

    def load_json(self, member: str) -> dict[str, Any] | list[Any]:
        """Return a member as JSON.

        Raises:
            SensoriumError: if it is missing or broken.
        """
        if member not in self.members:
            raise SensoriumError(f"{self.path} has no {member}. Fetch {self.package.name} again.")
        try:
            return json.loads(self.members[member])
        except (ValueError, RecursionError) as e:
            raise SensoriumError(
                f"{self.path}: {member} is not JSON ({e}). Fetch {self.package.name} again."
            ) from e


def find_tarballs(folder: Path, packages: Iterable[Package]) -> dict[str, Path]:
    """Return package name -> its tarball in a folder: the known version, else the only one.

    Raises:
        SensoriumError: naming all missing packages, with the command that fetches them.
    """
    paths: dict[str, Path] = {}
    missing: list[Package] = []
    for package in packages:
        exact = folder / package.tarball_name
        stem = package.tarball_name.removesuffix(f"{package.version}.tgz")
        others = sorted(folder.glob(f"{stem}[0-9]*.tgz"))
        if exact.is_file():
            paths[package.name] = exact
        elif len(others) == 1:
            paths[package.name] = others[0]
        elif others:
            versions = ", ".join(path.name for path in others)
            raise SensoriumError(
                f"{folder} has several versions of {package.name} ({versions}), none of them "
                f"{package.version}. Keep one."
            )
        else:
            missing.append(package)
    if missing:
        raise SensoriumError(
            f"{folder} lacks {len(missing)} of the packages. Fetch them in that folder with: "
            f"npm pack {' '.join(f'{p.name}@{p.version}' for p in missing)}."
        )
    return paths


def fetch_packages(folder: Path, packages: Iterable[Package]) -> None:
    """Fetch tarballs with the npm client, and verify their checksums.

    Args:
        folder: where to write them.
        packages: the packages.

    Raises:
        SensoriumError: if npm is missing or fails, or if a file is not the reviewed one.
    """
    packages = list(packages)
    specs = [f"{p.name}@{p.version}" for p in packages]
    npm = shutil.which("npm")
    if npm is None:
        raise SensoriumError(
            "Fetching the emoji packages needs the npm client, which is not installed. Install it, "
            f"or run 'npm pack {' '.join(specs)}' elsewhere and pass the folder with --packages."
        )
    command = [npm, "pack", "--silent", "--ignore-scripts", *specs]
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            timeout=FETCH_TIMEOUT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise SensoriumError(
            f"npm could not fetch the emoji packages: {e}. Fetch them yourself and pass --packages."
        ) from e
    if process.returncode != 0:
        output = (process.stderr or process.stdout).strip()[-300:]
        raise SensoriumError(
            "npm could not fetch the emoji packages: "
            f"{output or f'exit code {process.returncode}'}. Check the network connection."
        )
    for package, path in zip(packages, find_tarballs(folder, packages).values(), strict=True):
        if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
            raise SensoriumError(
                f"The fetched {path.name} has another checksum than expected. Nothing was built. "
                "If you trust the packages, fetch them yourself and pass --packages."
            )


def open_package(path: Path, package: Package, members: Iterable[str]) -> PackageContents:
    """Read members of a tarball, those that exist.

    Raises:
        SensoriumError: if it is not a tarball of `package` under the known licence.
    """
    contents = _read_members(path, {*members, "package.json"})
    opened = PackageContents(package, "", path, contents)
    metadata = opened.load_json("package.json")
    if not isinstance(metadata, dict):
        metadata = {}
    name, licence = metadata.get("name"), metadata.get("license")
    if name != package.name:
        raise SensoriumError(
            f"{path} is package {name!r}, not {package.name}. Rename or remove it."
        )
    if licence != package.licence:
        raise SensoriumError(
            f"{path} is under {licence!r}, but {package.name} is known under {package.licence}. "
            "Review its terms before you use it."
        )
    return replace(opened, version=str(metadata.get("version", "")))


def _read_members(path: Path, names: set[str]) -> dict[str, bytes]:
    """Members by their name below the tarball's top folder; links and devices are ignored."""
    try:
        with gzip.open(path) as stream:
            raw = stream.read(MAX_UNPACKED_BYTES + 1)
        if len(raw) > MAX_UNPACKED_BYTES:
            raise SensoriumError(
                f"{path} unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB. "
                "It is not an emoji package."
            )
        contents = {}
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                is_plain = member.isreg() and not member.issparse() and member.size <= len(raw)
                if name in names and is_plain:
                    file = tar.extractfile(member)
                    contents[name] = file.read() if file else b""
        return contents
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as e:
        raise SensoriumError(f"{path} is not a readable npm tarball ({e}). Fetch it again.") from e
