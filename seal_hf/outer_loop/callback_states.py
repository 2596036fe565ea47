"""What a trainer's callbacks keep, such as the patience of `EarlyStoppingCallback`, in the state that is saved and restored."""

from collections.abc import Iterable

from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState


def with_callbacks(state: TrainerState, callbacks: Iterable[TrainerCallback]) -> TrainerState:
    """The state, in which what the callbacks that are an `ExportableState` keep now is noted as transformers does it."""
    state.stateful_callbacks = TrainerState(stateful_callbacks=_stateful(callbacks)).stateful_callbacks
    return state


def restore_callbacks(state: TrainerState, callbacks: Iterable[TrainerCallback]) -> None:
    """
    Give callbacks what they had kept when the state was saved.

    Unlike in transformers they stay the same objects, with the arguments that they were made with now, so that a run can be resumed
    with more patience. Several of one class get theirs in order.
    """
    stateful = _stateful(callbacks)
    for name, found in state.stateful_callbacks.items():
        own = [one for one in stateful if type(one).__name__ == name]
        for callback, kept in zip(own, found if isinstance(found, list) else [found], strict=False):
            for attribute, value in kept.get("attributes", {}).items():
                setattr(callback, attribute, value)


def _stateful(callbacks: Iterable[TrainerCallback]) -> list[TrainerCallback]:
    return [one for one in callbacks if isinstance(one, ExportableState)]
