"""Loading a member: options are checked, and config and tokenizer read, before any weights are."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .base import BaseMember, Variables
from .prompts import PromptEncoder, check_against_file, one_line, read_chat_template
from .rank_group import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Options = Mapping[str, Any]
"""Of a model's loading."""

SHARED = (
    "revision", "trust_remote_code", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder",
    "gguf_file",
)  # fmt: skip
"""Options that say where the files are: for config, tokenizer and model."""

OWN = ("tokenizer", "device", "chat_template", "chat_template_kwargs")
"""Options that are a member's, not the model's."""

_MODEL = (
    "config", "dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_buffers", "variant",
    "quantization_config", "attn_implementation", "use_safetensors", "weights_only", "code_revision", "tp_plan",
    "tp_size", "device_mesh", "key_mapping", "use_kernels", "ignore_mismatched_sizes", "low_cpu_mem_usage",
    "adapter_kwargs", "generation_config", "state_dict", "output_loading_info",
)  # fmt: skip
_POPPED = re.compile(r"""kwargs(?:\.pop|\.get|\.setdefault)?[(\[]\s*["'](\w+)["']""")


@dataclass(frozen=True)
class MemberSource:
    """A member that can be loaded: what was asked for is checked, its config and tokenizer are read."""

    name: str
    place: str
    """What `from_pretrained` of transformers is given."""
    config: PreTrainedConfig
    """None where only loading the model finds it (adapters)."""
    tokenizer: PreTrainedTokenizerBase
    options: Options
    """Of `AutoModelForCausalLM.from_pretrained`."""
    device: torch.device | None
    chat_template: str | None
    chat_template_kwargs: Variables

    @property
    def prompts(self) -> PromptEncoder:
        """How the member will encode prompts."""
        text = text_config(self.config)
        return PromptEncoder(
            self.tokenizer,
            self.name,
            rows=getattr(text, "vocab_size", None),
            context_length=context_length(text),
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def load_model(self) -> PreTrainedModel:
        """The model, on its device."""
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(self.place, **self.options)
            return model if self.device is None else model.to(self.device)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{self.name} does not fit on {self.device or 'its device'}: try a 16-bit dtype, quantization_config, "
                "or another device for this member"
            ) from error
        except Exception as error:
            raise ValueError(f"{self.name} cannot be loaded: {one_line(error)}") from error


def prepare(
    name: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    device: Any = None,
    chat_template: str | Path | None = None,
    chat_template_kwargs: Variables | None = None,
    known: Collection[str] = (),
    **options: Any,
) -> MemberSource:
    """Check what `Member.from_pretrained` is asked for, and read config and tokenizer.

    Parameters
    ----------
    name, tokenizer, device, chat_template, chat_template_kwargs, **options
        As `Member.from_pretrained`.
    known : collection of str
        Further option names to suggest when one is unknown.

    Raises
    ------
    TypeError, ValueError
        An option, a name or a device is wrong; the cause is attached.
    """
    name = os.fspath(name)
    if device is not None and options.get("device_map") is not None:
        raise ValueError(f"device and device_map exclude each other, got {device!r} and {options['device_map']!r}")
    if chat_template_kwargs is not None and not isinstance(chat_template_kwargs, Mapping):
        raise TypeError(f"chat_template_kwargs must map names to values, got {type(chat_template_kwargs).__name__}")
    options = _with_dtype(options)
    place, options = _place(name, options)
    found = None if device is None else check_device(device)
    template = read_chat_template(chat_template)
    config = _config(name, place, options)
    if config is not None and not options.get("trust_remote_code"):  # code of its own may take anything
        _check_names(name, options, config, (*OWN, *known))
    return MemberSource(
        name=name,
        place=place,
        config=config,
        tokenizer=_tokenizer(name, place, tokenizer, options),
        options=options,
        device=found,
        chat_template=template,
        chat_template_kwargs=dict(chat_template_kwargs or {}),
    )


