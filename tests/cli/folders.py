"""What stands in folders, and config files of tiny experiments."""

import pathlib

TINY = "from tests.conftest import tiny_autoencoder, tiny_ldm\ndef get_config():\n    return {call}\n"


def snapshot(*folders) -> dict:
    """{file: (size, time of last change)} of whole folders."""
    files = [file for folder in folders for file in pathlib.Path(folder).rglob("*")]
    return {str(file): (file.lstat().st_size, file.lstat().st_mtime_ns) for file in files}
