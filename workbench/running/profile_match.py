"""Whether a profile speaks of what a scenario deploys."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from engine.core.hardware_spec import HardwareSpec, gpu_names
from engine.core.model_spec import ModelSpec
from simulator.profile import CPU, Identity, Profile, ProfileError
from simulator.shipped_profiles import read_identity, shipped_profiles, words
from workbench.record.provenance import source_commit, workbench_version
from workbench.scenario.schema import Pool

_DTYPES: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class OtherProfileError(ValueError):
    """A profile of something else; `help` says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.help = (
            "calibrate this one, or take the analytic cost model: `hardware.profile: analytic`"
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a profile has to be of.

    Attributes:
        model, gpu: what is to run, and on what.
        tensor_parallel_size: on how many of them.
        dtypes: of the weights, of the KV cache.
        page_size: tokens of a KV page.
    """

    model: ModelSpec
    gpu: HardwareSpec
    tensor_parallel_size: int
    dtypes: tuple[str, str]
    page_size: int


def refuse_other(profile: Profile, wanted: Wanted) -> None:
    """Refuse a profile of another model, GPU, number of GPUs, number format or page size.

    One of a CPU is taken for any GPU, because no scenario can name a CPU; so are all number formats
    of its, which a CPU chooses by itself.

    Raises:
        OtherProfileError: with everything that differs.
    """
    wrong = _differences(profile.identity, wanted)
    if wrong:
        raise OtherProfileError(f"profile {profile.name} is of {'; of '.join(wrong)}")


def find_shipped(wanted: Wanted) -> Path | None:
    """The shipped profile that `refuse_other` lets pass, or None. No GPU gets one of a CPU.

    Raises:
        ProfileError: a shipped file is no profile.
    """
    size = f"tp{wanted.tensor_parallel_size}"
    files = shipped_profiles(wanted.gpu.name, wanted.dtypes[0], size)
    files.sort(key=lambda path: not words(wanted.model.name) <= words(path.stem))  # likely first
    for path in files:
        if not _differences(read_identity(path), wanted):
            return path
    return None


def nearest_shipped(wanted: Wanted) -> tuple[str, list[str]] | None:
    """(name, differences) of the shipped profile of this model that differs least, or None.

    Raises:
        ProfileError: a shipped file is no profile.
    """
    found = [(path.stem, _differences(read_identity(path), wanted)) for path in shipped_profiles()]
    same_model = [(name, wrong) for name, wrong in found
                  if not any(text.startswith("model ") for text in wrong)]  # fmt: skip
    return min(same_model, key=lambda each: len(each[1]), default=None)


def _differences(own: Identity, wanted: Wanted) -> list[str]:
    """What was measured instead of what is to run, each as "A, not B"."""
    wrong = []
    digest = model_digest(wanted.model)
    if own.model_digest != digest:
        names = own.model, wanted.model.name
        if names[0] == names[1]:  # its facts were others, as of a checkpoint with fewer layers
            names = f"{names[0]} ({own.model_digest})", f"{names[1]} ({digest})"
        wrong.append(f"model {names[0]}, not {names[1]}")
    if own.gpu != CPU and not is_gpu(wanted.gpu.name, own.gpu):
        wrong.append(f"{own.gpu}, not {wanted.gpu.name}")
    if own.tensor_parallel_size != wanted.tensor_parallel_size:
        wrong.append(f"{own.tensor_parallel_size} GPUs, not {wanted.tensor_parallel_size}")
    if own.gpu != CPU and (own.dtype, own.kv_dtype) != wanted.dtypes:
        formats = " and ".join(wanted.dtypes)
        wrong.append(f"{own.dtype} weights and {own.kv_dtype} KV, not {formats}")
    if own.page_size != wanted.page_size:
        wrong.append(f"pages of {own.page_size} tokens, not {wanted.page_size}")
    return wrong


def holds_pages_of(profile: Profile, pool: Pool, memory_fraction: float) -> bool:
    """Whether the engine that was measured has the pages that this pool would have.

    Args:
        profile: what was measured.
        pool: of a deployment.
        memory_fraction: share of each GPU that the deployment may use.
    """
    own = profile.engine
    return (
        profile.identity.page_size == pool.page_size
        and own.max_num_batched_tokens == pool.max_num_batched_tokens
        and own.max_running_requests == pool.max_running_requests
        and own.memory_fraction == memory_fraction
    )


def refuse_other_engine(profile: Profile, engine: Identity) -> None:
    """Refuse to compare a profile with an engine that it was not measured of.

    Raises:
        OtherProfileError: with everything that differs; versions may.
    """
    own = profile.identity
    wrong = [
        f"{name} {getattr(own, name)}, not {getattr(engine, name)}"
        for name in ("gpu", "model_digest", "dtype", "kv_dtype", "page_size",
                     "tensor_parallel_size")
        if getattr(own, name) != getattr(engine, name)
    ]  # fmt: skip
    if wrong:
        raise OtherProfileError(f"profile {profile.name} is of {'; of '.join(wrong)}")


def identity_of(facts: dict[str, Any], spec: ModelSpec) -> Identity:
    """Of an engine: `facts` as its runner tells them, `spec` of its model."""
    versions = {key: str(facts[key]) for key in ("torch", "triton", "cuda", "nvrtc")
                if facts.get(key) is not None}  # fmt: skip
    dtype = _DTYPES[facts["dtype"]]
    return Identity(
        gpu=facts["device"], model=_short_name(spec.name), model_digest=model_digest(spec),
        dtype=dtype, kv_dtype=dtype, page_size=facts["page_size"],
        engine_version=workbench_version(), commit=source_commit(), versions=versions,
    )  # fmt: skip


def _short_name(model: str) -> str:
    """A card's name as it is; of a file or folder, its own without those above it.

    Of a checkpoint, which goes by the path of its config.json, that of its folder, or in the
    Hugging Face cache, `models--<org>--<name>/snapshots/<commit>`, the model's.
    """
    path = Path(model)
    if path.name == "config.json":
        path = path.resolve().parent
        if path.parent.name == "snapshots":
            return path.parent.parent.name.rpartition("--")[2]
        return path.name
    return path.name.removesuffix(".json")


def model_digest(spec: ModelSpec) -> str:
    """A hash of everything that decides what a step of a model computes; its name does not."""
    facts = {key: value for key, value in asdict(spec).items() if key != "name"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def gpu_called(device: str) -> str:
    """What scenarios call a GPU that calls itself so; of a CPU, what its profiles are taken for.

    Raises:
        ProfileError: they know none like it.
    """
    for name in gpu_names():
        if device == CPU or is_gpu(name, device):
            return name
    raise ProfileError(f"{device} is none of {', '.join(gpu_names())}")


def is_gpu(name: str, device: str) -> bool:
    """Whether a device calls itself what a scenario calls it, as "NVIDIA H200" is an h200."""
    return name.casefold() in words(device)
