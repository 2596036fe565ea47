"""
Texts and rows from files, as people have them. What cannot be read is refused in one sentence with the file and the place.

Everything that reads a file of passages, questions, tasks or stored self-edits reads it here.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..grading.golds import MOST_DIGITS, is_finite


# Without parquet, which is not a text.
TEXT_FILE_TYPES = (".json", ".jsonl", ".ndjson", ".csv")
FILE_TYPES = (*TEXT_FILE_TYPES, ".parquet")
DEEPEST = 50  # levels of lists and objects in each other

_ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_UTF32_MARKS = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{\]}]|\n', re.DOTALL)
_NOT_A_LINE_END = re.compile(r"\r\n?")
_NAMES = {str: "text", bool: "truth value", int: "number", float: "number", list: "list", dict: "object"}


def read_text(path: str | Path) -> str:
    r"""
    The text of a file in UTF-8, or in UTF-16 with its byte order mark, which is no part of it. Lines end in `"\n"`.

    Args:
        path (`str` or `Path`):
            The file.

    Raises:
        OSError: The file does not exist or cannot be read.
        ValueError: It is in another encoding. The message names the file and, where there is one, the line.
    """
    return decoded(Path(path).read_bytes(), str(path))


def decoded(content: bytes, name: str) -> str:
    """
    What the bytes of a text file say, as [`read_text`] reads them.

    Raises:
        ValueError: They are in another encoding. The message begins with `name` and, where there is one, the line.
    """
    mark = next((mark for mark in _ENCODINGS if content.startswith(mark)), b"")
    encoding = _ENCODINGS.get(mark, "utf-8")
    if content.startswith(_UTF32_MARKS):
        raise ValueError(f"{name} is UTF-32 text; save the file as UTF-8.")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, errors="ignore").count("\n") + 1
        told = "damaged UTF-16" if encoding == "utf-16" else "not UTF-8"
        raise ValueError(f"{name}, line {line}: {told} text; save the file as UTF-8.") from error
    text = _NOT_A_LINE_END.sub("\n", text)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"{name}, line {line}: a NUL character, which no text has (UTF-16 needs a byte order mark); save the file as UTF-8."
        )
    return text


def read_json(path: str | Path, remedy: str = "correct it") -> Any:
    """
    The value in a JSON file; `None` also where the file is empty.

    Args:
        path (`str` or `Path`):
            The file.
        remedy (`str`, *optional*, defaults to `"correct it"`):
            What the message about malformed JSON advises.

    Raises:
        OSError: The file does not exist or cannot be read.
        ValueError: It is no text, or not JSON. The message names the file and the line. What the values are is for
            [`fault_of`] to find.
    """
    text = read_text(path)
    return parse_json(text, f"{path}, line ", 1, remedy) if text.strip() else None


def read_rows(path: Path, row_form: str) -> list[tuple[str, Any]]:
    """
    The rows of a file as they are, each with the name of its place for messages.

    A `.json` file holds an array of rows, or an object with the array as its `"data"` or `"articles"`. A `.jsonl` or `.ndjson` file has a
    row on each line. The columns of a `.csv` file, which commas, semicolons or tabs part, are named by its first line. Of a
    `.parquet` file every row is one. The case of the suffix does not matter.

    Args:
        path (`Path`):
            The file.
        row_form (`str`):
            What a row should be, for messages.

    Returns:
        `list[tuple[str, Any]]`: at least one place and row.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: It cannot be read.
        ValueError: The file is empty, malformed or of another type or encoding, or a value is none that can be used (see
            [`fault_of`]). The message names the file and the line or row.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path, or give the id of a dataset on the Hub.")
    readers = {
        ".json": _json_rows,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    suffix = path.suffix.lower()
    if suffix not in readers or not path.is_file():
        raise ValueError(
            f"{path} is not a passage file; give a {', '.join(FILE_TYPES[:-1])} or {FILE_TYPES[-1]} file."
        )
    located_rows = readers[suffix](path, row_form)
    if not located_rows:
        raise ValueError(f"{path} is empty; it should hold rows of the form {row_form}.")
    if suffix in TEXT_FILE_TYPES:
        for where, row in located_rows:
            if fault := fault_of(row):
                raise ValueError(f"{where} has {fault}.")
    return located_rows


def fault_of(value: Any) -> str | None:
    r"""
    What makes a value useless, wherever in it, with the remedy: half a character, which no file can store; a number that is
    not finite or has more than 300 digits; lists and objects that are nested more than 50 deep. `None` where nothing does.

    Example:

    ```python
    >>> fault_of({"context": "Bees hum.", "questions": [{"answer": float("nan")}]})
    'a number in "answer" that is not finite or has more than 300 digits; write it as a text, or remove it'
    >>> fault_of({"context": "Bees hum \ud83d\udc1d.".encode("utf-16", "surrogatepass").decode("utf-16")}) is None
    True

    ```
    """
    remaining = [("", value, 1)]
    while remaining:
        key, value, depth = remaining.pop()
        place = f' in "{key}"' if key else ""
        if depth > DEEPEST:
            return f"lists or objects that are nested more than {DEEPEST} deep; write them flat"
        if isinstance(value, Mapping):
            # The first problem comes first.
            remaining += [(_shown_key(key, name), own, depth + 1) for name, own in reversed(value.items())]
            remaining += [(_shown_key(key, name), name, depth) for name in reversed(value)]
        elif isinstance(value, list | tuple):
            remaining += [(key, own, depth + 1) for own in reversed(value)]
        elif isinstance(value, str) and not is_unicode(value):
            return (
                f"half a character{place} (a lone surrogate, such as \\ud83d); write the whole character, or remove it"
            )
        elif not isinstance(value, bool) and isinstance(value, int | float) and not is_finite(value):
            return f"a number{place} that is not finite or has more than {MOST_DIGITS} digits; write it as a text, or remove it"
    return None


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, so that it can be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def name_of_type(value: Any) -> str:
    """What JSON calls a value's type."""
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def _shown_key(key: str, name: Any) -> str:
    return json.dumps(name[:40], ensure_ascii=False)[1:-1] if isinstance(name, str) and is_unicode(name) else key


def parse_json(text: str, place: str, first_line: int, remedy: str) -> Any:
    """A JSON value. `place` is what comes before the number of the line in messages, `first_line` that of the text's."""
    try:
        # A number of more digits is found with all others that are not finite.
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= MOST_DIGITS else math.inf)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}{first_line + error.lineno - 1}: malformed JSON ({error.msg}); {remedy}.") from error
    except RecursionError as error:
        line = first_line + _line_of_depth(text) - 1
        raise ValueError(
            f"{place}{line} has lists or objects that are nested more than {DEEPEST} deep; write them flat."
        ) from error


