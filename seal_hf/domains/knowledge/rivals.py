"""
Other ways to turn a passage into training texts, to compare self-edits with. Each is written from its paper's description, with
prompts of this project. It differs from SEAL in what the model is asked for alone: what it writes is trained on in the same inner
loop, with the passage, and asked about in the same way.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from ...self_edit import Prompt, SelfEdit, TrainingExample
from ..tools import AskModel
from .completions import split_completion
from .domain import KnowledgeDomain
from .questions import is_text
from .templates import read_prompt_file


SPA_PROMPTS = ("key-concepts", "mind-map", "implications", "questions", "case-studies", "discussion", "teacher")
_NAME_OF_PROMPT = "spa_prompt"
_LABEL = re.compile(r"^(?:[-*•#]+\s*|\(?\d+[.)]\s*)+")


class WrittenTextsDomain(KnowledgeDomain):
    """
    Passages whose self-edits are texts that are trained on one by one, whatever their lines.

    Parameters:
        prompt_style (`str`):
            The prompt, as a template.
        options:
            Those of [`KnowledgeDomain`] that say how it is trained on, asked and graded.
    """

    def __init__(self, prompt_style: str, **options: Any):
        super().__init__(prompt_style, split_newlines=False, **options)

    @property
    def pools_drafts(self) -> bool:
        """Several drafts are more texts."""
        return True

    def parse(self, completion: str, example: Mapping[str, Any]) -> SelfEdit | None:
        """Take every text between lines of `---`; `None` where there is none."""
        texts = split_completion(completion, split_newlines=False)
        if not texts:
            return None
        return SelfEdit(
            self.prompt(example), completion, self._one_each(example, texts), title=example.get("title") or ""
        )

    def _one_each(self, example: Mapping[str, Any], texts: Sequence[str]) -> tuple[TrainingExample, ...]:
        """The passage, and each text as a training example of its own, in the domain's format."""
        passage = self._training_examples(example, ())
        return (*(self._training_examples({**example, "context": text}, ())[0] for text in texts), *passage)


