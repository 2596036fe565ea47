"""Arguments that the scripts share, and the model that they describe."""

import os
from dataclasses import dataclass, field
from typing import Any

from seal_hf import SelfAdaptingLM
from seal_hf.domains import KnowledgeDomain, load_demo_passages, load_passages, shuffle_passages
from seal_hf.generation.vllm_options import vllm_arguments
from seal_hf.grading import JudgeGrader
from seal_hf.inner_loop.inner_options import inner_loop_config, inner_peft_config
from seal_hf.models.chat_template import json_object


@dataclass
class DomainArguments:
    """How self-edits are asked for, read and trained on, and how questions are asked."""

    prompt_style: str = field(
        default="questions-by-fact",
        metadata={"help": "How self-edits are asked for: the name of a style, or a prompt with {context}."},
    )
    split_newlines: bool = field(default=True, metadata={"help": "Make every line a training example of its own."})
    chat: bool | None = field(
        default=None,
        metadata={"help": "Ask in chat form or in plain text; in chat form where absent and the tokenizer can."},
    )
    answer_prompt: str = field(
        default="default", metadata={"help": "How questions are asked: 'default', or 'paper' for the paper's prompt."}
    )
    training_format: str = field(
        default="prompt_completion",
        metadata={
            "help": "How adapters are trained on self-edits: 'language_modeling', the paper's raw texts, or "
            "'prompt_completion', questions with the loss on the answers."
        },
    )
    num_passages_per_epoch: int = field(
        default=1, metadata={"help": "How often the passage itself comes in each epoch, with 'prompt_completion'."}
    )
    answers_questions: bool | None = field(
        default=None,
        metadata={
            "help": "Let the model answer the questions that it writes, with the passage in view; where absent, for the "
            "styles 'questions...'."
        },
    )
    asks_for_left_out: bool | None = field(
        default=None,
        metadata={
            "help": "Also ask for facts that the self-edit leaves out; where absent, in the style 'questions-by-fact'."
        },
    )
    num_left_out_words: int = field(
        default=6, metadata={"help": "Most words of a sentence that it then asks about, beside names and numbers."}
    )
    sets_training: bool = field(
        default=False,
        metadata={"help": "Let self-edits set their epochs, learning rate and batch size, within bounds."},
    )

    def domain(self, grader: JudgeGrader | None = None) -> KnowledgeDomain:
        """The domain, with the local grader unless another is given."""
        return KnowledgeDomain(
            self.prompt_style,
            split_newlines=self.split_newlines,
            grader=grader,
            chat=self.chat,
            answer_prompt=self.answer_prompt,
            training_format=self.training_format,
            num_passages=self.num_passages_per_epoch,
            answers_questions=self.answers_questions,
            asks_for_left_out=self.asks_for_left_out,
            num_left_out_words=self.num_left_out_words,
            sets_training=self.sets_training,
        )


