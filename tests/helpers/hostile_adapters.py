"""Adapters made to take memory, disk or time, or to be more than numbers and names, and an honest one."""

import io
import json
import zipfile

import torch
from safetensors.torch import load, save

from helpers.web_page import PASSAGE, tiny_lm


CONFIG, WEIGHTS, TRAINING = "adapter_config.json", "adapter_model.safetensors", "seal_training.json"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def honest_files(folder):
    """The files of an adapter of the tiny model."""
    model = tiny_lm()
    adapter = model.adapt(model.domain.passage_only({"title": "", "context": PASSAGE}))
    saved = adapter.save_pretrained(folder / "adapter")
    return {file.name: file.read_bytes() for file in saved.iterdir()}


def with_config(files, **fields):
    return {**files, CONFIG: json.dumps({**json.loads(files[CONFIG]), **fields}).encode()}


def with_tensor(files, change):
    tensors = load(files[WEIGHTS])
    return {**files, WEIGHTS: save({**tensors, KEY: change(tensors[KEY])})}


def filled(files, value):
    return with_tensor(files, lambda tensor: torch.full_like(tensor, value))


def zip_of(files, method=zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method, compresslevel=1) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return archive.getvalue()


def tensors_of(number):
    """A file of so many empty tensors."""
    entry = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = f"{{{','.join(entry % place for place in range(number))}}}".encode()
    return len(text).to_bytes(8, "little") + text


# What is made of an honest adapter's files, what the app says, and how the file is packed.
ATTACKS = {
    "bzip2": (lambda files: {**files, TRAINING: bytes(2**24)}, "packed by the method 12; only stored and deflated", zipfile.ZIP_BZIP2),
    "lzma": (lambda files: {**files, WEIGHTS: bytes(2**24)}, "packed by the method 14; only stored and deflated", zipfile.ZIP_LZMA),
    "zeros": (lambda files: {**files, WEIGHTS: bytes(2**26)}, f"{WEIGHTS} has 67.1 MB, but for this base model"),
    "zeros beside junk": (lambda files: {**files, WEIGHTS: bytes(2**27), "junk": bytes(2**22)}, f"{WEIGHTS} has 134.2 MB, but"),
    "float8": (lambda files: with_tensor(files, lambda one: one.to(torch.float8_e4m3fn)), "is of the type F8_E4M3"),
    "complex": (lambda files: with_tensor(files, lambda one: one.to(torch.complex64)), "is of the type C64"),
    "NaN": (lambda files: filled(files, float("nan")), "not finite"),
    "infinite": (lambda files: filled(files, float("inf")), "not finite"),
    "lora_alpha": (lambda files: with_config(files, lora_alpha=1e308), "lora_alpha=1e.308 must be a number within"),
    "rank": (lambda files: with_config(files, r=10**9), "rank r=1000000000 must be a whole number from 1 to 1024"),
    "optional groups": (lambda files: with_config(files, target_modules="(a?)" * 27 + "[a-z._0-9]*Z"), "no pattern is taken from a file"),
    "nested groups": (lambda files: with_config(files, exclude_modules="(([a-z_.0-9])+)+Z"), "no pattern is taken from a file"),
    "many tensors": (lambda files: {**files, WEIGHTS: tensors_of(300_000)}, f"{WEIGHTS} has .* MB, but for this base model"),
    "deep": (lambda files: {**files, CONFIG: b"[" * 100_000}, f"{CONFIG} is nested too deeply"),
    "pickle": (lambda files: {CONFIG: files[CONFIG], "adapter_model.bin": b"x"}, "a pickle, which can run code"),
}  # fmt: skip


def hostile_zip(files, attack) -> tuple[bytes, str]:
    """The zip file of an attack, and what the app says to it."""
    make, message, *method = ATTACKS[attack]
    return zip_of(make(files), *method), message
