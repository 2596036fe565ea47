"""
Knowledge incorporation (SEAL, section 3.2): from a passage to training examples and closed-book questions.

An example is a mapping `{"title": str, "context": str, "questions": [{"question": str, "answer": str}]}`; an answer may
be a list of several, of which each is right. The prompts are text files in `prompts/`.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from ...grading import LexicalGrader, gold_answers, is_short
from ...grading.recitation import recited
from ...grading.rewards import REWARD_FUNCS
from ...self_edit import Prompt, SelfEdit, TrainingExample
from ..base import BASE, Condition, Domain
from ..retrieval import Retriever
from ..tools import AskModel
from .answered_questions import answer_questions
from .checks import check_answers, check_options, check_passage
from .instructions import INSTRUCTIONS_PLACE, shown_instructions
from .left_out_facts import ask_about, ask_for_left_out, left_out_facts
from .passages import load_retention_questions
from .questions import is_text, items_of, question_about
from .reading import CompletionReader
from .reward_questions import examples_of_own_questions, examples_with_own_answers
from .sentences import split_sentences
from .templates import (
    MARK,
    PURE_QUESTION_STYLES,
    QUESTION_STYLES,
    fill_prompt,
    load_answer_template,
    load_prompt_template,
    read_prompt_file,
    value_at_mark,
)
from .training_formats import prompts_with_completions, raw_texts, trained_pairs
from .training_settings import ask_for_training, training_metrics
from .verdicts import Grader, grade_answers


# What an evaluation compares self-edits with, beside the base model: the same model with the passage in view, and an
# adapter that was trained on the passage alone.
IN_CONTEXT, PASSAGE_ONLY = "passage in context", "passage only"
_INSTRUCTIONS = "instructions"  # key of an example that shows some


class KnowledgeDomain(Domain):
    """
    Learn the facts of a passage, then answer questions about it without seeing it (SEAL, section 3.2).

    Parameters:
        prompt_style (`str`, *optional*, defaults to `"implications"`):
            How the policy is asked to restate a passage: `"implications"`, `"implications-long"`,
            `"implications-very-long"`, `"rewrite"`, `"self-qa"`, `"questions"`, `"questions-by-sentence"`,
            `"questions-by-fact"`, `"questions-and-rewrite"`, `"instruction"` (the policy writes the instruction itself, see
            [`split_instruction`]) or `"none"` (the passage without an instruction); or a template of your own, as text or
            as the path of a `.txt` file, with a place for the passage, `{context}`, or for its numbered sentences,
            `{sentences}`, and, if wanted, one for its title, `{title}`, and one for instructions that paid, `{instructions}`: then
            the first line of a self-edit is its instruction.
        split_newlines (`bool`, *optional*, defaults to `True`):
            Whether lines, or questions with their answers, become training examples of their own. Otherwise a
            completion is split at `---` only.
        grader ([`LexicalGrader`] or [`JudgeGrader`], *optional*):
            Judge of the answers. Defaults to a [`LexicalGrader`], which needs neither network nor key.
        chat (`bool`, *optional*):
            Whether prompts are chat messages for an instruction-tuned model rather than plain text for a base model.
            Where it is not set, [`~KnowledgeDomain.for_model`] decides by the tokenizer's chat template.
            The chat form is one user message, without the last line of the template if that ends in a colon: such a
            line is the beginning of the answer, which a base model continues.
        answer_prompt (`str`, *optional*, defaults to `"default"`):
            How questions are asked closed-book: `"default"`, or `"paper"` for the prompt of the paper's code, to compare
            accuracies with the paper's. With the passage in view the prompt is always this project's: the paper has none.
        training_format (`str`, *optional*, defaults to `"language_modeling"`):
            How an adapter is trained on a self-edit: `"language_modeling"`, the paper's raw texts behind the title, or
            `"prompt_completion"`, in which questions are closed-book prompts with the loss on the answer, and other texts
            and the passage are answers to what is known of the topic.
        num_passages (`int`, *optional*, defaults to `1`):
            How often the passage itself comes in each epoch, in the format `"prompt_completion"`.
        answers_questions (`bool`, *optional*):
            Whether the policy writes questions without answers, which the model answers itself with the passage in view (see
            [`~KnowledgeDomain.carry_out`]). Where it is not set, this is so for the styles whose names begin with
            `"questions"`.
        asks_for_left_out (`bool`, *optional*):
            Whether the model is also asked, in the style `"questions-by-fact"`, for questions about the names, numbers and long
            words of each sentence for which the policy wrote none (see [`ask_for_left_out`]). Where it is not set, this is so
            in that style, if the model answers its questions.
        num_left_out_words (`int`, *optional*, defaults to `6`):
            Most words of a sentence, the longest, that it is then asked about, beside names and numbers. Twelve are nearly all
            words of a sentence that are longer than three letters, for about half as much time again.
        sets_training (`bool`, *optional*, defaults to `False`):
            Whether the policy is asked to set epochs, learning rate and batch size of the inner update in a line, whatever
            the style (see [`split_training_settings`]). What it does not set is left to the run's settings.

    Raises:
        ValueError: If `prompt_style` is neither one of the styles nor a template with a place for the passage, if
            there is no such `answer_prompt` or `training_format`, if `num_passages` is below 0 or given for raw texts, if
            `num_left_out_words` is below 0, or if `asks_for_left_out` is set for another style than `"questions-by-fact"`, or
            `sets_training` for that one.
        FileNotFoundError: If `prompt_style` is the path of a file that does not exist.
    """

    def __init__(
        self,
        prompt_style: str = "implications",
        split_newlines: bool = True,
        grader: Grader | None = None,
        chat: bool | None = None,
        answer_prompt: str = "default",
        training_format: str = "language_modeling",
        num_passages: int = 1,
        answers_questions: bool | None = None,
        asks_for_left_out: bool | None = None,
        num_left_out_words: int = 6,
        sets_training: bool = False,
    ):
        self._is_by_fact = prompt_style == "questions-by-fact"
        can_ask = self._is_by_fact and answers_questions is not False
        if asks_for_left_out is None:
            asks_for_left_out = can_ask
        check_options(
            training_format,
            num_passages,
            num_left_out_words,
            is_by_fact=self._is_by_fact,
            lacks_facts=asks_for_left_out and not can_ask,
            sets_training=sets_training,
        )
        self.prompt_style = prompt_style
        self.split_newlines = split_newlines
        self.grader = LexicalGrader() if grader is None else grader
        self.chat = chat
        self.answer_prompt = answer_prompt
        self.training_format, self.num_passages = training_format, num_passages
        self.answers_questions = answers_questions
        self.asks_for_left_out = asks_for_left_out
        self.num_left_out_words = num_left_out_words
        self.sets_training = sets_training
        template = load_prompt_template(prompt_style)
        self._prompt_template = ask_for_training(template) if sets_training else template
        self._has_instruction = INSTRUCTIONS_PLACE in template
        self._calls_tool = prompt_style in QUESTION_STYLES if answers_questions is None else answers_questions
        self._answer_template = load_answer_template(answer_prompt)
        self._answer_in_context_template = read_prompt_file("answer-in-context")
        self._known_template = read_prompt_file("known")

    def prompt(self, example: Mapping[str, Any]) -> Prompt:
        """
        Return what the policy sees when it writes a self-edit: the instruction of the prompt style and the passage.

        Args:
            example (`Mapping[str, Any]`):
                A passage; its questions are not needed.

        Returns:
            `str` or `list[dict]`: Plain text, or chat messages when `chat` is set.

        Raises:
            ValueError: The passage is missing or empty.
        """
        if not is_text(example.get("context", "?")):
            raise ValueError("The passage is empty; give it some text to learn.")
        return self._fill(self._prompt_template, example)

    def parts(self, example: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return the sentences of the passage in the style `"questions-by-fact"`, and else the passage as a whole."""
        if not self._is_by_fact:
            return (example,)
        sentences = split_sentences(example["context"]) or [example["context"]]
        return tuple({**example, "context": sentence, "questions": ()} for sentence in sentences)

    def parse(self, completion: str, example: Mapping[str, Any]) -> SelfEdit | None:
        """
        Turn a completion into training examples: texts by the paper's rules (see [`split_completion`]) in the domain's
        `training_format`, and the passage itself. Questions that the model is to answer become calls of the tool, and what a
        line sets of the training becomes `overrides`, where the domain is told so.

        Unlike in the reference implementation, a completion without any text is malformed.

        Args:
            completion (`str`):
                What the policy wrote.
            example (`Mapping[str, Any]`):
                The passage that it wrote about; its questions are not needed.

        Returns:
            [`SelfEdit`] or `None`: `None` when the completion has no text.
        """
        questions, texts = self._reader.split(completion)
        if not questions and not texts:
            return None
        overrides = self._reader.settings(completion)
        return SelfEdit(
            prompt=self.prompt(example),
            completion=completion,
            examples=self._training_examples(example, texts),
            overrides=overrides,
            calls=tuple(questions),
            metrics=training_metrics(overrides) if self.sets_training else {},
            title=example.get("title") or "",
        )

    def carry_out(
        self, self_edits: Sequence[SelfEdit], examples: Sequence[Mapping[str, Any]], ask: AskModel
    ) -> list[SelfEdit]:
        """
        Let the model answer, with the passage in view, the questions of many self-edits, all of them with one call (see
        [`answer_questions`]): what two readings agree on and the passage supports is trained on, as questions with answers.

        Args:
            self_edits (`Sequence[SelfEdit]`):
                Self-edits with questions as their `calls`.
            examples (`Sequence[Mapping[str, Any]]`):
                For each its passage.
            ask ([`AskModel`]):
                The model.

        Returns:
            `list[SelfEdit]`: for each the self-edit with all of its training examples, and the counts of what was kept and
                dropped as `metrics`. One of which nothing is left has no examples.
        """
        questions = [list(edit.calls) for edit in self_edits]
        added = [[] for _ in questions]
        if self.asks_for_left_out:
            added = ask_for_left_out(questions, examples, ask, self.parts, self.prompt, self.num_left_out_words)
        questions = [[*own, *more] for own, more in zip(questions, added, strict=True)]
        answered = answer_questions(questions, examples, ask, self.questions_in_context, self._is_by_fact)
        carried_out = []
        for edit, example, own, more in zip(self_edits, examples, answered, added, strict=True):
            others = self.statements(edit.completion)
            texts = [*_pair_texts(own.pairs), *others]
            kept = own.kept_of([part["context"] for part in self.parts(example)])
            if len(kept) == 1:
                kept = [text for text in (*kept, "\n".join(others)) if text]
            trained = self._training_examples(example, texts) if texts else ()
            metrics = {**own.metrics, "questions_added": len(more)} if self.asks_for_left_out else own.metrics
            carried_out.append(replace(edit, examples=trained, calls=(), metrics=metrics, kept="\n---\n".join(kept)))
        return carried_out

    def num_left_out(self, self_edit: SelfEdit, example: Mapping[str, Any]) -> int:
        """Return how many questions [`~KnowledgeDomain.carry_out`] adds at most to those that a self-edit asks."""
        if not self.asks_for_left_out or not self_edit.calls:
            return 0
        return len(left_out_facts(self_edit.calls, example, self.parts(example), self.num_left_out_words))

    def pair_about(self, fact: str, example: Mapping[str, Any], ask: AskModel) -> tuple[str, str] | None:
        """
        Let the model write a question about one fact of a passage and answer it (see [`ask_about`]).

        Args:
            fact (`str`):
                A name, number or word of the passage.
            example (`Mapping[str, Any]`):
                The passage.
            ask ([`AskModel`]):
                The model.

        Returns:
            `tuple[str, str]`, *optional*: The question and its answer; `None` where the model finds none.

        Raises:
            ValueError: The domain has not the style `"questions-by-fact"`, in which facts are asked for.
        """
        if not self._is_by_fact:
            raise ValueError(
                f"The style {self.prompt_style!r} does not ask for facts; use KnowledgeDomain('questions-by-fact')."
            )
        return ask_about(fact, example, ask, self.prompt, self.questions_in_context)

    def statements(self, completion: str) -> list[str]:
        """Return the texts of a completion that are trained on as they are, without the questions that the model is to answer."""
        return self._reader.split(completion)[1]

    def self_edit_of(
        self, pairs: Sequence[tuple[str, str]], example: Mapping[str, Any], statements: Sequence[str] = ()
    ) -> SelfEdit | None:
        """
        Return the self-edit of questions whose answers are known, such as those of [`~KnowledgeDomain.learned_pairs`] after
        somebody has edited them.

        Args:
            pairs (`Sequence[tuple[str, str]]`):
                Questions with their answers.
            example (`Mapping[str, Any]`):
                The passage that they are about.
            statements (`Sequence[str]`, *optional*):
                Other texts to train on.

        Returns:
            [`SelfEdit`] or `None`: `None` where there is neither a question nor another text.
        """
        if not (texts := [*_pair_texts(pairs), *statements]):
            return None
        return SelfEdit(
            prompt=self.prompt(example),
            completion="\n".join(texts),
            examples=self._training_examples(example, texts),
            title=example.get("title") or "",
        )

    @property
    def pools_drafts(self) -> bool:
        """Where questions are answered: what is wrong or was written before is dropped, so that the more drafts cover more."""
        # What sets the training is not in what is kept.
        return self._calls_tool and not self.sets_training

    @property
    def _reader(self) -> CompletionReader:
        # Made anew, since a subclass may set an option later.
        return CompletionReader(
            self.split_newlines,
            has_instruction=self._has_instruction,
            sets_training=self.sets_training,
            asks_questions=self._calls_tool,
            is_of_questions_alone=self.prompt_style in PURE_QUESTION_STYLES,
        )

    def instruction(self, completion: str) -> str | None:
        """Return the first line in the style `"instruction"` (see [`split_instruction`])."""
        return self._reader.instruction(completion)

    def with_instructions(self, example: Mapping[str, Any], instructions: Sequence[str]) -> Mapping[str, Any]:
        """Return the passage with instructions that its prompt shows in the style `"instruction"`."""
        if not self._has_instruction or not instructions:
            return example
        return {**example, _INSTRUCTIONS: tuple(instructions)}

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The base model, the base model with the passage in view, and training on the passage alone."""
        return (
            Condition(BASE, self.questions),
            Condition(IN_CONTEXT, self.questions_in_context),
            Condition(PASSAGE_ONLY, self.questions, self.passage_only),
        )

    def check(self, example: Mapping[str, Any]) -> None:
        """
        Find out whether an example has a passage and questions with answers (see [`Domain.check`]).

        Raises:
            ValueError: Something is missing.
        """
        self.check_unlabelled(example)
        super().check(example)
        check_answers(example)

    def check_unlabelled(self, example: Mapping[str, Any]) -> None:
        """
        Find out whether an example has a passage. Questions that it has are texts, and need no answers.

        Raises:
            ValueError: Something is missing.
        """
        check_passage(example)

    @property
    def reward_funcs(self) -> tuple[str, ...]:
        """All rewards."""
        return REWARD_FUNCS

    def own_examples(
        self, example: Mapping[str, Any], self_edits: Sequence[SelfEdit | None], lm: Any, seed: int
    ) -> list[dict[str, Any] | None]:
        """
        Return the passage with the questions that the other self-edits ask (see [`seal_hf.domains.knowledge.reward_questions`]),
        or that the model writes itself where they ask none.
        """
        is_raw = self.training_format == "language_modeling"
        pairs = [
            None if edit is None else trained_pairs(edit.examples) if is_raw else self.learned_pairs(edit)
            for edit in self_edits
        ]
        return examples_of_own_questions(lm, example, pairs, seed)

    def open_book(self, examples: Sequence[Mapping[str, Any]], lm: Any) -> list[dict[str, Any] | None]:
        """Return the passages with what the model answers to their questions with the passage in view."""
        return examples_with_own_answers(lm, examples)

    def content(self, example: Mapping[str, Any]) -> str:
        """Return the passage: its questions, title and other keys are not what is learned."""
        return str(example["context"]).strip()

    def for_model(self, has_chat_template: bool) -> "KnowledgeDomain":
        """
        Return the domain with prompts in chat form, or in plain text where the tokenizer has no chat template; the domain
        itself where its `chat` is set.

        Raises:
            ValueError: `chat=True` for a tokenizer without a chat template.
        """
        if self.chat and not has_chat_template:
            raise ValueError(
                "The tokenizer has no chat template, which a domain in chat form needs; use KnowledgeDomain(chat=False), "
                "or set `tokenizer.chat_template`."
            )
        if self.chat is not None:
            return self
        domain = copy(self)
        domain.chat = has_chat_template
        return domain

    def example_from_text(self, text: str) -> dict[str, Any]:
        """Return a passage without a title and without questions."""
        return {"title": "", "context": text}

    def ask(self, questions: Sequence[str], title: str = "") -> list[Prompt]:
        """Return closed-book prompts for questions about a topic."""
        example = {"title": title, "context": "", "questions": [{"question": text} for text in questions]}
        return self.questions(example)

    def question_of(self, prompt: Prompt, title: str = "") -> str | None:
        """
        Return the question that a closed-book prompt asks.

        Args:
            prompt (`str` or `list[dict]`):
                A prompt, such as that of a training example.
            title (`str`, *optional*, defaults to `""`):
                The topic that it names.

        Returns:
            `str` or `None`: the question; `None` of the prompt for all that is known, and of one that
                [`~KnowledgeDomain.ask`] does not give for this topic.
        """
        if prompt == self._known({"title": title, "context": ""}):
            return None
        (marked,) = self.ask([MARK], title)
        return value_at_mark(marked, prompt)

    def learned_pairs(self, self_edit: SelfEdit) -> list[tuple[str, str]]:
        """
        Return the questions of a self-edit's training examples with their answers.

        Args:
            self_edit ([`SelfEdit`]):
                A self-edit of this domain, in the format `"prompt_completion"`; in the other there are none.
        """
        questions = [self.question_of(one.prompt, self_edit.title) for one in self_edit.examples]
        return [
            (question, one.completion)
            for question, one in zip(questions, self_edit.examples, strict=True)
            if question is not None
        ]

    def passage_only(self, example: Mapping[str, Any]) -> SelfEdit:
        """
        Return the baseline that trains on the passage alone, without anything that a policy wrote.

        Args:
            example (`Mapping[str, Any]`):
                A passage; its questions are not needed.

        Returns:
            [`SelfEdit`]: The passage as the only training example; prompt and completion are empty.
        """
        examples = self._training_examples(example, ())
        return SelfEdit(prompt="", completion="", examples=examples, title=example.get("title") or "")

    def _training_examples(self, example: Mapping[str, Any], texts: Sequence[str]) -> tuple[TrainingExample, ...]:
        if self.training_format == "language_modeling":
            return raw_texts(example, texts)
        # Without anything else the passage is trained on in any case.
        num_passages = self.num_passages if texts else max(self.num_passages, 1)
        return prompts_with_completions(example, texts, self.ask, self._known, num_passages)

    def _known(self, example: Mapping[str, Any]) -> Prompt:
        title = example.get("title")
        question = f"What do you know about {title}?" if title else "What have you learned?"
        return self._fill(self._known_template, example, question=question)

    def questions(self, example: Mapping[str, Any]) -> list[Prompt]:
        """
        Return the closed-book evaluation prompts: topic and question, without the passage.

        Args:
            example (`Mapping[str, Any]`):
                A passage with its questions.

        Returns:
            `list[str | list[dict]]`: A prompt for each question.
        """
        names_topic = self.answer_prompt == "paper"
        asked = [question_about(example, item) if names_topic else item["question"] for item in items_of(example)]
        return [self._fill(self._answer_template, example, question=question) for question in asked]

    def questions_in_context(self, example: Mapping[str, Any]) -> list[Prompt]:
        """
        Return the same questions with the passage in view, to see what the model could answer if it had learned all.

        Args:
            example (`Mapping[str, Any]`):
                A passage with its questions.

        Returns:
            `list[str | list[dict]]`: A prompt for each question.
        """
        template = self._answer_in_context_template
        return [self._fill(template, example, question=item["question"]) for item in items_of(example)]

    def routes(self, examples: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], list[int | None]]:
        """Return what finds the passage of each question by topic and question (see [`Retriever`])."""
        retriever = Retriever([f"{example.get('title') or ''}\n{example['context']}" for example in examples])

        def found(example: Mapping[str, Any]) -> list[int | None]:
            title = example.get("title") or ""
            return retriever.find([f"{title} {item['question']}" for item in example["questions"]])

        return found

    def recitation_prompt(self, example: Mapping[str, Any]) -> Prompt:
        """Return the closed-book prompt of "Tell me about TITLE.", to which a recitation is the right answer."""
        title = example.get("title") or ""
        (prompt,) = self.ask([f"Tell me about {title or 'what you have learned'}."], title)
        return prompt

    def recited(self, example: Mapping[str, Any], answers: Sequence[str]) -> list[bool]:
        """Tell which answers are the same to two or more questions, or copy 12 or more words of the passage in a row."""
        return recited(example["context"], answers)

    def short(self, example: Mapping[str, Any], answers: Sequence[str]) -> list[bool]:
        """Tell which answers have at most 12 words, or three times those of the gold answer where that is more."""
        golds = (gold_answers(item["answer"]) or () for item in example["questions"])
        return [is_short(answer, own) for answer, own in zip(answers, golds, strict=True)]

    def retention_example(self) -> dict[str, Any]:
        """Return 20 general questions, such as for the capital of France, without a topic (see [`load_retention_questions`])."""
        return {"title": "", "context": "", "questions": load_retention_questions()}

    def grade(
        self, examples: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]
    ) -> list[list[bool | None]]:
        """
        Judge the answers to the questions of many passages with one call of the grader. Where a question has several
        gold answers, the grader gets them as a list. A judge with the paper's prompt is told the topic with the question.

        Args:
            examples (`Sequence[Mapping[str, Any]]`):
                Passages with their questions. The same passage may occur more than once.
            answers (`Sequence[Sequence[str]]`):
                For each passage, one answer to each of its questions, in their order.

        Returns:
            `list[list[bool | None]]`: A verdict for each answer of each passage; `None` where the grader gave none.

        Raises:
            ValueError: The number of answers differs from the number of questions.
        """
        return grade_answers(self.grader, examples, answers)

    def _fill(self, template: str, example: Mapping[str, Any], **values: str) -> Prompt:
        if "context" not in example:
            raise ValueError(f'An example has no "context", only {", ".join(example) or "nothing"}; give its passage.')
        values.update(title=example.get("title") or "", context=example["context"].strip())
        if INSTRUCTIONS_PLACE in template:
            values["instructions"] = shown_instructions(example.get(_INSTRUCTIONS, ()))
        if "{sentences}" in template:
            values["sentences"] = "\n".join(
                f"{number}. {sentence}" for number, sentence in enumerate(split_sentences(values["context"]), start=1)
            )
        return fill_prompt(template, values, is_chat=bool(self.chat))


def _pair_texts(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"Question {i}: {question}\nAnswer: {answer}" for i, (question, answer) in enumerate(pairs, start=1)]
