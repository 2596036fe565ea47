"""What examples must have, and how long they may be, found out before anything is trained."""

from ..domains import KnowledgeDomain
from ..domains.knowledge.passages import is_text
from ..models.access import context_length
from ..models.encoding import encode_prompt
from ..outer_loop.seal_config import SEALConfig
from ..self_adapting_lm import SelfAdaptingLM
from .examples import ExampleSet


def check_lengths(
    lm: SelfAdaptingLM, args: SEALConfig, data: ExampleSet, name: str, is_trained_on: bool = False
) -> None:
    """
    Raises:
        ValueError: An example whose prompts do not fit the model's context, named with its length, or one that lacks a
            question or (knowledge domain) an answer.
    """
    context = context_length(lm.model)
    for example, example_id in zip(data.examples, data.ids, strict=True):
        try:
            questions = list(lm.domain.questions(example))
        except KeyError as error:
            raise ValueError(
                f"{name}: example {example_id} has no {error}, which {type(lm.domain).__name__} asks for; add it, or drop "
                "the example."
            ) from error
        if not questions:
            raise ValueError(
                f"{name}: example {example_id} has no question, so that nothing can be rewarded; add one, or drop it."
            )
        if isinstance(lm.domain, KnowledgeDomain):
            questions += lm.domain.questions_in_context(example)
            for item in example["questions"]:
                if not is_text(item.get("answer")):
                    raise ValueError(
                        f"{name}: example {example_id} has no answer to {item['question']!r}, so that nothing can be graded; "
                        'add it as "answer", or drop the question.'
                    )
        prompt_length = len(encode_prompt(lm.processing_class, lm.domain.prompt(example)))
        if is_trained_on and args.max_length is not None and prompt_length >= args.max_length:
            raise ValueError(
                f"{name}: example {example_id} has a prompt of {prompt_length} tokens, which leaves no room for a "
                f"self-edit in the outer SFT's max_length={args.max_length}; raise it, or drop the example."
            )
        for prompts, new_tokens, option in (
            ([lm.domain.prompt(example)], args.max_completion_length, "max_completion_length"),
            (questions, args.max_answer_length, "max_answer_length"),
        ):
            if context is None:
                break
            longest = max(len(encode_prompt(lm.processing_class, prompt)) for prompt in prompts)
            if longest + new_tokens > context:
                raise ValueError(
                    f"{name}: example {example_id} has a prompt of {longest} tokens, which with {option}={new_tokens} "
                    f"exceeds the model's context of {context}; shorten or drop the example, or lower {option}."
                )