def _line_of_depth(text: str) -> int:
    """The line on which brackets are first nested deeper than they may be."""
    depth, line = 0, 1
    for token in _BRACKET.finditer(text):
        depth += token.group() in "[{"
        depth -= token.group() in "]}"
        line += token.group().count("\n")
        if depth > DEEPEST:
            break
    return line


def _json_rows(path: Path, row_form: str) -> list[tuple[str, Any]]:
    rows = read_json(path, "correct it, or name the file .jsonl if it holds a row per line")
    if isinstance(rows, Mapping):
        # The articles are those of a query run of the paper's code.
        rows = next((rows[key] for key in ("data", "articles") if isinstance(rows.get(key), list)), rows)
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} holds a JSON {name_of_type(rows)}; it should hold an array of rows, [{row_form}], or an object with such an "
            'array as "data".'
        )
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _json_lines(path: Path, row_form: str) -> list[tuple[str, Any]]:
    remedy = f"each line should hold one row of the form {row_form}"
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, unescaped.
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [
        (f"{path}, line {number}", parse_json(line, f"{path}, line ", number, remedy))
        for number, line in lines
        if line.strip()
    ]


def _csv_rows(path: Path, row_form: str) -> list[tuple[str, Any]]:
    text = read_text(path)
    header = text.lstrip().partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count), strict=True)
    names: list[str] = []
    located_rows, line = [], 1
    try:
        for cells in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [name.strip().lower() for name in cells]
                if twice := [name for name, number in Counter(names).items() if number > 1]:
                    raise ValueError(f"{where}: two columns are called {twice[0]!r}; give each a name of its own.")
            elif len(cells) != len(names):
                raise ValueError(
                    f"{where}: {len(cells)} cells where the first line names {len(names)} columns; put a cell that holds "
                    "commas or quotes into double quotes."
                )
            else:
                located_rows.append((where, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: malformed CSV ({error}); close the quotes, and double those within a cell."
        ) from error
    return located_rows


def _parquet_rows(path: Path, row_form: str) -> list[tuple[str, Any]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable parquet file; write it again.") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]
