"""Download pretrained weights from the Hugging Face hub: safetensors, JSON, tokenizer files only.

HF_HUB_OFFLINE, HF_TOKEN and HF_HOME are read by huggingface_hub, which downloads and caches.
"""

from pathlib import Path

from sensorium.errors import SensoriumError, escape_line
from sensorium.io.terminal import progress_of_libraries
from sensorium.pretrained.tensor_source import (
    CONFIG_FILES,
    INDEX_FILE,
    SAFETENSORS_FILES,
    SIDECAR_FILES,
    read_json,
)


def download_snapshot(hub_id: str) -> Path:
    """Download a model and return its folder in huggingface_hub's cache.

    Args:
        hub_id: OWNER/NAME or OWNER/NAME@REVISION.

    Raises:
        SensoriumError: If there is neither a network nor a cached copy, no such model, no
            permission to read it, or no safetensors file in it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repo, _, revision = hub_id.partition("@")

    def download(*patterns: str) -> Path:
        with progress_of_libraries():
            return Path(
                snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns))
            )

    try:
        folder = download(*CONFIG_FILES, *SIDECAR_FILES, INDEX_FILE)
        if (folder / INDEX_FILE).is_file():
            weight_map = read_json(folder / INDEX_FILE).get("weight_map", {})
            for name in weight_map.values():  # they are shown while they are downloaded
                if escape_line(name) != name:
                    raise SensoriumError(f"{hub_id} is refused: its index names a file {name!r}.")
            return download(*set(weight_map.values()))
        for name in SAFETENSORS_FILES:
            if (download(name) / name).is_file():
                return folder
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise SensoriumError(
            f"{hub_id} is not a local folder or file, and cannot be fetched from the hub: there is "
            "no network or HF_HUB_OFFLINE is set, and the cache (HF_HOME) has no copy."
        ) from error
    except HfHubHTTPError as error:
        raise SensoriumError(
            f"{hub_id} cannot be fetched from the hub: {str(error).splitlines()[0]}"
        ) from error
    raise SensoriumError(
        f"{hub_id} has no safetensors on the hub ({', '.join((INDEX_FILE, *SAFETENSORS_FILES))}). "
        "Download its pickle and convert it: sensorium convert-checkpoint FILE."
    )
