"""
The arguments that each version of torch takes, as recorded from its wheels, to hold our calls against.

To add a version, give its wheel for any platform; those for macOS are small:

    pip download --no-deps --only-binary=:all: --platform macosx_14_0_arm64 torch==2.16.0
    python tests/helpers/torch_signatures.py torch-*.whl
"""

import ast
import inspect
import json
import re
import sys
from pathlib import Path
from zipfile import ZipFile

import torch


FILE = Path(__file__).parents[1] / "inner_loop" / "torch_signatures.json"
# Operators, whose schema is recorded, and Python functions, with the file that defines each.
OPERATORS = (
    *("_flash_attention_forward", "_flash_attention_backward", "_grouped_mm"),
    *("_fused_adamw_", "_fused_adamw_.tensor_lr", "_fused_rms_norm", "_fused_rms_norm_backward"),
)
# How torch differentiates the first, as its call of the second.
DERIVATIVE = "derivative of aten::_flash_attention_forward"
FUNCTIONS = {
    "torch.nn.attention.varlen.varlen_attn": "torch/nn/attention/varlen.py",
    "torch.nn.functional.grouped_mm": "torch/nn/functional.py",
    "torch.optim.adamw.adamw": "torch/optim/adamw.py",
    "torch.nn.attention.sdpa_kernel": "torch/nn/attention/__init__.py",
    "torch.backends.cuda.enable_cudnn_sdp": "torch/backends/cuda/__init__.py",
    "torch.backends.cuda.cudnn_sdp_enabled": "torch/backends/cuda/__init__.py",
}
RECORDED: dict[str, dict[str, str | None]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
VERSIONS = list(RECORDED)


def signature(name: str, version: str) -> inspect.Signature | None:
    """What an operator (`aten::...`) or a function took in a version of torch; `None` where it was not there."""
    recorded = RECORDED[version][name]
    if recorded is None:
        return None
    if not name.startswith("aten::"):
        return inspect.signature(eval(f"lambda {recorded}: None"))
    Parameter = inspect.Parameter
    return inspect.Signature(
        [
            Parameter(
                argument.name,
                Parameter.KEYWORD_ONLY if argument.kwarg_only else Parameter.POSITIONAL_OR_KEYWORD,
                default=argument.default_value if argument.has_default_value() else Parameter.empty,
                annotation=argument.type,
            )
            for argument in torch._C.parse_schema(recorded).arguments
        ]
    )


def check_call(name: str, version: str, args: tuple, options: dict) -> None:
    """Raise `TypeError` where this call is none that the version takes."""
    found = signature(name, version)
    if found is None:
        raise TypeError(f"torch {version} has no {name}")
    for argument, value in found.bind(*args, **options).arguments.items():
        kind = found.parameters[argument].annotation
        if isinstance(kind, torch._C.Type) and value is None and kind.kind() != "OptionalType":
            raise TypeError(f"{name} of torch {version} takes no None for {argument}")


def record(wheel: Path) -> dict[str, str | None]:
    """The signatures in a wheel; defaults of Python functions are left out, as `None`."""
    with ZipFile(wheel) as archive:
        operators = archive.read("torchgen/packaged/ATen/native/native_functions.yaml").decode()
        found: dict[str, str | None] = {}
        for name in OPERATORS:
            schema = re.search(rf"^- func: ({re.escape(name)}\(.*)$", operators, re.M)
            found[f"aten::{name}"] = f"aten::{schema[1]}" if schema else None
        derivatives = archive.read("torchgen/packaged/autograd/derivatives.yaml").decode()
        formula = re.search(r"- name: _flash_attention_forward\(.*\n.*\n  query, key, value: (.*)$", derivatives, re.M)
        found[DERIVATIVE] = formula and formula[1]
        for name, file in FUNCTIONS.items():
            source = archive.read(file).decode() if file in archive.namelist() else ""
            found[name] = _arguments(source, name.rpartition(".")[2])
    return found


def _arguments(source: str, name: str) -> str | None:
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
            node.args.defaults = [ast.Constant(None) for _ in node.args.defaults]
            node.args.kw_defaults = [default and ast.Constant(None) for default in node.args.kw_defaults]
            return ast.unparse(node.args)
    return None


if __name__ == "__main__":
    for wheel in map(Path, sys.argv[1:]):
        RECORDED[".".join(wheel.name.split("-")[1].split(".")[:2])] = record(wheel)
    ordered = sorted(RECORDED, key=lambda version: tuple(map(int, version.split("."))))
    text = json.dumps({version: RECORDED[version] for version in ordered}, indent=2)
    FILE.write_text(f"{text}\n", encoding="utf-8")
