"""Configuration of [`SEALTrainer`]."""

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from trl import SFTConfig

from ..generation.vllm_options import vllm_arguments
from ..grading.rewards import Rewards
from ..inner_loop.inner_options import inner_loop_config, inner_peft_config
from ..inner_loop.update import InnerLoopConfig, is_whole
from ..rollout.stage import RolloutConfig
from ..self_adapting_lm import STUDENTS


@dataclass
class SEALConfig(SFTConfig):
    r"""
    Configuration of [`SEALTrainer`].

    The fields of TRL's [`SFTConfig`] govern the outer SFT; those below govern the rest. The defaults are the paper's
    (SEAL, section 4.2 and appendix B: knowledge incorporation), made for models of 7B parameters.

    Where no accelerator is found, `use_cpu` is set.

    Parameters:
        > Parameters that control self-edit generation

        num_generations (`int`, *optional*, defaults to `5`):
            Self-edits sampled per example.
        num_drafts (`int`, *optional*, defaults to `1`):
            How many completions one self-edit is made of, where the domain pools them (see [`Domain.pools_drafts`]). What its
            tool keeps of them is then what is trained on, and what the policy learns from.
        num_eval_drafts (`int`, *optional*):
            The same in evaluations. Defaults to `num_drafts`.
        num_instructions_shown (`int`, *optional*, defaults to `4`):
            Where self-edits begin with an instruction of their own (see [`Domain.instruction`]): how many of those that paid in
            earlier rounds the policy is shown, at most; none with 0.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature.
        top_p (`float`, *optional*, defaults to `0.95`):
            Nucleus of the sampling.
        max_completion_length (`int`, *optional*, defaults to `2048`):
            Longest self-edit, in tokens; shorter where the model's context leaves less room after a prompt. The paper's
            scripts allow 8192, but the longest self-edits that the authors published end at about 2048, of 1000 about
            five; neither the inner loop nor the outer SFT reads further (`inner_max_length`, `max_length`), and batches
            are cut by this length, so that four times as much makes writing several times slower.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether vLLM writes self-edits and answers (see [`VLLMGenerator`]). Its draws are others than those of the model in
            this process, so that a run is resumed with the same choice.
        vllm_mode (`str`, *optional*, defaults to `"server"`):
            Where vLLM runs: `"server"`, or `"colocate"` for an engine of each process, on its device.
        vllm_server_base_url (`str`, *optional*, defaults to `"http://127.0.0.1:8000"`):
            The server, which has the base model.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            With `"colocate"`: share of the device's memory that vLLM takes; above 0, at most 1.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            With `"colocate"`: whether vLLM's memory is given back between its calls. CUDA only.

        > Parameters that control the inner update

        inner_learning_rate (`float`, *optional*, defaults to `1e-3`):
            AdamW's initial learning rate.
        inner_num_train_epochs (`int`, *optional*, defaults to `10`):
            Passes over a self-edit's sequences.
        inner_batch_size (`int`, *optional*, defaults to `1`):
            Sequences per optimizer step of one adapter.
        inner_lora_r (`int`, *optional*, defaults to `32`):
            Rank of the inner adapters.
        inner_lora_alpha (`int`, *optional*, defaults to `64`):
            Alpha of the inner adapters.
        inner_target_modules (`list[str]`, *optional*):
            Adapted modules, or `all-linear`. Defaults to PEFT's choice for the architecture, mostly the query and value
            projections.
        inner_max_length (`int`, *optional*, defaults to `2048`):
            Longest training sequence, in tokens.
        inner_add_eos_token (`bool`, *optional*, defaults to `True`):
            Whether every training text ends in the end-of-sequence token, so that the adapted model learns to stop.
        inner_lr_scheduler_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"`, `"cosine"` or `"constant"`.
        inner_warmup_steps (`float`, *optional*, defaults to `0`):
            Number of steps in which the learning rate rises; below 1 the share of all steps.
        inner_max_grad_norm (`float`, *optional*, defaults to `1.0`):
            Greatest gradient norm of one adapter.
        inner_gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether the layers compute their activations again in the backward pass: about a third more time, and of the
            activations' memory what the layers' inputs and a single layer take, for larger banks or longer self-edits.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            What the chat template is given in all prompts, such as `{"enable_thinking": false}`.
        student (`str`, *optional*, defaults to `"policy"`):
            What learns from the self-edits and answers: `"policy"`, the policy itself as in the paper, or `"base"`, the base
            model that the policy writes for (see [`SelfAdaptingLM`]).
        adapters_per_bank (`int`, *optional*):
            Most adapters trained together in one bank. Where absent it is chosen in every round, from the free memory
            and from the work (see [`adapters_per_bank`]).

        > Parameters that control the reward

        reward_funcs (`list[str]`, *optional*, defaults to `["accuracy"]`):
            What self-edits are rewarded by: `"accuracy"`, the share of the example's questions that are answered right;
            `"rubric"`, a judge's scores; `"own_questions"`, questions that the model wrote and answered itself with the text in
            view; `"self_consistency"`, the example's questions with the model's own answers with the text in view in place of
            labels. Without `"accuracy"` the training set needs no answers, and with `"rubric"` alone no adapter is trained for
            the reward.
        reward_weights (`list[float]`, *optional*):
            Their weights, at least 0, which are divided by their sum. A reward with the weight 0 is recorded alone. Equal where
            absent.
        num_repeats (`int`, *optional*, defaults to `3`):
            Independent inner updates per self-edit whose rewards are averaged.
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens. Answers are greedy.
        num_eval_generations (`int`, *optional*, defaults to `1`):
            Self-edits per example of the evaluation set.

        > Parameters that control selection

        keep_best (`int`, *optional*, defaults to `1`):
            Self-edits kept per example, those with the highest reward; the first of equals. All are kept where it is
            `None`.
        min_reward (`float`, *optional*):
            Least reward of a self-edit that is kept, a share from 0 to 1. Where it is `None`, nothing is kept of a round in
            which all rewards are 0; with `0` it is.
        drop_zero_std (`bool`, *optional*, defaults to `False`):
            Whether an example whose self-edits all have the same reward is left out: its best one is no better than
            the others.

        > Parameters that control the rounds

        num_rounds (`int`, *optional*, defaults to `2`):
            Rounds of self-edits, rewards and outer SFT.
        examples_per_round (`int`, *optional*):
            Training examples of each round, none of which an earlier round has had (the paper: 50). Defaults to an equal
            share of the training set for every round. Of examples with the same content (see [`Domain.content`]) the first
            alone is drawn. With `0` every round has all examples.
        sft_on (`str`, *optional*, defaults to `"round"`):
            Whether a round's SFT sees the self-edits kept in this round (`"round"`) or in all rounds so far (`"all"`).
        sft_batch_size (`int`, *optional*, defaults to `10`):
            Self-edits per optimizer step of the outer SFT, over all processes. Gradient accumulation follows from it
            and from `per_device_train_batch_size`, which is a limit, so that the fit is the same for any number of
            processes.
        separate_sft (`bool`, *optional*, defaults to `False`):
            Whether [`~SEALTrainer.train`] ends at each round's SFT and leaves it to processes of its own, which may shard the
            model (see [`fit_waiting`]). The model has to be given by its name.
        shard_base (`bool`, *optional*, defaults to `False`):
            Whether every process keeps a share of the frozen base alone, and gathers its layers from the others whenever it uses
            them, for a base that does not fit one device (see [`shard_base`]). The processes still have policy, banks and
            activations of their own. Needs `separate_sft` and two processes at least.

        > Parameters whose default value is overridden

        learning_rate (`float`, *optional*, defaults to `3e-4`):
            Learning rate of the outer SFT.
        num_train_epochs (`float`, *optional*, defaults to `2`):
            Epochs of the outer SFT in each round.
        max_length (`int`, *optional*, defaults to `2048`):
            Longest prompt with self-edit in the outer SFT, in tokens.
        logging_steps (`float`, *optional*, defaults to `1`):
            Steps of the outer SFT between two logs.
        ddp_timeout (`int`, *optional*, defaults to `21600`):
            How long one process waits for another's banks, in seconds.
        restore_callback_states_from_checkpoint (`bool`, *optional*, defaults to `True`):
            Whether callbacks that are an `ExportableState`, such as `EarlyStoppingCallback`, get back what they had kept when a run
            is resumed, so that it goes on as if it had not been interrupted. They keep the arguments that they are made with.

    Raises:
        ValueError: A value out of its range.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "chat_template_kwargs"]

    num_generations: int = field(default=5, metadata={"help": "Self-edits sampled per example."})
    num_drafts: int = field(default=1, metadata={"help": "Completions that one self-edit is made of."})
    num_eval_drafts: int | None = field(
        default=None, metadata={"help": "Completions that one self-edit is made of in evaluations, if not as many."}
    )
    num_instructions_shown: int = field(
        default=4,
        metadata={"help": "Instructions that paid in earlier rounds, which the policy is shown; 0 for none."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of the self-edits."})
    top_p: float = field(default=0.95, metadata={"help": "Nucleus of the sampling."})
    max_completion_length: int = field(
        default=2048, metadata={"help": "Longest self-edit, in tokens, where the model's context leaves so much."}
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

    inner_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the inner update."})
    inner_num_train_epochs: int = field(default=10, metadata={"help": "Epochs of the inner update."})
    inner_batch_size: int = field(default=1, metadata={"help": "Sequences per step of one adapter."})
    inner_lora_r: int = field(default=32, metadata={"help": "Rank of the inner adapters."})
    inner_lora_alpha: int = field(default=64, metadata={"help": "Alpha of the inner adapters."})
    inner_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Adapted modules, or 'all-linear'; PEFT's choice where absent, and all linear layers where it has none."
        },
    )
    inner_max_length: int = field(default=2048, metadata={"help": "Longest training sequence, in tokens."})
    inner_add_eos_token: bool = field(
        default=True, metadata={"help": "End every training text in the end-of-sequence token."}
    )
    inner_lr_scheduler_type: str = field(default="linear", metadata={"help": "linear, cosine or constant."})
    inner_warmup_steps: float = field(
        default=0, metadata={"help": "Steps with a rising rate; below 1 their share of all steps."}
    )
    inner_max_grad_norm: float = field(default=1.0, metadata={"help": "Greatest gradient norm of one adapter."})
    inner_gradient_checkpointing: bool = field(
        default=False,
        metadata={
            "help": "Compute activations again in the inner update's backward pass: about a third more time, a fraction of "
            "the activations' memory."
        },
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "What the chat template is given in all prompts, in JSON."}
    )
    student: str = field(
        default="policy",
        metadata={
            "help": "What learns from the self-edits and answers: 'policy', or 'base', the model that the policy writes for."
        },
    )
    adapters_per_bank: int | None = field(
        default=None,
        metadata={"help": "Most adapters trained together; chosen from free memory and work where absent."},
    )

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy"],
        metadata={
            "help": "What self-edits are rewarded by: 'accuracy' (by labels), 'rubric', 'own_questions', 'self_consistency'."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the rewards, divided by their sum; equal where absent."}
    )
    num_repeats: int = field(default=3, metadata={"help": "Inner updates per self-edit, averaged."})
    max_answer_length: int = field(default=64, metadata={"help": "Longest answer, in tokens."})
    num_eval_generations: int = field(default=1, metadata={"help": "Self-edits per evaluation example."})

    keep_best: int | None = field(default=1, metadata={"help": "Self-edits kept per example; all if None."})
    min_reward: float | None = field(default=None, metadata={"help": "Least reward of a self-edit that is kept."})
    drop_zero_std: bool = field(default=False, metadata={"help": "Leave out examples whose rewards are all equal."})

    num_rounds: int = field(default=2, metadata={"help": "Rounds of self-edits, rewards and outer SFT."})
    examples_per_round: int | None = field(
        default=None,
        metadata={
            "help": "New training examples of each round; an equal share for every round where absent, all of them in "
            "every round if 0."
        },
    )
    sft_on: str = field(
        default="round", metadata={"help": "What the SFT sees: this round's self-edits ('round') or 'all'."}
    )
    sft_batch_size: int = field(
        default=10, metadata={"help": "Self-edits per step of the outer SFT, over all processes."}
    )
    separate_sft: bool = field(
        default=False,
        metadata={
            "help": "End at each round's SFT and leave it to trainers.sft, whose processes may shard the model."
        },
    )
    shard_base: bool = field(
        default=False,
        metadata={
            "help": "Keep a share of the frozen base in each process, and gather its layers whenever they are used; needs "
            "separate_sft."
        },
    )

    learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of the outer SFT."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Epochs of the outer SFT in each round."})
    max_length: int | None = field(
        default=2048, metadata={"help": "Longest prompt with self-edit in the outer SFT, in tokens."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Steps of the outer SFT between two logs."})
    ddp_timeout: int = field(default=21600, metadata={"help": "Seconds that one process waits for another."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={"help": "Give callbacks back what they had kept, such as a count, when a run is resumed."},
    )

    def __post_init__(self):
        # transformers refuses bf16, TRL's default, on a machine without an accelerator unless it is told so.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        # transformers would make a public Space of the metrics of a run that is pushed.
        if self.trackio_static_space_id is None:
            self.trackio_static_space_id = False
        for name in (
            "num_generations",
            "num_repeats",
            "num_eval_generations",
            "num_rounds",
            "sft_batch_size",
            "per_device_train_batch_size",
            "inner_lora_r",
        ):
            if not is_whole(getattr(self, name), 1):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1.")
        for name in ("keep_best", "num_eval_drafts", "max_length"):
            if getattr(self, name) is not None and not is_whole(getattr(self, name), 1):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1, or None.")
        if not is_whole(self.num_instructions_shown, 0):
            raise ValueError(
                f"num_instructions_shown={self.num_instructions_shown!r} must be a whole number of at least 0."
            )
        if self.examples_per_round is not None and not is_whole(self.examples_per_round, 0):
            raise ValueError(
                f"examples_per_round={self.examples_per_round!r} must be a whole number of at least 0, or None."
            )
        if self.min_reward is not None and not (math.isfinite(self.min_reward) and 0 <= self.min_reward <= 1):
            raise ValueError(f"min_reward={self.min_reward} must be a share from 0 to 1, or None.")
        for name, possible in (("sft_on", ("round", "all")), ("student", STUDENTS)):
            if getattr(self, name) not in possible:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {' or '.join(map(repr, possible))}.")
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} is not used by SEALTrainer; set "
                "sft_batch_size, from which it follows for any number of processes."
            )
        epochs = self.num_train_epochs
        if not math.isfinite(epochs) or epochs < 1 or epochs != int(epochs):
            raise ValueError(f"num_train_epochs={self.num_train_epochs} must be a whole number of at least 1.")
        if self.max_steps > 0:
            raise ValueError(
                f"max_steps={self.max_steps} is not used by SEALTrainer, whose fits are as long as what is kept; set "
                "num_rounds and num_train_epochs."
            )
        for name in ("load_best_model_at_end", "eos_token", "chat_template_path", "assistant_only_loss"):
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported by SEALTrainer; leave it out.")
        if self.packing or self.padding_free:
            raise ValueError("packing and padding_free are not supported by SEALTrainer; leave them off.")
        if self.shard_base and not self.separate_sft:
            raise ValueError(
                "shard_base=True needs separate_sft=True: the trainer's processes train inner adapters on a sharded base, and "
                "the outer SFT is left to trainers.sft, launched with FSDP2 or ZeRO-3."
            )
        if self.shard_base and self.use_vllm and self.vllm_mode == "colocate":
            raise ValueError(
                "shard_base=True and vllm_mode='colocate' contradict each other, since an engine in each process holds the whole "
                "base; use vllm_mode='server', or leave vLLM out."
            )
        vllm_arguments(self)  # raise for values out of range
        self.rollout_config()
        self.eval_rollout_config()
        self.inner_config()
        self.rewards()

    def rollout_config(self) -> RolloutConfig:
        """How self-edits are written, banks composed and answers given."""
        names = [option.name for option in dataclasses.fields(RolloutConfig)]
        return RolloutConfig(**{name: getattr(self, name) for name in names})

    def eval_rollout_config(self) -> RolloutConfig:
        """The same in evaluations."""
        if self.num_eval_drafts is None:
            return self.rollout_config()
        return dataclasses.replace(self.rollout_config(), num_drafts=self.num_eval_drafts)

    def rewards(self) -> Rewards:
        """What self-edits are rewarded by."""
        weights = None if self.reward_weights is None else tuple(self.reward_weights)
        return Rewards(tuple(self.reward_funcs), weights)

    def inner_config(self) -> InnerLoopConfig:
        """How a self-edit is trained on."""
        return inner_loop_config(self)

    def inner_peft_config(self) -> LoraConfig:
        """Shape of the inner adapters."""
        return inner_peft_config(self)
