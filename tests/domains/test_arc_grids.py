"""Grids of ARC tasks, and what the tools make of them."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_hf.domains.arc.grids import as_grid, read_grid, write_grid
from seal_hf.domains.arc.transforms import VIEWS, identity, mirror, recolour, rotate, scale, shift, tile, tools


GRID = ((1, 2, 3), (4, 5, 6))
GRIDS = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 9), min_size=size[1], max_size=size[1]).map(tuple), min_size=size[0], max_size=size[0]
    ).map(tuple)
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is not a grid; give a list of rows"),
        ("12", "is not a grid"),
        ([], "is not a grid"),
        ([[]], "is not a grid"),
        (["12"], "is not a grid"),
        ([1, 2], "is not a grid"),
        ([[1, 2], [3]], "has rows of 1 to 2 cells; make them all of one length"),
        ([[0] * 31], "has 1 x 31 cells; a grid has at most 30 x 30"),
        ([[0]] * 31, "has 31 x 1 cells"),
        ([[1], [10]], "has 10 in row 2; a colour is a whole number from 0 to 9"),
        ([[-1]], "has -1 in row 1"),
        ([[True]], "has True in row 1"),
        ([[1.0]], "has 1.0 in row 1"),
        ([["1"]], "has '1' in row 1"),
        ([[None]], "has None in row 1"),
    ],
)
def test_what_is_no_grid(value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_grid(value)


@given(GRIDS)
def test_a_grid_is_read_as_it_was_written(grid):
    assert read_grid(write_grid(grid)) == grid == as_grid([list(row) for row in grid])
    assert read_grid(str([list(row) for row in grid])) == grid


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("12\n34", ((1, 2), (3, 4))),
        ("\n 1 2 \n\n3,4\n", ((1, 2), (3, 4))),
        ("[[1, 2],\n [3, 4]]", ((1, 2), (3, 4))),
        ("7", ((7,),)),
        ("12\n3", None),
        ("", None),
        ("[]", None),
        ("The grid is\n12", None),
        ("12\n34.", None),
        ("-1", None),
        ("١٢", None),  # digits of another script
        ("²", None),
        ("1" * 31, None),
        ("1\n" * 31, None),
    ],
)
def test_what_a_model_writes(text, grid):
    assert read_grid(text) == grid


@pytest.mark.parametrize("name", sorted(VIEWS))
@given(grid=GRIDS)
def test_a_view_is_turned_back(name, grid):
    view, back = VIEWS[name]
    assert back(view(grid)) == grid == view(back(grid))


@given(GRIDS, st.integers(0, 3), st.integers(0, 3))
def test_the_tools_do_what_numpy_does(grid, down, right):
    array = np.array(grid)
    expected = {
        "rotate_90": np.rot90(array),
        "rotate_180": np.rot90(array, 2),
        "rotate_270": np.rot90(array, 3),
        "flip_up_down": np.flipud(array),
        "flip_left_right": np.fliplr(array),
        "transpose": array.T,
        "mirror_above": np.vstack([array[::-1], array]),
        "mirror_below": np.vstack([array, array[::-1]]),
        "mirror_left": np.hstack([array[:, ::-1], array]),
        "mirror_right": np.hstack([array, array[:, ::-1]]),
        "shift": np.roll(array, (down, right), (0, 1)),
        "double": np.kron(array, np.ones((2, 2), dtype=int)),
        "double_height": np.repeat(array, 2, axis=0),
        "double_width": np.repeat(array, 2, axis=1),
        "repeat_down": np.tile(array, (2, 1)),
        "repeat_right": np.tile(array, (1, 2)),
        "repeat_both": np.tile(array, (2, 2)),
    }
    turns = [name for name in VIEWS if name != "identity"]
    expected |= {f"{name}_double": np.kron(expected[name], np.ones((2, 2), dtype=int)) for name in turns}
    found = {name: tool(grid) for group in tools(down, right).values() for name, tool in group.items()}
    assert {name: list(map(list, one)) for name, one in found.items()} == {
        name: one.tolist() for name, one in expected.items()
    }


def test_the_tools_by_their_groups():
    assert {name: len(group) for name, group in tools(1, 2).items()} == {
        "basic": 11,
        "size": 3,
        "chain": 6,
        "repeat": 3,
    }


def test_what_single_tools_do():
    assert identity(GRID) == GRID and rotate(4, GRID) == GRID == rotate(0, GRID)
    assert rotate(1, GRID) == ((3, 6), (2, 5), (1, 4))
    assert shift(1, 1, GRID) == ((6, 4, 5), (3, 1, 2)) and shift(2, 3, GRID) == GRID == shift(0, 0, GRID)
    assert scale(2, 1, ((1,),)) == ((1,), (1,)) == tile(2, 1, ((1,),))
    assert mirror("above", GRID) == (*GRID[::-1], *GRID)
    assert recolour({1: 9, 9: 1}, GRID) == ((9, 2, 3), (4, 5, 6))
