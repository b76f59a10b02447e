"""Where a task's rows come from: a file in the data folder, else a data set on the hub."""

from pathlib import Path

from foreword.data.files import Row, data_file, data_folder, read_hub
from foreword.errors import DataError


def local_file(relative: str) -> Path | None:
    """Return the path of `relative` in the data folder, or None where it is not there."""
    folder = data_folder()
    return folder / relative if folder is not None and (folder / relative).is_file() else None


def hub_rows(relative: str, how: str, hub: str, split: str, config: str | None = None) -> list[Row]:
    """Return the rows of a hub data set that stands in for a file which is not there.

    Args:
        relative: the missing file.
        how: where it comes from, in words.
        hub, split, config: the data set's id, split and configuration.

    Raises:
        DataError: the hub does not give it either; names the file, FOREWORD_DATA and both sources.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        return read_hub(hub, split, config)
    except DataError as error:
        try:
            data_file(relative, f"{how}; the hub's {hub} cannot be read either ({error})")
        except DataError as missing:
            raise missing from None
        raise