@dataclass
class AdaptationArguments(DomainArguments):
    """Model, self-edits and inner loop, under the names of [`SEALConfig`]."""

    model_name_or_path: str = field(
        default="embedded",
        metadata={
            "help": "Hub id or folder of a causal LM, 'embedded' for a small one (0.5B parameters), or 'embedded-tiny' "
            "(135M) where memory is short."
        },
    )
    load_in_4bit: bool | None = field(
        default=None, metadata={"help": "Quantize the base to NF4 (QLoRA). Default: only on CUDA."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Data type of the base model; by default bfloat16, or float32 on a CPU without instructions for it."
        },
    )
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={"help": "What the chat template is given in all prompts, in JSON: '{\"enable_thinking\": false}'."},
    )
    use_vllm: bool = field(default=False, metadata={"help": "Let vLLM write self-edits and answers."})
    vllm_mode: str = field(
        default="server",
        metadata={"help": "Where vLLM runs: 'server', or 'colocate' for an engine of each process, on its device."},
    )
    vllm_server_base_url: str = field(
        default="http://127.0.0.1:8000", metadata={"help": "The vLLM server, which has the base model."}
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "With 'colocate': share of the device's memory that vLLM takes."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "With 'colocate': give vLLM's memory back between its calls. CUDA only."}
    )
    num_generations: int = field(default=2, metadata={"help": "Self-edits per passage."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of the self-edits."})
    top_p: float = field(
        default=0.95, metadata={"help": "Sample from the most likely tokens of this total probability."}
    )
    max_completion_length: int = field(default=300, metadata={"help": "Longest self-edit, in tokens."})
    inner_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the inner loop."})
    inner_num_train_epochs: int = field(default=8, metadata={"help": "Epochs of the inner loop."})
    inner_batch_size: int = field(
        default=16, metadata={"help": "Sequences of a self-edit per step of the inner loop."}
    )
    inner_lora_r: int = field(default=32, metadata={"help": "Rank of the adapters."})
    inner_lora_alpha: int = field(default=64, metadata={"help": "Alpha of the adapters."})
    inner_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "The adapted modules by name, or 'all-linear'."},
    )
    inner_max_length: int = field(default=2048, metadata={"help": "Longest training sequence, in tokens."})
    inner_add_eos_token: bool = field(
        default=True, metadata={"help": "End every training text of the inner loop in the end-of-sequence token."}
    )
    inner_lr_scheduler_type: str = field(default="linear", metadata={"help": "linear, cosine or constant."})
    inner_warmup_steps: float = field(
        default=0, metadata={"help": "Steps with a rising rate; below 1 their share of all steps."}
    )
    inner_max_grad_norm: float = field(default=1.0, metadata={"help": "Greatest gradient norm of one adapter."})
    inner_gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Compute activations again in the backward pass: slower, with a fraction of their memory."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling, initialization and order."})

    def load(self, grader: JudgeGrader | None = None, **options: Any) -> SelfAdaptingLM:
        """Load the model with its domain, and with the local grader unless another is given; options as for the model's class."""
        return SelfAdaptingLM.from_pretrained(
            self.model_name_or_path,
            load_in_4bit=self.load_in_4bit,
            dtype=self.dtype,
            domain=self.domain(grader),
            peft_config=inner_peft_config(self),
            inner_config=inner_loop_config(self),
            inner_gradient_checkpointing=self.inner_gradient_checkpointing,
            chat_template_kwargs=json_object(self.chat_template_kwargs),
            **vllm_arguments(self),
            **options,
        )


@dataclass
class JudgeArguments:
    """Who grades. The judge's key is read from JUDGE_API_KEY."""

    judge_model: str | None = field(
        default=None, metadata={"help": "Grade with this language model. Default: the local grader."}
    )
    judge_provider: str | None = field(
        default=None,
        metadata={"help": "Inference provider of the Hub that serves the judge. Default: the Hub chooses."},
    )
    judge_base_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible endpoint of the judge, in place of a provider."}
    )
    judge_prompt: str = field(
        default="default", metadata={"help": "What the judge is asked: 'default', or 'paper' for the paper's prompt."}
    )

    def judge_grader(self) -> JudgeGrader | None:
        """
        The judge, or `None` for the domain's own grader.

        Raises:
            ValueError: A prompt for a judge, but no judge.
        """
        if self.judge_model is None:
            if self.judge_prompt != "default":
                raise ValueError(f"--judge_prompt {self.judge_prompt} is for a judge; name one with --judge_model.")
            return None
        return JudgeGrader(
            self.judge_model,
            prompt=self.judge_prompt,
            **self.judge_endpoint(),
        )

    def judge_endpoint(self) -> dict[str, str | None]:
        """Where a judge is served, and its key."""
        return {
            "provider": self.judge_provider,
            "base_url": self.judge_base_url,
            "api_key": os.environ.get("JUDGE_API_KEY"),
        }


def load_dataset_argument(
    name: str, split: str | None, num_passages: int | None, shuffle_seed: int, is_labelled: bool = True
) -> list[dict]:
    """
    The passages of `"demo"`, a file or a dataset on the Hub, or the first of them: shuffled, unless the seed is -1. Without
    `is_labelled` they need no questions.

    Raises:
        ValueError: `num_passages` below 1, or passages that are not in the right form.
        OSError: The file does not exist, or the Hub cannot be reached.
    """
    if num_passages is not None and num_passages < 1:
        raise ValueError(f"The number of passages, {num_passages}, must be at least 1.")
    passages = load_demo_passages(split or "train") if name == "demo" else load_passages(name, split, is_labelled)
    if shuffle_seed >= 0:
        passages = shuffle_passages(passages, shuffle_seed)
    return passages[:num_passages]