class SPADomain(WrittenTextsDomain):
    """
    A fixed set of prompts for every passage, in the manner of SPA (Tang et al. 2026, https://arxiv.org/abs/2603.22213).

    Seven kinds of text are asked for: key concepts, a mind map, implications, questions with reasoned answers, case studies, a
    discussion, and a teacher's explanation. A self-edit is one text of each kind, or with several drafts as many of each. What
    differs from the paper: the model itself writes, not a larger one; the texts are some hundred tokens for a passage, not
    thousands; a LoRA adapter is trained in place of all weights; the prompts' words are ours.
    """

    def __init__(self, **options: Any):
        super().__init__(read_prompt_file(f"spa-{SPA_PROMPTS[0]}"), **options)
        self._templates = {name: read_prompt_file(f"spa-{name}") for name in SPA_PROMPTS}

    def parts(self, example: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return the passage once for each prompt."""
        return tuple({**example, _NAME_OF_PROMPT: name} for name in SPA_PROMPTS)

    def prompt(self, example: Mapping[str, Any]) -> Prompt:
        """Return the prompt that a part names, and the first for a passage as a whole."""
        super().prompt(example)  # raises where there is no passage
        return self._fill(self._templates[example.get(_NAME_OF_PROMPT, SPA_PROMPTS[0])], example)


class AskedTextsDomain(WrittenTextsDomain):
    """
    Passages about which the model first lists something, and then writes texts, each by a prompt that names some of the list.

    Parameters:
        list_prompt, text_prompt (`str`):
            Names of the two prompts.
        most_listed (`int`):
            How many lines of a list are taken.
        max_text_length (`int`):
            Longest text, in tokens.
        options:
            As for [`WrittenTextsDomain`].
    """

    def __init__(self, list_prompt: str, text_prompt: str, most_listed: int, max_text_length: int, **options: Any):
        super().__init__(read_prompt_file(list_prompt), **options)
        self._text_template = read_prompt_file(text_prompt)
        self.most_listed, self.max_text_length = most_listed, max_text_length

    def values(self, listed: Sequence[str], example: Mapping[str, Any]) -> list[dict[str, str]]:
        """What is filled into the prompt of each text."""
        raise NotImplementedError

    @property
    def pools_drafts(self) -> bool:
        """One list has as many lines as are taken."""
        return False

    def parse(self, completion: str, example: Mapping[str, Any]) -> SelfEdit | None:
        """Take the lines of a completion as calls of the tool, each once; `None` where there is none."""
        lines = (_LABEL.sub("", line.strip()).strip() for line in completion.splitlines())
        listed = tuple(dict.fromkeys(line for line in lines if is_text(line)))[: self.most_listed]
        if not listed:
            return None
        return SelfEdit(self.prompt(example), completion, (), title=example.get("title") or "", calls=listed)

    def carry_out(
        self, self_edits: Sequence[SelfEdit], examples: Sequence[Mapping[str, Any]], ask: AskModel
    ) -> list[SelfEdit]:
        """
        Let whoever writes the self-edits write the texts, all of them with one call, greedily. A self-edit of which no text comes
        has no examples.
        """
        values = [self.values(edit.calls, example) for edit, example in zip(self_edits, examples, strict=True)]
        prompts = [
            self._fill(self._text_template, example, **own)
            for example, several in zip(examples, values, strict=True)
            for own in several
        ]
        answers = iter(ask(prompts, self.max_text_length, as_writer=True) if prompts else ())
        done = []
        for edit, example, several in zip(self_edits, examples, values, strict=True):
            texts = [text for text in (next(answers).text.strip() for _ in several) if is_text(text)]
            trained = self._one_each(example, texts) if texts else ()
            done.append(replace(edit, examples=trained, calls=(), metrics={"texts": len(texts)}))
        return done


class ActiveReadingDomain(AskedTextsDomain):
    """
    Ways to study that the model finds for each passage, then applied, in the manner of Active Reading (Lin et al. 2025,
    https://arxiv.org/abs/2508.09494), the variant that knows nothing of the questions to come.

    What differs from the paper: the ways are at most eight, each is applied once for a list, and a LoRA adapter is trained on one
    passage, without a mixture of other texts.
    """

    def __init__(self, max_text_length: int = 256, **options: Any):
        super().__init__("active-reading-strategies", "active-reading-apply", 8, max_text_length, **options)

    def values(self, listed: Sequence[str], example: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return every way to study."""
        return [{"strategy": one} for one in listed]


class EntiGraphDomain(AskedTextsDomain):
    """
    Texts about the relations of a passage's entities, in the manner of EntiGraph (Yang et al. 2024,
    https://arxiv.org/abs/2409.07431): of all pairs of them, and of some triples.

    What differs from the paper: there are at most eight entities, the model that learns writes itself, and greedily; the list
    has no descriptions, which are not trained on either; and nothing is replayed of what the model was pretrained on.

    Parameters:
        num_triples (`int`, *optional*, defaults to `8`):
            Most triples, drawn by the passage; 0 for pairs alone.
        max_text_length (`int`, *optional*, defaults to `256`):
            Longest text, in tokens.
        options:
            As for [`WrittenTextsDomain`].
    """

    def __init__(self, num_triples: int = 8, max_text_length: int = 256, **options: Any):
        super().__init__("entigraph-entities", "entigraph-relations", 8, max_text_length, **options)
        self.num_triples = num_triples

    def values(self, listed: Sequence[str], example: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return all pairs, and some triples."""
        triples = list(combinations(listed, 3))
        drawn = random.Random(self.content(example)).sample(triples, min(self.num_triples, len(triples)))
        return [{"entities": "; ".join(group)} for group in (*combinations(listed, 2), *drawn)]
