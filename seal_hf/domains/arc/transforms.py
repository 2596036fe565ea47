"""
Transformations of grids: views, which can be turned back, and the tools that a self-edit may choose.

The tools are those of SEAL's few-shot experiments (section 4.1), in four groups: `basic`, `size`, `chain` and `repeat`.
"""

from collections.abc import Callable, Mapping
from functools import partial

from .grids import Grid


Transform = Callable[[Grid], Grid]


def identity(grid: Grid) -> Grid:
    """The grid itself."""
    return grid


def rotate(quarters: int, grid: Grid) -> Grid:
    """
    Turn a grid to the left, by quarters of a full turn.

    Example:

    ```python
    >>> rotate(1, ((1, 2), (3, 4)))
    ((2, 4), (1, 3))

    ```
    """
    for _ in range(quarters % 4):
        grid = tuple(zip(*grid, strict=True))[::-1]
    return grid


def flip_up_down(grid: Grid) -> Grid:
    """The rows in reverse order."""
    return grid[::-1]


def flip_left_right(grid: Grid) -> Grid:
    """Each row in reverse order."""
    return tuple(row[::-1] for row in grid)


def transpose(grid: Grid) -> Grid:
    """Rows as columns."""
    return tuple(zip(*grid, strict=True))


def shift(down: int, right: int, grid: Grid) -> Grid:
    """Move all cells; what leaves at one side comes in at the other."""
    down, right = down % len(grid), right % len(grid[0])
    rows = grid[len(grid) - down :] + grid[: len(grid) - down]
    return tuple(row[len(row) - right :] + row[: len(row) - right] for row in rows)


def scale(height: int, width: int, grid: Grid) -> Grid:
    """
    Every cell as a block of cells.

    Example:

    ```python
    >>> scale(1, 2, ((1, 2),))
    ((1, 1, 2, 2),)

    ```
    """
    return tuple(tuple(cell for cell in row for _ in range(width)) for row in grid for _ in range(height))


def tile(height: int, width: int, grid: Grid) -> Grid:
    """The grid beside itself."""
    return tuple(row * width for row in grid) * height


def mirror(side: str, grid: Grid) -> Grid:
    """
    The grid joined with its mirror image, which stands on one `side` of it: `"above"`, `"below"`, `"left"` or `"right"`.

    Example:

    ```python
    >>> mirror("left", ((1, 2),))
    ((2, 1, 1, 2),)

    ```
    """
    if side in ("above", "below"):
        image = flip_up_down(grid)
        return image + grid if side == "above" else grid + image
    image = flip_left_right(grid)
    left, right = (image, grid) if side == "left" else (grid, image)
    return tuple(one + other for one, other in zip(left, right, strict=True))


def recolour(colours: Mapping[int, int], grid: Grid) -> Grid:
    """Each colour replaced; those that are not in `colours` stay."""
    return tuple(tuple(colours.get(cell, cell) for cell in row) for row in grid)


# What a prediction is asked for under, and how it is turned back.
VIEWS: dict[str, tuple[Transform, Transform]] = {
    "identity": (identity, identity),
    "transpose": (transpose, transpose),
    "flip_up_down": (flip_up_down, flip_up_down),
    "flip_left_right": (flip_left_right, flip_left_right),
    "rotate_90": (partial(rotate, 1), partial(rotate, 3)),
    "rotate_180": (partial(rotate, 2), partial(rotate, 2)),
    "rotate_270": (partial(rotate, 3), partial(rotate, 1)),
}
_TURNS: dict[str, Transform] = {name: view for name, (view, _) in VIEWS.items() if name != "identity"}


def _doubled_after(turn: Transform, grid: Grid) -> Grid:
    return scale(2, 2, turn(grid))


def tools(down: int, right: int) -> dict[str, dict[str, Transform]]:
    """
    The tools by their groups and names.

    Args:
        down, right (`int`):
            By how much the tool that shifts a grid does so.

    Returns:
        `dict[str, dict[str, Transform]]`: 11 basic ones, 3 of size, 6 chains of two and 3 that repeat.
    """
    return {
        "basic": {
            **_TURNS,
            **{f"mirror_{side}": partial(mirror, side) for side in ("above", "below", "left", "right")},
            "shift": partial(shift, down, right),
        },
        "size": {
            "double": partial(scale, 2, 2),
            "double_height": partial(scale, 2, 1),
            "double_width": partial(scale, 1, 2),
        },
        "chain": {f"{name}_double": partial(_doubled_after, turn) for name, turn in _TURNS.items()},
        "repeat": {
            "repeat_down": partial(tile, 2, 1),
            "repeat_right": partial(tile, 1, 2),
            "repeat_both": partial(tile, 2, 2),
        },
    }
