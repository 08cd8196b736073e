"""The rows of an Excel workbook (.xlsx): those of its first sheet that has any, read as a stream by openpyxl."""

import datetime as dt
import zipfile
from collections.abc import Iterator
from typing import IO, Any, Final

from tasks.errors import InputError
from tasks.inputs.columns import MAX_COLUMNS
from tasks.inputs.source import Source
from tasks.inputs.tables import Cells, Record

#: Bytes that a workbook may have when it is unpacked, and its table of texts, which is held in memory.
MAX_UNPACKED_BYTES: Final = 4 * 1024**3
MAX_TEXTS_BYTES: Final = 512 * 1024**2


def workbook_records(source: Source) -> Iterator[Record]:
    """The records of a workbook, with their rows from 1.

    Raises:
        InputError: openpyxl is not installed, or this is no workbook that it can read.
    """
    try:
        # Late: an extra that few need.
        import openpyxl
    except ImportError as exc:
        raise InputError(
            f"{source.name}: an Excel workbook: save it as CSV UTF-8, or install the extra: scripts/setup --extra xlsx"
        ) from exc
    with source.whole() as file:
        _check(file, source.name)
        try:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
            for sheet in book.worksheets:
                # What a sheet says of its size may be wrong.
                sheet.reset_dimensions()
                is_empty = True
                for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
                    cells = _cells(values)
                    if cells:
                        is_empty = False
                        yield number, cells
                if not is_empty:
                    return
        except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, SyntaxError) as exc:
            # SyntaxError: how xml.etree tells of XML that is not well formed.
            raise InputError(
                f"{source.name}: an Excel workbook that cannot be read ({exc}); save it as CSV UTF-8"
            ) from exc


def _check(file: IO[bytes], name: str) -> None:
    """See that this is a workbook, and how large it will be."""
    try:
        sizes = {part.filename: part.file_size for part in zipfile.ZipFile(file).infolist()}
    except (zipfile.BadZipFile, OSError) as exc:
        raise InputError(f"{name}: a damaged zip archive ({exc})") from exc
    if "xl/workbook.xml" not in sizes:
        raise InputError(f"{name}: a zip archive: unpack it, and name the file in it")
    if sum(sizes.values()) > MAX_UNPACKED_BYTES or sizes.get("xl/sharedStrings.xml", 0) > MAX_TEXTS_BYTES:
        raise InputError(f"{name}: a workbook of {sum(sizes.values()):,} bytes when unpacked: save it as CSV UTF-8")


def _cells(values: tuple[Any, ...]) -> Cells:
    """The values as CSV would have them, up to the last one that is not blank."""
    cells = [_text(value) for value in values[: MAX_COLUMNS + 1]]
    while cells and not cells[-1].strip():
        cells.pop()
    return cells


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dt.date):
        return value.isoformat()
    return str(value)
