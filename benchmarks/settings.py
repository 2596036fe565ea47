"""How much of everything is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """
    How much is measured.

    Parameters:
        adapters (`tuple[int, ...]`):
            Sizes of the banks.
        targets (`tuple[str, ...]`):
            Sets of adapted modules, by their names in `ways.TARGETS`.
        repetitions (`int`):
            How often the ways take turns.
        peft_updates (`int`):
            Self-edits that PEFT trains on in one turn.
        turn_epochs (`int`):
            Epochs of a turn of PEFT and of the bank.
        reference_steps (`int`):
            Steps of the reference way, after one that is not counted.
        memory_adapters (`tuple[int, ...]`):
            Sizes of the banks whose memory is measured; none are where it is empty.
        answer_repetitions (`int`):
            How often the two ways to answer take turns.
        peft_answer_adapters (`int`):
            Adapters of the largest bank that answer with PEFT, one after another; the time of all is projected.
        max_answer_length (`int`):
            Longest answer, in tokens.
        step_epochs (`int`):
            Epochs that are run of one repeat of an expectation step; 0 leaves it out.
        process_passages (`int`):
            Passages of the expectation step that one process and two do; 0 leaves it out.
        arc_tasks (`tuple[str, ...]`):
            ARC tasks that are learned and solved, by their sizes in `arc_task.NUM_TRAINING_TASKS`.
        quantized (`bool`):
            Whether the quantized base is measured.
    """

    adapters: tuple[int, ...] = (16, 40)
    targets: tuple[str, ...] = ("q,v", "all-linear")
    repetitions: int = 2
    peft_updates: int = 3
    turn_epochs: int = 2
    reference_steps: int = 2
    memory_adapters: tuple[int, ...] = (1, 8, 32)
    answer_repetitions: int = 2
    peft_answer_adapters: int = 6
    max_answer_length: int = 32
    step_epochs: int = 4
    process_passages: int = 16
    arc_tasks: tuple[str, ...] = ("small", "large")
    quantized: bool = True


QUICK = Settings(
    adapters=(16,),
    targets=("q,v",),
    repetitions=1,
    peft_updates=3,
    turn_epochs=1,
    reference_steps=1,
    memory_adapters=(),
    answer_repetitions=1,
    peft_answer_adapters=1,
    step_epochs=0,
    process_passages=0,
    arc_tasks=(),
    quantized=False,
)
