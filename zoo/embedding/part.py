"""A Parquet file that grows by row groups, so that few rows are in memory, and gets its name when it is whole."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from zoo.features import import_pyarrow
from zoo.files import replacing


class Part:
    """A file that is being made; after an error in `write` or `close` there is none."""

    def __init__(self, path: Path) -> None:
        self._open = ExitStack()
        self._temporary = self._open.enter_context(replacing(path))
        self._writer: Any = None

    def write(self, table: Any) -> None:
        """Add the rows of a table, all of one schema.

        Raises:
            OSError: The file cannot be written.
        """
        try:
            if self._writer is None:
                self._writer = self._open.enter_context(_writer(self._temporary, table.schema))
            self._writer.write_table(table)
        except BaseException:
            self._open.__exit__(*sys.exc_info())
            raise

    def close(self) -> None:
        """Finish the file, and give it its name.

        Raises:
            OSError: It cannot be written.
        """
        self._open.close()


def _writer(path: Path, schema: Any) -> Any:
    """Numbers hardly repeat: a dictionary of them would cost time and make the file larger."""
    _, parquet = import_pyarrow()
    texts = [name for name in schema.names if name != "feature"]
    return parquet.ParquetWriter(path, schema, use_dictionary=texts)
