"""Published weights from the hub: only safetensors, JSON and tokenizer files are ever asked for.

HF_HUB_OFFLINE, HF_TOKEN and HF_HOME mean what they mean to huggingface_hub, which does the fetching and the caching.
"""

from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.pretrained.weight_files import (
    CONFIG_FILES,
    INDEX_FILE,
    SAFETENSORS_FILES,
    SIDECAR_FILES,
    read_json,
)


def download_snapshot(hub_id: str) -> Path:
    """The folder, in huggingface_hub's cache, of a model: OWNER/NAME, or OWNER/NAME@REVISION.

    Raises SensoriumError where there is no network and no copy, no such model, no right to it, or no safetensors in it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repo, _, revision = hub_id.partition("@")

    def get(*patterns: str) -> Path:
        return Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns))
        )

    try:
        folder = get(*CONFIG_FILES, *SIDECAR_FILES, INDEX_FILE)
        if (folder / INDEX_FILE).is_file():
            return get(*set(read_json(folder / INDEX_FILE).get("weight_map", {}).values()))
        for name in SAFETENSORS_FILES:
            if (get(name) / name).is_file():
                return folder
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as e:
        raise SensoriumError(
            f"{hub_id} is not a local folder or file, and cannot be fetched from the hub: no network, "
            "or HF_HUB_OFFLINE is set, and no copy in the cache (HF_HOME)"
        ) from e
    except HfHubHTTPError as e:
        raise SensoriumError(
            f"{hub_id} cannot be fetched from the hub: {str(e).splitlines()[0]}"
        ) from e
    raise SensoriumError(
        f"{hub_id} has no safetensors on the hub ({', '.join((INDEX_FILE, *SAFETENSORS_FILES))}); download its "
        "pickle and turn it into safetensors: sensorium convert FILE"
    )
