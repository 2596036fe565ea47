"""
Batched text generation with transformers: an adapter per row, reproducible samples, text as it is written.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..adapters.adapter import Adapter
from ..adapters.bank import StackedAdapters, UnknownRows
from ..models.access import carries_policy, evaluating, unwrap
from ..models.architecture import runs_in_batches
from ..models.transfers import to_device
from ..self_edit import Prompt
from .alone import write_alone
from .base import Sampling
from .batch_sizes import tokens_per_batch
from .decoder import Decoder
from .halves import in_halves
from .likelihood import Divergence, answer_log_likelihoods, divergences_from_base
from .requests import ModelGenerator, require_one_each
from .sampling import Greedy, Sampler
from .writing import Writing


logger = logging.getLogger(__name__)

# Share of a batch's rows that may be done before the batch continues without them.
_DONE = 0.25


class TransformersGenerator(ModelGenerator):
    """
    Generation with transformers, in batches whose rows have adapters of their own.

    What a row draws depends on its seed alone, whatever else is in the batch. A model that cannot be run in batches (see
    [`runs_in_batches`]) is asked one prompt at a time.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM; a policy adapter it carries stays active.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        base_model_id (`str`):
            Identity of the base model, which adapters must name.
        batch_size (`int`, *optional*, defaults to `256`):
            Most prompts in one batch; of long texts it holds fewer. With `on_text` batches are cut in the order given.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, base_model_id: str, *, batch_size: int = 256
    ):
        super().__init__(model, tokenizer, base_model_id)
        self.batch_size = batch_size
        self._has_told = False  # that unlike adapters are asked apart

    def _write_texts(
        self,
        prompts: Sequence[list[int]],
        adapters: Sequence[Adapter | None],
        sampling: Sampling | None,
        writing: Writing,
    ) -> None:
        pad_id = self._pad_id(writing.eos_ids)
        stacked, numbers = self._stack(adapters)
        lengths = [len(ids) + limit for ids, limit in zip(prompts, writing.limits, strict=True)]
        batches = _batches(
            lengths, numbers, self.batch_size, tokens_per_batch(self.model), in_order=writing.on_text is not None
        )

        write = partial(self._write, prompts, numbers, stacked, sampling, pad_id, writing)
        # Closed at once, so that the model is as it was before an error goes on.
        with closing(in_halves(batches, write)) as steps:
            for places in steps:
                writing.report(places)
                if writing.is_stopped:
                    return

    def answer_log_likelihoods(
        self,
        prompts: Sequence[Prompt],
        gold_answers: Sequence[Sequence[str]],
        adapters: Sequence[Adapter | None] | None = None,
    ) -> list[float | None]:
        """How likely the gold answers are (see [`TextGenerator.answer_log_likelihoods`])."""
        require_one_each(prompts, {"lists of gold answers": gold_answers, "adapters": adapters})
        self._require_own(adapters)
        stacked, numbers = self._stack(adapters or [None] * len(prompts))
        return answer_log_likelihoods(self.model, self.tokenizer, prompts, gold_answers, stacked, numbers)

    def divergences_from_base(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        adapters: Sequence[Adapter | None],
        base: nn.Module | None = None,
    ) -> list[Divergence]:
        """
        How far adapters are from the base at the tokens of answers (see [`divergences_from_base`]).

        Args:
            prompts, answers:
                Prompts, and an answer to each.
            adapters (`Sequence[Adapter | None]`):
                As in [`TextGenerator.generate`].
            base (`PreTrainedModel`, *optional*):
                What they are compared with. Defaults to the model without an inner adapter.
        """
        require_one_each(prompts, {"answers": answers, "adapters": adapters})
        self._require_own(adapters)
        stacked, numbers = self._stack(adapters)
        return divergences_from_base(
            self.model, base or self.model, self.tokenizer, prompts, answers, stacked, numbers
        )

    def _stack(self, adapters: Sequence[Adapter | None]) -> tuple[StackedAdapters | None, list[int | None]]:
        """The adapters, each once, in the order in which they first occur, and for every prompt its number in them."""
        distinct = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        if not distinct:
            return None, [None] * len(adapters)
        # An adapter that was trained on a policy includes it where the model carries none.
        own = distinct if carries_policy(self.model) else [adapter.on_base() for adapter in distinct]
        numbers = {adapter: number for number, adapter in enumerate(distinct)}
        return StackedAdapters.of(self.model, own), [adapter and numbers[adapter] for adapter in adapters]

    def _write(
        self,
        prompts: Sequence[list[int]],
        adapters: Sequence[int | None],
        stacked: StackedAdapters | None,
        sampling: Sampling | None,
        pad_id: int,
        writing: Writing,
        batch: Sequence[int],
    ) -> Iterator[Sequence[int]]:
        """Write the texts at some places together, from where they were left; gives the places after every step."""
        places = [place for place in batch if not writing.is_done[place]]
        longest = max((len(prompts[place]) + writing.limits[place] for place in places), default=0)
        own = [adapters[place] for place in places]
        with evaluating(self.model):
            if runs_in_batches(self.model, longest) and (stacked is None or stacked.fits_batches(own)):
                try:
                    yield from self._write_together(prompts, places, own, stacked, sampling, pad_id, writing)
                    return
                except UnknownRows:
                    if not self._has_told:
                        self._has_told = True
                        logger.info(
                            "Prompts with unlike adapters are asked one at a time: a module of %s does not tell its rows apart.",
                            type(unwrap(self.model)).__name__,
                        )
            for place in places:
                with stacked.attach([adapters[place]]) if stacked is not None else nullcontext():
                    self._write_alone(prompts[place], place, sampling, pad_id, writing)

    def _write_together(
        self,
        prompts: Sequence[list[int]],
        places: list[int],
        own: Sequence[int | None],
        stacked: StackedAdapters | None,
        sampling: Sampling | None,
        pad_id: int,
        writing: Writing,
    ) -> Iterator[Sequence[int]]:
        if not places:
            return
        batch, written = places, [writing.tokens[place] for place in places]
        choose = _choice(sampling, places, writing)
        with Decoder(self.model, pad_id, own, stacked) as decoder:
            logits = decoder.read([prompts[place] + ids for place, ids in zip(places, written, strict=True)])
            while True:
                tokens, chosen = choose(logits)
                for place, token in zip(places, chosen, strict=True):
                    writing.add(place, token)
                yield batch
                going = [row for row, place in enumerate(places) if not writing.is_done[place]]
                if not going:
                    return
                if len(going) <= (1 - _DONE) * len(places):
                    decoder.keep(going)
                    choose.keep(going)
                    tokens = tokens[to_device(going, tokens.device)]
                    places = [places[row] for row in going]
                logits = decoder.step(tokens)

    def _write_alone(
        self, prompt: list[int], place: int, sampling: Sampling | None, pad_id: int, writing: Writing
    ) -> None:
        """The text at one place, from where it was left. It is reported here, token by token."""
        if writing.is_done[place] or writing.is_stopped:
            return

        def add(token: int) -> bool:
            writing.add(place, token)
            writing.report([place])
            return writing.is_done[place] or writing.is_stopped

        written = writing.tokens[place]
        choose, left = _choice(sampling, [place], writing), writing.limits[place] - len(written)
        write_alone(unwrap(self.model), prompt + written, left, pad_id, choose, add)

    def _pad_id(self, eos_ids: set[int]) -> int:
        """The token that rows are filled with."""
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(eos_ids, default=None)
        if pad_id is None:
            raise ValueError(
                f"The tokenizer of {self.tokenizer.name_or_path} has neither a padding nor an end-of-sequence token; set "
                "`tokenizer.pad_token`."
            )
        return pad_id


def _choice(sampling: Sampling | None, places: Sequence[int], writing: Writing) -> Greedy | Sampler:
    if sampling is None:
        return Greedy()
    return Sampler(
        sampling, [sampling.seeds[place] for place in places], [len(writing.tokens[place]) for place in places]
    )


def _batches(
    lengths: Sequence[int], adapters: Sequence[int | None], batch_size: int, num_tokens: int, in_order: bool
) -> Iterator[list[int]]:
    """
    The places of the prompts of each batch: cut in the order given, or with adapters and equal lengths together.

    Lengths are of the prompt and its longest completion.
    """

    def adapter(place: int) -> int:
        return -1 if adapters[place] is None else adapters[place]

    places = list(range(len(lengths)))
    if not in_order:
        places.sort(key=lambda place: (adapter(place), -lengths[place]))
    batch: list[int] = []
    longest = 0
    for place in places:
        longest = max(longest, lengths[place])
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest > num_tokens):
            yield sorted(batch, key=adapter)
            batch, longest = [], lengths[place]
        batch.append(place)
    if batch:
        yield sorted(batch, key=adapter)
