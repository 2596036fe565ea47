"""
Which modules a LoRA adapter adapts, and where their matrices lie in one weight vector.

A bank of adapters is trained and evaluated from one weight vector per adapter ([`seal_hf.adapters.bank`]). A
[`LoraLayout`] finds the `A` and `B` of each module in such a vector and translates it from and to PEFT's state dict.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from ..models.access import unwrap
from ..models.architecture import linear_modules, linear_sizes
from .peft_targets import ending_of, is_lora_matrix, lost_by_peft, peft_key
from .plain_lora import require_one_rank, require_plain_lora
from .sources import CONFIG_NAME


@dataclass(frozen=True)
class LoraModule:
    """A linear module that an adapter adapts: its name in the base model and its two sizes."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Segment:
    """
    Matrices of one shape, which lie next to each other in an adapter's weight vector.

    Parameters:
        letter (`str`):
            `"A"` or `"B"`.
        shape (`tuple[int, int]`):
            Shape of each matrix.
        names (`tuple[str, ...]`):
            Their modules, in order.
        offset (`int`):
            Where the first one begins in the vector.
    """

    letter: str
    shape: tuple[int, int]
    names: tuple[str, ...]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + len(self.names) * self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class LoraLayout:
    """
    Where the LoRA matrices of each module lie in an adapter's weight vector.

    Parameters:
        modules (`tuple[LoraModule, ...]`):
            The adapted modules, in the model's order.
        r (`int`):
            Rank of every module.
        lora_alpha (`float`):
            LoRA's numerator; the update is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
        target_modules (`tuple[str, ...]`):
            The names by which PEFT finds exactly these modules: last components (`"q_proj"`) or whole names.
        use_rslora (`bool`, *optional*, defaults to `False`):
            Rank-stabilised scaling.
    """

    modules: tuple[LoraModule, ...]
    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    use_rslora: bool = False

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def num_parameters(self) -> int:
        return sum(self.r * (module.in_features + module.out_features) for module in self.modules)

    @property
    def num_bytes(self) -> int:
        """Size of a weight vector in fp32, in memory and on the disk."""
        return 4 * self.num_parameters

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of a weight vector: so few that a copy of all matrices takes few operations."""
        names: dict[tuple[str, tuple[int, int]], list[str]] = {}
        for module in self.modules:
            names.setdefault(("A", (self.r, module.in_features)), []).append(module.name)
            names.setdefault(("B", (module.out_features, self.r)), []).append(module.name)
        segments: list[Segment] = []
        for (letter, shape), own in names.items():
            segments.append(Segment(letter, shape, tuple(own), segments[-1].end if segments else 0))
        return tuple(segments)

    def split(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """For each of the [`segments`] its part of weight vectors `(..., num_parameters)`: views `(..., n, *shape)`."""
        return [
            weights[..., segment.offset : segment.end].unflatten(-1, (len(segment.names), *segment.shape))
            for segment in self.segments
        ]

    def by_module(self, matrices: Sequence[Sequence[torch.Tensor]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """`A` and `B` of each module, in the model's order, from the matrices of each of the [`segments`]."""
        found = {
            (name, segment.letter): matrix
            for segment, own in zip(self.segments, matrices, strict=True)
            for name, matrix in zip(segment.names, own, strict=True)
        }
        return {module.name: (found[module.name, "A"], found[module.name, "B"]) for module in self.modules}

    def views(self, weights: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """
        The `A` and `B` matrices inside a tensor of weight vectors, sharing its memory.

        Args:
            weights (`torch.Tensor` of shape `(..., num_parameters)`):
                One weight vector, or a stack of them.

        Returns:
            `dict[str, tuple[torch.Tensor, torch.Tensor]]`: for each module name `A` of shape `(..., r, in_features)` and
            `B` of shape `(..., out_features, r)`.
        """
        return self.by_module([part.unbind(-3) for part in self.split(weights)])

    def initial_weights(self, seed: int) -> torch.Tensor:
        """PEFT's initialization (`A` Kaiming-uniform, `B` zero) from one seed: shape `(num_parameters,)`, fp32, CPU."""
        generator = torch.Generator().manual_seed(seed)
        weights = torch.zeros(self.num_parameters)
        for lora_a, _ in self.views(weights).values():
            nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=generator)
        return weights

    def state_dict(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """PEFT's state dict of one weight vector of shape `(num_parameters,)`."""
        return {key: matrix.contiguous() for key, matrix in self.by_peft_key(weights).items()}

    def by_peft_key(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The matrices inside a weight vector of shape `(num_parameters,)`, sharing its memory, by PEFT's names."""
        return {
            peft_key(name, letter): matrix
            for name, matrices in self.views(weights).items()
            for letter, matrix in zip("AB", matrices, strict=True)
        }

    def check_shapes(self, shapes: Mapping[str, Sequence[int]], source: str) -> None:
        """
        Whether tensors of these shapes, by PEFT's names, are this adapter's.

        Raises:
            ValueError: A tensor is missing, is left over or has another shape.
        """
        expected = self.by_peft_key(torch.empty(self.num_parameters, device="meta"))
        unknown = sorted(set(shapes) - set(expected))
        if others := [key for key in unknown if not is_lora_matrix(key)]:
            raise ValueError(
                f"{source} holds {len(others)} tensors that are no LoRA matrices by PEFT's names, such as {others[0]:.300}; "
                "train and save the adapter without them (an embedding by save_embedding_layers=False)."
            )
        if unknown:
            raise ValueError(
                f"{source} holds {len(unknown)} LoRA matrices of modules that its {CONFIG_NAME} does not name or this base "
                f"model lacks, such as {unknown[0]:.300}; correct its target_modules, or load the base model that it was "
                "trained on."
            )
        for key, matrix in expected.items():
            if key not in shapes:
                raise ValueError(f"{source} lacks the tensor {key} that its {CONFIG_NAME} promises; save it again.")
            if (shape := tuple(shapes[key])) == matrix.shape:
                continue
            of_rank = 0 if ".lora_A." in key else 1  # the dimension of a matrix that is the rank
            if len(shape) == 2 and shape[1 - of_rank] == matrix.shape[1 - of_rank]:
                raise ValueError(
                    f"{source}: {key} has rank {shape[of_rank]}, but its {CONFIG_NAME} says r={self.r}; set r to the rank of "
                    "all matrices."
                )
            raise ValueError(
                f"{source}: {key} has shape {shape}, but this base model needs {tuple(matrix.shape)}; load the base model "
                "that it was trained on."
            )

    def weights_from_state_dict(self, state_dict: Mapping[str, torch.Tensor], source: str) -> torch.Tensor:
        """
        The weight vector (shape `(num_parameters,)`, fp32, CPU) of a PEFT state dict.

        Raises:
            ValueError: As for [`~LoraLayout.check_shapes`].
        """
        self.check_shapes({key: tensor.shape for key, tensor in state_dict.items()}, source)
        weights = torch.empty(self.num_parameters)
        for key, matrix in self.by_peft_key(weights).items():
            matrix.copy_(state_dict[key])
        return weights


class LoraStacks:
    """
    The matrices of K adapters as batched products read them.

    On a CPU those of one module are next to each other: in weight vectors, as the optimizer wants them, they lie far apart,
    and a batched product first copies each of them, which takes as long as the product. A GPU reads them where they are,
    so there each adapter's matrices stay in the order of its weight vector, and it is written and read in one piece.

    Parameters:
        layout (`LoraLayout`):
            The adapted modules.
        num_adapters (`int`):
            K.
        dtype, device:
            Dtype and device of the matrices, which are not initialized.

    Attributes:
        vectors (`torch.Tensor` of shape `(K, num_parameters)`, *optional*):
            The weight vectors that the matrices are views of; `None` on a CPU.
    """

    def __init__(self, layout: LoraLayout, num_adapters: int, dtype: torch.dtype, device: torch.device):
        self.layout, self.num_adapters, self.vectors = layout, num_adapters, None
        if _reads_vectors(device):
            self.vectors = torch.empty(num_adapters, layout.num_parameters, dtype=dtype, device=device)
            self._segments = [part.transpose(0, 1) for part in layout.split(self.vectors)]
        else:
            self._segments = [
                torch.empty(len(segment.names), num_adapters, *segment.shape, dtype=dtype, device=device)
                for segment in layout.segments
            ]

    @classmethod
    def of(
        cls, layout: LoraLayout, weights: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device
    ) -> "LoraStacks":
        """The adapters of these weight vectors, each of shape `(num_parameters,)` and on any device."""
        stacks = cls(layout, len(weights), dtype, device)
        stacks.write(weights)
        return stacks

    def write(self, weights: Sequence[torch.Tensor]) -> None:
        """Set the first adapters to these weight vectors, each of shape `(num_parameters,)` and on any device."""
        if self.vectors is None:
            targets = [segment for adapter in range(len(weights)) for segment in self.segments_of(adapter)]
            sources = [segment for vector in weights for segment in self.layout.split(vector)]
        else:
            targets, sources = list(self.vectors[: len(weights)]), list(weights)
        if targets:
            torch._foreach_copy_(targets, sources)  # on a GPU one launch for all of one dtype

    def segments_of(self, adapter: int) -> list[torch.Tensor]:
        """Views of one adapter's matrices, by segment, in the shapes of [`LoraLayout.split`]."""
        return [segment[:, adapter] for segment in self._segments]

    def matrices(
        self, adapters: slice | torch.Tensor = slice(None), *, transposed: bool = False
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """
        The matrices of some adapters.

        Args:
            adapters (`slice` or `torch.Tensor` of shape `(k,)`, *optional*):
                Which ones; all unless given. The matrices of a slice are views.
            transposed (`bool`, *optional*, defaults to `False`):
                Whether the last two dimensions are swapped.

        Returns:
            `dict[str, tuple[torch.Tensor, torch.Tensor]]`: for each module name `A` of shape `(k, r, in_features)` and `B`
            of shape `(k, out_features, r)`.
        """
        chosen = [segment[:, adapters] for segment in self._segments]
        return self.layout.by_module([(segment.mT if transposed else segment).unbind() for segment in chosen])


def _reads_vectors(device: torch.device) -> bool:
    return device.type != "cpu"


def lora_layout(model: nn.Module, config: LoraConfig, trained: bool = False) -> LoraLayout:
    """
    Resolve a `LoraConfig` on a model.

    `target_modules` may be anything that PEFT takes: `None` (PEFT's default for the architecture, and all linear modules
    where it has none), names, a regular expression, or `"all-linear"`. All linear modules are those of the language model
    (see [`linear_modules`]), without those that PEFT cannot store.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model to adapt.
        config (`LoraConfig`):
            The adapter's shape.
        trained (`bool`, *optional*, defaults to `False`):
            Whether the adapter has its weights already, so that its initialization and dropout do not matter.

    Raises:
        ValueError: An option that a stacked adapter does not follow, a rank below 1, targets that match no linear module,
            or one that PEFT cannot store.
    """
    require_plain_lora(config, trained)
    candidates = linear_modules(model)
    target_modules = config.target_modules
    if target_modules is None:
        model_type = unwrap(model).config.model_type
        target_modules = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, "all-linear")
    lost = lost_by_peft(model, candidates)
    if config.target_modules in (None, "all-linear"):
        candidates = {name: module for name, module in candidates.items() if name not in lost}
    resolved = LoraConfig(
        target_modules=list(candidates) if target_modules == "all-linear" else _present(target_modules, candidates),
        exclude_modules=_present(config.exclude_modules, candidates),
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
    )
    names = [name for name in candidates if check_target_module_exists(resolved, name)]
    if not names:
        shown = target_modules if isinstance(target_modules, str) else sorted(target_modules)
        present = (
            ", ".join(sorted({ending_of(name) for name in candidates if name not in lost}))
            or "none that can be adapted"
        )
        raise ValueError(f"target_modules={shown!r:.200} match no linear module; this model has {present}.")
    if refused := [name for name in names if name in lost]:
        raise ValueError(
            f"target_modules match {refused[0]}, which PEFT cannot adapt or read again in {type(unwrap(model)).__name__}: it "
            "takes the name for one of fused experts, of a checkpoint or of a state-space layer. Leave it out, or use "
            "'all-linear', which does."
        )
    require_one_rank(config, names)
    modules = tuple(LoraModule(name, *linear_sizes(candidates[name])) for name in names)
    endings = {ending_of(name) for name in names}
    # PEFT looks for the endings among all modules, those of a vision tower or a router as well.
    whole_classes = {name for name, _ in unwrap(model).named_modules() if ending_of(name) in endings} == set(names)
    return LoraLayout(
        modules=modules,
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=tuple(sorted(endings if whole_classes else names)),
        use_rslora=config.use_rslora,
    )


def _present(names: str | Collection[str] | None, candidates: Collection[str]) -> str | list[str] | None:
    """The names that are modules or ends of their names, since PEFT compares each module with each name; others as they are."""
    if names is None or isinstance(names, str):
        return names
    ends = {name.split(".", place)[-1] for name in candidates for place in range(name.count(".") + 1)}
    return sorted(ends.intersection(names))
