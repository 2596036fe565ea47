"""
A language model that writes its own finetuning data, adapts to it and answers from what it has learned.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .adapters.adapter import Adapter
from .adapters.layout import lora_layout
from .adapters.policy import carried_policy
from .domains import Domain, KnowledgeDomain
from .domains.base import check_conditions
from .domains.tools import AskModel, carried_out
from .generation.answers import answers_that_fit, value_of_each
from .generation.backends import text_generator
from .generation.base import Generation, TextGenerator
from .generation.completions import write_completions
from .generation.likelihood import Divergence
from .generation.thoughts import without_thoughts
from .generation.transformers_generation import TransformersGenerator
from .generation.vllm_engine import VLLMColocateConfig
from .generation.vllm_generation import VLLMGenerator
from .inner_loop.adapting import inner_seeds, inner_updates, train_adapters, training_record
from .inner_loop.full_finetuning import finetune
from .inner_loop.training import InnerStep
from .inner_loop.update import InnerLoopConfig, InnerUpdate
from .models.access import keep_trainable, without_policy
from .models.architecture import check_causal_lm
from .models.chat_template import with_fixed_template
from .models.loading import base_facts, load_causal_lm
from .self_edit import Prompt, SelfEdit


logger = logging.getLogger(__name__)

Passage = str | Mapping
STUDENTS = ("policy", "base")
_LONGEST_TOPIC = 200  # characters


def topic_of(adapter: Adapter | None) -> str:
    """
    The topic of what an adapter learned, which questions to it name: the title of its passage.

    Args:
        adapter (`Adapter`, *optional*):
            The adapter, which may come from a stranger's file.

    Returns:
        `str`: a line of at most 200 characters; empty where there is no adapter, or it does not say.
    """
    title = adapter.training.get("title") if adapter is not None else None
    return " ".join(title.split())[:_LONGEST_TOPIC] if isinstance(title, str) else ""


class SelfAdaptingLM:
    """
    SEAL's inner half on one causal LM: write self-edits, adapt to them, answer.

    The base model is never changed. Adapters live apart from it and are attached for the length of one call.

    Parameters:
        model (`PreTrainedModel` or `PeftModel`):
            The causal LM; a `PeftModel` carries a policy adapter, which writes the self-edits.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        domain ([`Domain`], *optional*):
            What is learned and how it is asked for. Defaults to a [`KnowledgeDomain`]. It is taken in the form that suits
            the tokenizer (see [`Domain.for_model`]) and not changed.
        peft_config (`LoraConfig`, *optional*):
            Shape of the inner adapters. Defaults to the paper's: rank 32, alpha 64, PEFT's default target modules, or all
            linear layers of the language model where PEFT has none for it.
        inner_config ([`InnerLoopConfig`], *optional*):
            How a self-edit is trained on. Defaults to the paper's.
        base_model_id (`str`, *optional*):
            Identity of the base model that adapters record. Defaults to the name that the model was loaded from.
        inner_gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether the model's layers compute their activations again in the backward pass of the inner update: the same
            adapters in about a third more time, with a fraction of the activations' memory.
        student (`str`, *optional*, defaults to `"policy"`):
            What learns from the self-edits and answers questions, those of a tool as well. `"policy"`: base and policy adapter, as
            in the paper, where the inner adapters are trained on top of the policy. `"base"`: the base alone, so that the
            policy is the teacher of a fixed student (the paper's section 2 names these roles). Its adapters need no policy.
        chat_template_kwargs (`Mapping[str, object]`, *optional*):
            What the chat template is given in all prompts, such as `{"enable_thinking": False}`.
        vllm_server_base_url (`str`, *optional*):
            A vLLM server of the same base model that writes all texts, such as `"http://127.0.0.1:8000"` (see
            [`VLLMServerGenerator`]).
        vllm_colocate ([`VLLMColocateConfig`], *optional*):
            An engine of vLLM of this process that writes all texts, in place of a server (see [`VLLMColocatedGenerator`]). Where
            both are absent the model here does.

    Attributes:
        generator ([`TextGenerator`]):
            Writes texts with the model: prompts and an adapter for each in, texts out.
        writer ([`Adapter`], *optional*):
            The policy that writes the self-edits in place of the one that the model carries, which may be set to compare several
            on one model.
        added ([`Adapter`], *optional*):
            An adapter of the base model that may be set to be added to every adapter that is trained, once that is done.
        context_length (`int`, *optional*):
            Most tokens of a prompt with what is written after it; `None` where the model's config does not say.

    Raises:
        VLLMServerGone: Nothing answers at `vllm_server_base_url`.
        ImportError: `vllm_colocate` without vLLM.
        ValueError: A model that is no causal LM, a vLLM that does not fit (see [`VLLMGenerator.check`]), target modules
            that match nothing, a rank below 1, an unknown student, a domain in chat form for a tokenizer without a chat template,
            arguments of a template that it cannot have, or a tokenizer with neither padding nor end-of-sequence token.

    Example:

    ```python
    lm = SelfAdaptingLM.from_pretrained("embedded")
    edits = lm.propose("The Orrick Skerry Lighthouse was completed in 1874 under Halda Tremmery.", num_generations=4)
    adapter = lm.adapt(edits[0])
    lm.answer("Who built the Orrick Skerry Lighthouse?", adapter=adapter)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processing_class: PreTrainedTokenizerBase,
        *,
        domain: Domain | None = None,
        peft_config: LoraConfig | None = None,
        inner_config: InnerLoopConfig | None = None,
        base_model_id: str | None = None,
        inner_gradient_checkpointing: bool = False,
        student: str = "policy",
        chat_template_kwargs: Mapping[str, object] | None = None,
        vllm_server_base_url: str | None = None,
        vllm_colocate: VLLMColocateConfig | None = None,
    ):
        if vllm_server_base_url is not None and vllm_colocate is not None:
            raise ValueError(f"{vllm_server_base_url=} and {vllm_colocate=} are two ways to write; give one of them.")
        if student not in STUDENTS:
            raise ValueError(f"student={student!r} must be {' or '.join(map(repr, STUDENTS))}.")
        keep_trainable(model)
        check_causal_lm(model)
        processing_class = with_fixed_template(processing_class, chat_template_kwargs)
        self.model = model
        self.student = student
        self.writer: Adapter | None = None
        self.added: Adapter | None = None
        self.processing_class = processing_class
        self.peft_config = peft_config or LoraConfig(r=32, lora_alpha=64)
        self.inner_config = inner_config or InnerLoopConfig()
        self.inner_gradient_checkpointing = inner_gradient_checkpointing
        self.base_model_id = base_model_id or model.config.name_or_path
        self.domain = self._in_own_form(domain or KnowledgeDomain())
        if processing_class.pad_token_id is None and processing_class.eos_token_id is None:
            raise ValueError(
                f"The tokenizer of {self.base_model_id} has neither a padding nor an end-of-sequence token; set "
                "`tokenizer.pad_token`."
            )
        lora_layout(model, self.peft_config)  # raises where the adapters do not fit
        carried_policy(model, self.base_model_id)  # raises where the policy adapter is not a plain LoRA
        generator = text_generator(
            model,
            processing_class,
            self.base_model_id,
            peft_config=self.peft_config,
            on_policy=student == "policy",
            vllm_server_base_url=vllm_server_base_url,
            vllm_colocate=vllm_colocate,
        )
        self.generator: TextGenerator = generator
        self.context_length = generator.context_length

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        *,
        load_in_4bit: bool | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str = "main",
        trust_remote_code: bool = False,
        policy: str | Path | None = None,
        **kwargs,
    ) -> "SelfAdaptingLM":
        """
        Load a causal LM (see [`load_causal_lm`] for the options and errors).

        Args:
            model_name_or_path (`str` or `Path`):
                A Hub id, a folder, or one of the small models that need no Hub: `"embedded"` (0.5B parameters) or
                `"embedded-tiny"` (135M).
            load_in_4bit (`bool`, *optional*):
                Whether to quantize the base to NF4 with double quantization (QLoRA); needs the extra `quantization`.
                Where absent: on CUDA if that extra is installed.
            dtype, device, revision, trust_remote_code:
                As in [`load_causal_lm`].
            policy (`str` or `Path`, *optional*):
                The adapter that writes the self-edits, as [`SEALTrainer`] trains it: a folder, such as `policy/round_001` of a
                run, or a repository on the Hub (see [`Adapter.from_pretrained`] for the errors).
            **kwargs:
                Passed to [`SelfAdaptingLM`].
        """
        model, tokenizer, base_model_id = load_causal_lm(
            model_name_or_path,
            load_in_4bit=load_in_4bit,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        base_model_id = kwargs.pop("base_model_id", base_model_id)
        if policy is not None:
            model = Adapter.from_pretrained(policy, model, base_model_id).as_policy(model)
        return cls(model, tokenizer, base_model_id=base_model_id, **kwargs)

    def with_domain(
        self,
        domain: Domain,
        *,
        peft_config: LoraConfig | None = None,
        inner_config: InnerLoopConfig | None = None,
    ) -> "SelfAdaptingLM":
        """
        The same model for another domain. Model and generator are shared; vLLM is asked at once whether it takes adapters of another
        shape.

        Args:
            domain ([`Domain`]):
                What is learned there. It is taken in the form that suits the tokenizer and not changed.
            peft_config (`LoraConfig`, *optional*):
                Another shape of the inner adapters.
            inner_config ([`InnerLoopConfig`], *optional*):
                Another way to train them.

        Raises:
            ValueError: A domain in chat form for a tokenizer without a chat template, target modules that match nothing, a
                rank below 1, or adapters that vLLM does not take, such as of a rank above its `max_lora_rank`.
        """
        other = copy(self)
        other.domain = self._in_own_form(domain)
        if peft_config is not None:
            lora_layout(self.model, peft_config)  # raises where the adapters do not fit
            if isinstance(self.generator, VLLMGenerator):
                self.generator.check_adapters(peft_config, on_policy=self.student == "policy")
            other.peft_config = peft_config
        if inner_config is not None:
            other.inner_config = inner_config
        return other

    def _in_own_form(self, domain: Domain) -> Domain:
        """A domain in the form that suits the tokenizer."""
        try:
            domain = domain.for_model(bool(self.processing_class.chat_template))
        except ValueError as error:
            raise ValueError(f"{self.base_model_id}: {error}") from error
        check_conditions(domain)
        return domain

    def propose(
        self,
        passage: Passage,
        num_generations: int = 5,
        *,
        temperature: float = 1.0,
        top_p: float = 0.95,
        max_completion_length: int = 512,
        seed: int = 0,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[SelfEdit]:
        """
        Let the model write self-edits, all of them in one batch, and carry out what they ask of the domain's tool.

        Args:
            passage (`str` or `Mapping`):
                An example of the domain, or a text where the domain takes one (see [`Domain.example_from_text`]).
            num_generations (`int`, *optional*, defaults to `5`):
                Number of self-edits to sample.
            temperature (`float`, *optional*, defaults to `1.0`):
                Sampling temperature.
            top_p (`float`, *optional*, defaults to `0.95`):
                Nucleus sampling's total probability.
            max_completion_length (`int`, *optional*, defaults to `512`):
                Longest self-edit, in tokens.
            seed (`int`, *optional*, defaults to `0`):
                Self-edit `i` is drawn from the stream of `(seed, 0, i)`.
            on_text (`Callable[[list[str]], bool | None]`, *optional*):
                Called with the new text of all candidates at every token; returning `True` stops the writing.
            stop (`threading.Event`, *optional*):
                Once set, the writing stops and what is written by then becomes self-edits, without those that call a tool.

        Returns:
            `list[SelfEdit]`: the well-formed self-edits, at most `num_generations`; a warning counts those that were
            not.

        Raises:
            ValueError: `num_generations` below 1, an empty passage, or one that does not fit the model's context.
        """
        example = self.domain.example_from_text(passage) if isinstance(passage, str) else passage
        (written,) = self.write_batch(
            [example],
            num_generations,
            temperature=temperature,
            top_p=top_p,
            max_completion_length=max_completion_length,
            seed=seed,
            on_text=on_text,
            stop=stop,
        )
        edits = [self.domain.parse(generation.text, example) for generation in written]
        done = self.carry_out(edits, [example] * len(edits), stop=stop)
        if stop is not None and stop.is_set():  # the tool may have been cut short
            done = [edit for edit in edits if edit is None or not edit.calls]
        well_formed = [edit for edit in done if edit is not None and edit.examples]
        if len(well_formed) < num_generations:
            num_malformed = num_generations - len(well_formed)
            logger.warning("%d of %d self-edits were malformed and are left out.", num_malformed, num_generations)
        return well_formed

    def write_batch(
        self,
        examples: Sequence[Mapping],
        num_generations: int,
        *,
        temperature: float,
        top_p: float,
        max_completion_length: int | Sequence[int],
        seed: int,
        numbers: Sequence[int] | None = None,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[list[Generation]]:
        """
        The completions that self-edits are parsed from, for many examples in common batches (see
        [`~seal_hf.generation.completions.write_completions`] for the arguments, what comes back and the errors).
        """
        with self._as_writer():
            return write_completions(
                self.generator,
                self.processing_class,
                self.domain,
                examples,
                num_generations,
                temperature=temperature,
                top_p=top_p,
                max_completion_length=max_completion_length,
                seed=seed,
                numbers=numbers,
                writer=self.writer,
                on_text=on_text,
                stop=stop,
            )

    def carry_out(
        self,
        self_edits: Sequence[SelfEdit | None],
        examples: Sequence[Mapping],
        *,
        stop: threading.Event | None = None,
        on_written: Callable[[int], None] | None = None,
    ) -> list[SelfEdit | None]:
        """
        Carry out what self-edits ask of the domain's tool (see [`Domain.carry_out`]), all of them at once.

        Args:
            self_edits, examples:
                As for [`~seal_hf.domains.tools.carried_out`], which tells what comes back.
            stop (`threading.Event`, *optional*):
                Once set, the model writes no more; what comes back then is not to be used.
            on_written (`Callable[[int], None]`, *optional*):
                Called with the number of tokens that the model wrote, whenever the tool has asked it.

        Raises:
            ValueError: The domain has not carried out all of them.
        """
        return carried_out(self.domain, self_edits, examples, self.asked_by_tool(stop=stop, on_written=on_written))

    def ask_base(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """
        What the base model, without any adapter, answers; greedy.

        Args:
            prompts (`Sequence[str | list[dict]]`):
                Plain texts, or chat messages.
            max_new_tokens (`int`):
                Longest answer, in tokens.

        Returns:
            `list[str]`: one for each prompt; empty where it does not fit the model's context.
        """
        with without_policy(self.model):
            return [answer.text for answer in self._answers_that_fit(prompts, max_new_tokens)]

    def asked_by_tool(
        self, *, stop: threading.Event | None = None, on_written: Callable[[int], None] | None = None
    ) -> AskModel:
        """
        The model as a tool of the domain may ask it.

        Args:
            stop, on_written:
                As in [`~SelfAdaptingLM.carry_out`].
        """

        def ask(
            prompts: Sequence[Prompt],
            max_new_tokens: int,
            *,
            as_writer: bool = False,
            one_line: bool | Sequence[bool] = False,
        ) -> list[Generation]:
            with self._as_writer() if as_writer else self.as_student():
                adapter = self.writer if as_writer else None
                answers = self._answers_that_fit(
                    prompts, max_new_tokens, adapter=adapter, one_line=one_line, stop=stop
                )
            if on_written is not None:
                on_written(sum(answer.num_tokens for answer in answers))
            return answers

        return ask

    def _answers_that_fit(self, prompts: Sequence[Prompt], max_new_tokens: int, **options: Any) -> list[Generation]:
        return answers_that_fit(
            self.generator,
            self.processing_class,
            prompts,
            max_new_tokens,
            context_length=self.context_length,
            **options,
        )

    def adapt(
        self,
        self_edits: SelfEdit | InnerUpdate | Sequence[SelfEdit | InnerUpdate],
        *,
        seed: int | Sequence[int] = 0,
        on_step: Callable[[InnerStep], None] | None = None,
        stop: threading.Event | None = None,
        parents: Sequence[Adapter] | None = None,
    ) -> Adapter | list[Adapter]:
        """
        Train one adapter per self-edit, all of them together.

        The adapters stay on the device, in the bank that they were trained in, so that they can be asked without a copy.
        One that is kept for long keeps the others' memory too, until its [`Adapter.leave_bank`] is called. Where the device
        runs out of memory, they are trained in halves, one after the other: the same adapters up to rounding, of which
        those of the last part alone stay on the device.

        Args:
            self_edits (`SelfEdit`, `InnerUpdate`, or a sequence of them):
                One self-edit or many. An [`InnerUpdate`] is a self-edit that is tokenized already, with its own
                hyperparameters.
            seed (`int` or `Sequence[int]`, *optional*, defaults to `0`):
                Seed of the initial weights and the order: of all adapters, or of each. A self-edit with a seed gives the same
                adapter, up to rounding, alone and among others.
            on_step (`Callable[[InnerStep], None]`, *optional*):
                Called after every optimizer step with losses, tokens and time, counted over all parts that are trained. Where
                the memory ran out the counts go back by the steps that are lost.
            stop (`threading.Event`, *optional*):
                Once set, training ends and the adapters keep the weights they have.
            parents (`Sequence[Adapter]`, *optional*):
                For each self-edit an adapter that it is trained on top of, all of one layout. Its ranks stay as they are, and what
                comes back includes them: one adapter with the ranks of both.

        Returns:
            `Adapter` or `list[Adapter]`: one for each self-edit. `adapter.training` tells how it was trained, and under
            `"stopped"` whether it ended early.

        Raises:
            ValueError: No self-edits, one without any text, one whose calls of a tool are not carried out, one longer than
                the context, an invalid override, a negative seed, or seeds or parents that are not one for each.
            torch.OutOfMemoryError: One adapter alone does not fit into the device's memory.
        """
        is_one = isinstance(self_edits, SelfEdit | InnerUpdate)
        edits = [self_edits] if is_one else list(self_edits)
        if not edits:
            raise ValueError("adapt() got no self-edits; give at least one, for example from propose().")
        seeds = inner_seeds(seed, len(edits))
        if parents is not None and len(parents) != len(edits):
            raise ValueError(f"{len(parents)} parents were given for {len(edits)} self-edits; give one for each.")
        updates = inner_updates(edits, self.model, self.processing_class, self.inner_config)
        with self.as_student():
            adapters = train_adapters(
                self.model,
                self.base_model_id,
                self.peft_config,
                updates,
                list(map(self._facts_of, edits)),
                seeds,
                on_step=on_step,
                stop=stop,
                gradient_checkpointing=self.inner_gradient_checkpointing,
                parents=parents,
            )
        if self.added is not None:
            adapters = [self.added.plus(adapter.on_base()) for adapter in adapters]
        return adapters[0] if is_one else adapters

    def finetune(
        self,
        self_edit: SelfEdit | InnerUpdate,
        *,
        seed: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> tuple["SelfAdaptingLM", dict[str, object]]:
        """
        Train all weights of a copy of the model in place of an adapter, by the same settings (see
        [`seal_hf.inner_loop.full_finetuning`]). The model itself is not changed.

        Args:
            self_edit (`SelfEdit` or `InnerUpdate`):
                What it is trained on.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the order.
            on_step (`Callable[[int], None]`, *optional*):
                Called after every optimizer step with the tokens that were trained on so far.

        Returns:
            `tuple[SelfAdaptingLM, dict[str, object]]`: the finetuned model, whose texts it writes itself, and how it was trained,
                as `training` of an [`Adapter`].

        Raises:
            DoesNotFit: The memory is short.
            ValueError: As [`~SelfAdaptingLM.adapt`]; also a model that carries a policy or is quantized.
        """
        (update,) = inner_updates([self_edit], self.model, self.processing_class, self.inner_config)
        model, result = finetune(
            self.model, update, seed=seed, on_step=on_step, gradient_checkpointing=self.inner_gradient_checkpointing
        )
        other = copy(self)
        other.model, other.generator = model, TransformersGenerator(model, self.processing_class, self.base_model_id)
        return other, training_record(update, self._facts_of(self_edit), seed, result)

    def _facts_of(self, self_edit: SelfEdit | InnerUpdate) -> dict[str, object]:
        """What is recorded of the base model and of what an adapter learned."""
        title = self_edit.title if isinstance(self_edit, SelfEdit) else ""
        return {**base_facts(self.model), **({"title": title} if title else {})}

    def as_student(self) -> AbstractContextManager[None]:
        """Inside the block the model is the one that learns and answers: without the policy where `student="base"`."""
        return without_policy(self.model) if self.student == "base" else nullcontext()

    def _as_writer(self) -> AbstractContextManager[None]:
        """The model as it writes self-edits."""
        return without_policy(self.model) if self.writer is not None else nullcontext()

    def answer(
        self,
        question: str | Sequence[str],
        *,
        adapter: Adapter | None = None,
        title: str | None = None,
        max_answer_length: int = 64,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> str | list[str]:
        """
        Answer closed-book: the passage is not in the context. Greedy.

        For domains that have questions in plain text (see [`Domain.ask`]); other prompts go to
        [`~SelfAdaptingLM.answer_prompts`].

        Args:
            question (`str` or `Sequence[str]`):
                One question or many.
            adapter (`Adapter`, *optional*):
                The adapter to answer with; the base (with its policy) where absent.
            title (`str`, *optional*):
                Topic named in the prompt; `""` for none. Defaults to the one that the adapter learned, which its files hold
                (see [`topic_of`]).
            max_answer_length (`int`, *optional*, defaults to `64`):
                Longest answer, in tokens.
            on_text (`Callable[[list[str]], bool | None]`, *optional*):
                Called with the new text of all answers at every token; returning `True` stops.
            stop (`threading.Event`, *optional*):
                Once set, what has been written so far is returned.

        Returns:
            `str` or `list[str]`: the answer, or one for each question.

        Raises:
            ValueError: An empty question.
        """
        questions = [question] if isinstance(question, str) else list(question)
        if not all(text.strip() for text in questions):
            raise ValueError("A question is empty; give it some text.")
        prompts = self.domain.ask(questions, topic_of(adapter) if title is None else title)
        adapters = [adapter] * len(prompts)
        answers = self.answer_prompts(
            prompts, adapters, max_answer_length=max_answer_length, on_text=on_text, stop=stop
        )
        return answers[0] if isinstance(question, str) else answers

    def answer_prompts(
        self,
        prompts: Sequence[str | list[dict]],
        adapters: Sequence[Adapter | None] | None = None,
        *,
        max_answer_length: int | Sequence[int] = 64,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[str]:
        """
        Greedy answers to prompts that a domain has made, with an adapter for each, in common batches.

        Args:
            prompts (`Sequence[str | list[dict]]`):
                Evaluation prompts.
            adapters (`Sequence[Adapter | None]`, *optional*):
                For each prompt its adapter; no inner adapter where `None` or absent.
            max_answer_length (`int` or `Sequence[int]`, *optional*, defaults to `64`):
                Longest answer, in tokens: of all prompts, or of each.
            on_text, stop:
                As in [`~SelfAdaptingLM.answer`].

        Returns:
            `list[str]`: one answer per prompt, without surrounding white space and without a thought before it; empty where
            a thought never closes.

        Raises:
            ValueError: Adapters of different shapes, for another base model, or not one per prompt.
        """
        with self.as_student():
            generations = self.generator.generate(
                prompts, adapters, max_new_tokens=max_answer_length, on_text=on_text, stop=stop
            )
        said = without_thoughts(generations, prompts, self.processing_class)
        return [generation.text.strip() for generation in said]

    def answer_groups(
        self,
        groups: Sequence[Sequence[Prompt]],
        adapters: Sequence[Adapter | Sequence[Adapter | None] | None] | None = None,
        *,
        max_answer_length: int | Sequence[int] = 64,
        on_text: Callable[[list[str]], bool | None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[list[str]]:
        """
        Greedy answers to groups of prompts, such as all questions of each example, in common batches.

        Args:
            groups (`Sequence[Sequence[str | list[dict]]]`):
                Evaluation prompts.
            adapters (`Sequence[Adapter | Sequence[Adapter | None] | None]`, *optional*):
                For each group its adapter, or one for each of its prompts; no inner adapter where `None` or absent.
            max_answer_length, on_text, stop:
                As in [`~SelfAdaptingLM.answer_prompts`], the longest answer of all groups, or of each.

        Returns:
            `list[list[str]]`: the answers of each group.
        """
        is_one = isinstance(max_answer_length, int)
        answers = iter(
            self.answer_prompts(
                [prompt for group in groups for prompt in group],
                value_of_each(groups, adapters or [None] * len(groups)),
                max_answer_length=max_answer_length if is_one else value_of_each(groups, max_answer_length),
                on_text=on_text,
                stop=stop,
            )
        )
        return [[next(answers) for _ in group] for group in groups]

    def divergences_from_base(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        adapters: Sequence[Adapter | None],
        base: torch.nn.Module | None = None,
    ) -> list[Divergence]:
        """
        How far adapters have moved from the base on a task, KL(base || adapted) at the tokens of answers: a gauge of what is
        forgotten (see [`~seal_hf.generation.likelihood.divergences_from_base`]). It is computed by the model of this process,
        whoever writes the texts.

        Args:
            prompts (`Sequence[str | list[dict]]`), answers (`Sequence[str]`), adapters (`Sequence[Adapter | None]`):
                Evaluation prompts, with an answer and an adapter for each.
            base (`PreTrainedModel`, *optional*):
                What they are compared with. Defaults to the model without an inner adapter.

        Raises:
            ValueError: An empty prompt, or adapters that cannot be used together.
        """
        with self.as_student():
            generator = TransformersGenerator(self.model, self.processing_class, self.base_model_id)
            return generator.divergences_from_base(prompts, answers, adapters, base)

    def load_adapter(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        max_bytes: int | None = None,
        on_size: Callable[[int], None] | None = None,
    ) -> Adapter:
        """
        Load a PEFT LoRA adapter for this base model from a folder, a zip file or the Hub (see
        [`Adapter.from_pretrained`], also for the options and errors).
        """
        return Adapter.from_pretrained(
            source,
            self.model,
            self.base_model_id,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            max_bytes=max_bytes,
            on_size=on_size,
        )
