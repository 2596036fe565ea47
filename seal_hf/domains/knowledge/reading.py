"""How what the policy wrote is read: its instruction, what it sets of its training, questions and other texts."""

from dataclasses import dataclass

from .answered_questions import split_questions
from .completions import split_completion
from .instructions import split_instruction
from .training_settings import split_training_settings


@dataclass(frozen=True)
class CompletionReader:
    """
    Reads completions as the options of a [`KnowledgeDomain`] say.

    Parameters:
        split_newlines (`bool`):
            Whether lines, or questions with their answers, are texts of their own.
        has_instruction (`bool`):
            Whether the first line is the policy's instruction.
        sets_training (`bool`):
            Whether lines may set the training.
        asks_questions (`bool`):
            Whether questions are taken apart, which the model is to answer.
        is_of_questions_alone (`bool`):
            Whether the policy was asked for questions and nothing else, so that its other texts are what it should not have
            written.
    """

    split_newlines: bool
    has_instruction: bool
    sets_training: bool
    asks_questions: bool
    is_of_questions_alone: bool

    def split(self, completion: str) -> tuple[list[str], list[str]]:
        """The questions of a completion that the model is to answer, and its other texts."""
        completion = self._without_settings(completion)
        if self.has_instruction:
            completion = split_instruction(completion)[1]
        if not self.asks_questions:
            return [], split_completion(completion, self.split_newlines)
        questions, texts = split_questions(completion, self.split_newlines)
        return questions, [] if self.is_of_questions_alone else texts

    def instruction(self, completion: str) -> str | None:
        """The instruction, where there is one."""
        if not self.has_instruction:
            return None
        return split_instruction(self._without_settings(completion))[0] or None

    def settings(self, completion: str) -> dict[str, float]:
        """What a completion sets of its training (see [`split_training_settings`])."""
        return split_training_settings(completion)[1] if self.sets_training else {}

    def _without_settings(self, completion: str) -> str:
        return split_training_settings(completion)[0] if self.sets_training else completion
