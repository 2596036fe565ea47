"""A dataset's examples with an id for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class ExampleSet:
    """
    Examples of a domain in their order.

    Parameters:
        examples (`list[dict]`):
            The rows.
        ids (`list[str]`):
            Each row's `"id"`, or its place where it has none.
    """

    examples: list[dict]
    ids: list[str]

    @classmethod
    def of(cls, dataset: Dataset | Sequence[Mapping], name: str) -> "ExampleSet":
        """
        Take a dataset as it is given to a trainer.

        Raises:
            TypeError: It cannot be indexed.
            ValueError: It is empty, or two rows have the same id. Messages begin with `name`.
        """
        if isinstance(dataset, IterableDataset | Mapping | str) or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"{name} must be a list or a datasets.Dataset of examples, not a {type(dataset).__name__}."
            )
        for place, example in enumerate(dataset):
            if not isinstance(example, Mapping):
                raise TypeError(
                    f"{name}: example {place} must be a mapping such as {{'context': ..., 'questions': ...}}, not a "
                    f"{type(example).__name__}."
                )
        examples = [dict(example) for example in dataset]
        if not examples:
            raise ValueError(f"{name} is empty; give at least one example.")
        ids = [str(example.get("id", place)) for place, example in enumerate(examples)]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f"{name} has more than one example with the id {twice!r}; make ids unique or drop them.")
        return cls(examples, ids)

    def __len__(self) -> int:
        return len(self.examples)

    def num_shared_with(self, other: "ExampleSet") -> int:
        """How many of these examples have a passage (or, without one, are an example) of the other set."""
        theirs = set(map(_passage, other.examples))
        return sum(_passage(example) in theirs for example in self.examples)


def _passage(example: Mapping) -> str:
    return str(example.get("context", example)).strip()
