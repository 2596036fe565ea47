"""
Grids of ARC tasks: read from files and from what a model writes, and written as text.

A grid is written as one line of digits for each row, `"012\\n340"`. A tokenizer that takes digits one by one, such as Qwen's and
Llama's, then has a token for each cell and one for each row; nested lists, which the paper's authors write, take three times as
many.
"""

from collections.abc import Sequence


Grid = tuple[tuple[int, ...], ...]

MAX_SIDE, NUM_COLOURS = 30, 10
_BETWEEN = str.maketrans("", "", " ,[]\t")  # the cells of a row


def as_grid(value: object) -> Grid:
    """
    Check a grid, as it comes from a JSON file.

    Args:
        value (`object`):
            A list of rows, each a list of colours.

    Returns:
        `tuple[tuple[int, ...], ...]`: rows of colours from 0 to 9.

    Raises:
        ValueError: It is not a list of equal rows with at most 30 x 30 cells, or a colour is not a whole number from 0 to 9. The
            message follows the name of the grid, as in "the input of demonstration 2 has ragged rows".
    """
    rows = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None
    if not rows or not all(isinstance(row, Sequence) and not isinstance(row, str | bytes) and row for row in rows):
        raise ValueError("is not a grid; give a list of rows, each a list of colours from 0 to 9.")
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise ValueError(f"has rows of {min(widths)} to {max(widths)} cells; make them all of one length.")
    if len(rows) > MAX_SIDE or len(rows[0]) > MAX_SIDE:
        raise ValueError(f"has {len(rows)} x {len(rows[0])} cells; a grid has at most {MAX_SIDE} x {MAX_SIDE}.")
    for place, row in enumerate(rows, start=1):
        for cell in row:
            if isinstance(cell, bool) or not isinstance(cell, int) or not 0 <= cell < NUM_COLOURS:
                raise ValueError(
                    f"has {_shown(cell)} in row {place}; a colour is a whole number from 0 to {NUM_COLOURS - 1}."
                )
    return tuple(tuple(row) for row in rows)


def _shown(cell: object) -> str:
    # A file may have anything in place of a colour.
    return text if len(text := repr(cell)) <= 40 else f"{text[:40]} …"


def write_grid(grid: Grid) -> str:
    """
    Write a grid as text, a line for each row.

    Example:

    ```python
    >>> write_grid(((0, 1), (2, 3)))
    '01\\n23'

    ```
    """
    return "\n".join("".join(map(str, row)) for row in grid)


def read_grid(text: str) -> Grid | None:
    """
    Read a grid that a model wrote; `None` where it is not one.

    Spaces, commas and brackets between the cells do no harm, so that nested lists are read, too.

    Example:

    ```python
    >>> read_grid("01\\n23\\n"), read_grid("[[0, 1], [2, 3]]"), read_grid("01\\n2"), read_grid("It is 7.")
    (((0, 1), (2, 3)), ((0, 1), (2, 3)), None, None)

    ```
    """
    lines = [line.translate(_BETWEEN) for line in text.replace("],", "\n").splitlines()]
    rows = [line for line in lines if line]
    if not rows or not all(row.isascii() and row.isdigit() for row in rows):
        return None
    is_grid = len({len(row) for row in rows}) == 1 and len(rows) <= MAX_SIDE and len(rows[0]) <= MAX_SIDE
    return tuple(tuple(map(int, row)) for row in rows) if is_grid else None
