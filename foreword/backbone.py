"""The frozen language model: load it, read its geometry, fingerprint it. Nothing here ever trains it."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils import logging as hf_logging

from foreword.errors import BackboneError, PromptError, nearest
from foreword.frozen import fuse_activations
from foreword.geometry import Geometry, read_geometry
from foreword.prompts.bank import States
from foreword.prompts.inject import Recorder, activate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEFAULT = "foreword-decoder-6m"
VOLATILE_CONFIG_KEYS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "use_cache")


LOAD_FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError)
"""What loading a broken or unknown model ends in."""


@dataclass(eq=False)
class Backbone:
    """A frozen model with its tokenizer.

    Attributes:
        model: the Hugging Face model in eval mode, no parameter of it requiring gradients.
        tokenizer: its tokenizer.
        geometry: the sites and widths a prompt must fit.
        source: the path or hub id it came from, for messages and artefacts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    geometry: Geometry
    source: str = ""
    weight_files: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype: that of the input embeddings, which no quantisation touches."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model has an encoder (T5, BART) or is decoder-only."""
        return self.geometry.is_encoder_decoder

    def embed(self, ids: Tensor) -> Tensor:
        """Return input embeddings [..., E] of token ids, with the model's own scaling."""
        return self.model.get_input_embeddings()(ids)

    def record(self, *, ids: Tensor | None = None, embeds: Tensor | None = None) -> States:
        """Return keys and values [K, T, D] by site of one text run alone through the frozen model.

        Gradients flow to `embeds`. On an encoder-decoder the text goes into both sides.

        Args:
            ids: [T] token ids, or
            embeds: [T, E] input embeddings.
        """
        embeds = (self.embed(ids) if embeds is None else embeds.to(self.dtype))[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        recorder = Recorder()
        arguments: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": mask, "use_cache": False}
        if self.is_encoder_decoder:
            arguments["decoder_inputs_embeds"] = embeds
        with activate(recorder):
            entrance = self.model if self.is_encoder_decoder else self.model.base_model  # no head: no logits needed
            entrance(**arguments)
        return {site: (key[0], value[0]) for site, (key, value) in recorder.states.items()}

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """sha256 of the config, the tokenizer and the weights; of the weight files where the model came from files.

        A digest of the files is the same whatever dtype the weights are loaded in.
        """
        return {
            "config": _config_digest(self.model.config.to_dict()),
            "tokenizer": _tokenizer_digest(self.tokenizer),
            "weights": _files_digest(self.weight_files) if self.weight_files else self.state_digest(),
        }

    def state_digest(self) -> str:
        """Return the sha256 of every weight and buffer as it is in memory now (law 1: it never changes)."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_backbone(
    source: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str | torch.device | None = None,
    quantization: Literal["4bit", "8bit"] | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Backbone:
    """Return a frozen backbone from a local directory, a bundled name, or a hub id.

    Args:
        source: a directory, the name of a backbone bundled with Foreword, or a hub id.
        dtype: compute dtype of the frozen weights.
        device: where to put it; None takes CUDA if there is one.
        quantization: load the weights in 4 or 8 bits through bitsandbytes (needs it and a GPU).
        trust_remote_code: run code that comes with the model; never unless asked.
        revision: hub revision.

    Raises:
        BackboneError: nothing loadable there, an unknown dtype, or a model of neither kind.
    """
    if dtype not in DTYPES:
        raise BackboneError(f"dtype = {dtype!r} is not a compute dtype{nearest(dtype, DTYPES)}")
    path = _resolve(str(source))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise BackboneError(f"device = {str(device)!r} needs a GPU, and PyTorch sees none; leave it out or give 'cpu'")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = _load_model(kind, path, DTYPES[dtype], device, quantization, options)
    except LOAD_FAULTS as error:
        raise BackboneError(f"backbone {str(source)!r} cannot be loaded: {' '.join(str(error).split())}") from error
    return wrap_backbone(model, tokenizer, source=str(source), weight_files=_weight_files(path, revision))


def load_tokenizer(
    source: str | Path, *, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return a backbone's tokenizer and whether it is an encoder-decoder: what counts texts, without the weights.

    Arguments and errors are those of `load_backbone`.
    """
    path, options = _resolve(str(source)), {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        return AutoTokenizer.from_pretrained(path, **options), config.is_encoder_decoder
    except LOAD_FAULTS as error:
        message = f"the tokenizer of {str(source)!r} cannot be loaded: {' '.join(str(error).split())}"
        raise BackboneError(message) from error


def wrap_backbone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str = "",
    weight_files: tuple[Path, ...] = (),
) -> Backbone:
    """Return a backbone around a model already in memory: freezes it, installs the injection, reads its geometry.

    Raises:
        BackboneError: the model has non-finite weights.
    """
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    fuse_activations(model)
    _check_finite(model)
    _set_pad_token(tokenizer)
    return Backbone(model, tokenizer, read_geometry(model), source or model.config.name_or_path, weight_files)


def bundled_backbones() -> dict[str, Path]:
    """Return the directories of the backbones that ship with the package, by name; the first is the default."""
    root = Path(__file__).parent / "assets" / "backbones"
    names = sorted((path.parent.name for path in root.glob("*/config.json")), key=lambda n: (n != _DEFAULT, n))
    return {name: root / name for name in names}


def _resolve(source: str) -> str:
    """Return a directory for bundled names and local paths; a hub id stays as it is."""
    bundled = bundled_backbones()
    if source in bundled:
        return str(bundled[source])
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone {source!r} has no config.json; give a saved Transformers model")
        return str(path)
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise BackboneError(f"backbone {source!r} is not a directory{nearest(source, bundled)}")
    if "/" not in source:
        raise BackboneError(f"backbone {source!r} is neither a directory nor bundled{nearest(source, bundled)}")
    return source


def _load_model(
    kind: type, path: str, dtype: torch.dtype, device: str | torch.device, quantization: str | None, options: dict
) -> PreTrainedModel:
    hf_logging.disable_progress_bar()
    if quantization is not None:
        from transformers import BitsAndBytesConfig

        quantized = BitsAndBytesConfig(**{f"load_in_{quantization}": True}, bnb_4bit_compute_dtype=dtype)
        return kind.from_pretrained(path, dtype=dtype, device_map=device, quantization_config=quantized, **options)
    model, found = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    if missing := sorted(found["missing_keys"]):  # Transformers draws them at random, anew at each loading
        raise ValueError(f"its files lack {len(missing)} of its weights, {missing[0]!r} first; fetch or save it again")
    return model.to(device)


def _weight_files(path: str, revision: str | None) -> tuple[Path, ...]:
    """Return the files that the weights came from: in a directory, or in the hub's cache after loading.

    Their digest does not depend on the dtype they are loaded in, so a prompt fits the model in any.
    """
    if Path(path).is_dir():
        return tuple(sorted(Path(path).glob("*.safetensors")) or sorted(Path(path).glob("pytorch_model*.bin")))
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if found is not None and name == SAFE_WEIGHTS_NAME:
            return (Path(found),)
        if found is not None:
            shards = sorted(set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values()))
            return tuple(Path(cached_file(path, shard, revision=revision)) for shard in shards)
    return ()


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.is_meta or torch.isfinite(parameter.sum()):
            continue  # one sum tells nearly always; only then look at every value
        if not torch.isfinite(parameter).all():
            raise BackboneError(f"weight {name!r} has NaN or infinite values; the file is damaged, fetch it again")


def _set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token; padding is always masked, so any existing token serves."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)


def require_prefix(backbone: Backbone) -> None:
    """Raise where prefixes cannot enter the model, naming it and what does work.

    Raises:
        PromptError: no attention of the model goes through Transformers' attention interface.
    """
    if not backbone.geometry.sites:
        name = type(backbone.model).__name__
        raise PromptError(
            f"{name} does not route all that mixes its tokens through Transformers' attention interface, so a prefix "
            "or infix cannot enter it; use kind 'prompt' (input embeddings), which works with this model"
        )


def _config_digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_lasting(config), sort_keys=True, default=str).encode()).hexdigest()


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without what changes from loading to loading, in the parts of a composed one too."""
    kept = {
        key: value for key, value in config.items() if key not in VOLATILE_CONFIG_KEYS and not str(key).startswith("_")
    }
    return {key: _lasting(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def _files_digest(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