def prepare_all(
    names: Sequence[str | os.PathLike[str] | MemberSource | BaseMember],
    options: Sequence[Options],
    *,
    known: Collection[str] = (),
    places: Layout | None = None,
) -> list[MemberSource | BaseMember]:
    """`prepare` of every member, so that what is wrong with the last is said before the first is loaded.

    Members that are prepared or loaded already stay as they are. `places` says which of them other processes load:
    their devices are not this machine's. "cuda" is then this process's own of the host's devices.
    """
    sources: list[MemberSource | BaseMember] = []
    for m, (name, own) in enumerate(zip(names, options)):
        if places is not None and not places.holds(m):
            own = {**own, "device": None}
        elif places is not None and str(own.get("device")) == "cuda" and torch.cuda.is_available():
            own = {**own, "device": f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"}
        sources.append(prepare(name, known=known, **own) if isinstance(name, (str, os.PathLike)) else name)
    return sources


def load_tokenizer(name: str, options: Options | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that `Member.from_pretrained(name, **options)` uses: `name` may be a .gguf file."""
    options = dict(options or {})
    tokenizer = options.pop("tokenizer", None)
    place, options = _place(name, options, ("gguf",)) if tokenizer is None else (name, options)
    return _tokenizer(name, place, tokenizer, options)


def _tokenizer(
    name: str, place: str, other: str | PreTrainedTokenizerBase | None, options: Options
) -> PreTrainedTokenizerBase:
    """A member's tokenizer, or the `other` that was asked for."""
    from transformers import AutoTokenizer

    if other is not None and not isinstance(other, str):
        return other
    shared = {o: options[o] for o in SHARED if o in options} if other is None else {}
    source = place if other is None else other
    try:
        found = AutoTokenizer.from_pretrained(source, **shared)
    except Exception as error:
        raise ValueError(f"the tokenizer of {name} cannot be loaded: {one_line(error)}") from error
    if shared.get("gguf_file") is None:
        check_against_file(found, name, Path(source, shared.get("subfolder") or "", "tokenizer.json"))
    return found


def check_device(device: Any) -> torch.device:
    """A device of this machine."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one that torch knows, such as cpu or cuda:0, got {device!r}") from error
    try:
        torch.empty(0, device=found)
    except Exception as error:  # an AssertionError where torch is built without it
        raise ValueError(f"device must be one of this machine, got {device!r}: {one_line(error)}") from error
    return found


def check_dtype(dtype: Any) -> Any:
    """A dtype for `from_pretrained`: "auto", a floating dtype of torch or its name, or a mapping of these."""
    if dtype is None or dtype == "auto" or isinstance(dtype, Mapping):
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype must be auto, float32, bfloat16 or float16, got {dtype!s}"
            + ("" if not isinstance(found, torch.dtype) else ": for fewer bits give quantization_config")
        )
    return found


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that is about text."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_length(config: PreTrainedConfig) -> int | None:
    """The longest text a config's model was made for."""
    config = text_config(config)
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None


def configured_eos(config: object) -> list[int]:
    """The EOS ids of a generation config: a number, a tensor, or several of these; none without a config."""
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        return []
    ids = eos.tolist() if hasattr(eos, "tolist") else eos
    return [int(i) for i in (ids if isinstance(ids, Iterable) else [ids])]


def _with_dtype(options: dict[str, Any]) -> dict[str, Any]:
    """Options with a checked `dtype`, which older code calls `torch_dtype`."""
    options = dict(options)
    if "torch_dtype" in options:
        older = options.pop("torch_dtype")
        if options.setdefault("dtype", older) != older:
            raise ValueError(f"dtype and torch_dtype are the same option, got {options['dtype']} and {older}")
    if "dtype" in options:
        options["dtype"] = check_dtype(options["dtype"])
    return options


def _place(
    name: str, options: dict[str, Any], needs: Sequence[str] = ("gguf", "accelerate")
) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is given for a name: a .gguf file is its folder and `gguf_file`.

    `needs` are the packages without which a GGUF file cannot be read.
    """
    if not isinstance(name, str):
        name = str(name)
    path = Path(name)
    place, options = name, dict(options)
    if path.suffix.lower() == ".gguf" and options.get("gguf_file") is None:
        if not path.is_file():
            raise ValueError(
                f"model must be a folder, a .gguf file or a Hugging Face name, got {name}: there is no such file (for "
                "one on the Hub, give the repository's name and gguf_file)"
            )
        place, options["gguf_file"] = str(path.parent), path.name
    elif not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ValueError(f"model must be a folder, a .gguf file or a Hugging Face name, got {name}: no such folder")
    elif path.is_file():
        raise ValueError(f"model must be a folder, a .gguf file or a Hugging Face name, got the file {name}")
    if options.get("gguf_file") is not None:
        missing = [package for package in needs if find_spec(package) is None]
        if not _reads_gguf():
            missing.append("transformers 5.18 or newer")
        if missing:
            raise ValueError(f"{name} needs {' and '.join(missing)}: pip install 'unite_ext[gguf]'")
    return place, options


def _reads_gguf() -> bool:
    """Whether this transformers reads tokenizers of GGUF files right: older ones take byte-level for SentencePiece."""
    import transformers

    return tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (5, 18)


def _config(name: str, place: str, options: Options) -> PreTrainedConfig | None:
    from transformers import AutoConfig

    if options.get("config") is not None and not isinstance(options["config"], str):
        return options["config"]
    shared = {o: options[o] for o in SHARED if o in options}
    try:
        return AutoConfig.from_pretrained(options.get("config") or place, **shared)
    except Exception as error:
        if (Path(place) / "adapter_config.json").is_file():
            return None
        raise ValueError(f"{name} cannot be loaded: {one_line(error)}") from error


def _check_names(name: str, options: Options, config: PreTrainedConfig, others: Collection[str]) -> None:
    """Every option is one that transformers' loading takes, or one of the config's fields."""
    taken = _model_options()
    for option in options:
        if option in taken or hasattr(config, option):
            continue
        close = difflib.get_close_matches(option, [*taken, *others], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"unknown option {option!r} for {name}{hint}")


@cache
def _model_options() -> frozenset[str]:
    """What loading a model takes, as far as this version of transformers shows it."""
    from transformers import AutoModelForCausalLM, PreTrainedModel

    names = {*SHARED, *_MODEL}
    for function in (AutoModelForCausalLM.from_pretrained, PreTrainedModel.from_pretrained):
        names |= inspect.signature(function).parameters.keys()
        try:
            names |= set(_POPPED.findall(inspect.getsource(inspect.unwrap(function))))
        except (OSError, TypeError):
            continue
    return frozenset(names - {"cls", "self", "kwargs", "args", "model_args", "model_kwargs"})
