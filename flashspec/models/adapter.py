"""Any causal language model of transformers, run by its own code, perhaps on several GPUs.

Only safetensors are read and only code that is part of transformers runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashspec.models.files import Kind, ids_of, shaped
from flashspec.models.folder import first_line, read_config
from flashspec.models.memory import device_named, dtype_named, refuse_bytes
from flashspec.models.reader import Reader

PROBE = (5, 3, 7, 2, 4, 6)
LOADERS = {
    "gptq": "gptqmodel and optimum",
    "compressed-tensors": "compressed-tensors",
    "awq": "gptqmodel or autoawq",
    "bitsandbytes": "bitsandbytes",
    "fp8": "a GPU with 8-bit floats",
}


class AdapterConfig(NamedTuple):
    """The facts about a transformers model that decoding needs; `context` is in tokens."""

    family: str
    vocab_size: int
    hidden: int
    layers: int
    context: int
    eos: tuple[int, ...] = ()


class Adapter:
    """A transformers model whose rows are hidden states if logits follow from these alone, else logits.

    `head_weight` is the vocabulary weight, None where rows are logits, which are normalised already.
    """

    norm = None

    @torch.inference_mode()
    def __init__(self, model: Any, shared: bool = False) -> None:
        """Decide what rows are; ValueError for a model whose cache cannot be rewound."""
        config = model.config.get_text_config()
        stops = model.generation_config.eos_token_id if model.generation_config else config.eos_token_id
        self.model = model.eval().requires_grad_(False)
        self.config = AdapterConfig(
            family=type(model).__name__,
            vocab_size=config.vocab_size,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            context=getattr(config, "max_position_embeddings", None) or 2048,
            eos=ids_of(stops),
        )
        self.device: torch.device = next(model.parameters()).device
        ids = torch.tensor(PROBE, device=self.device) % config.vocab_size
        self.head_weight = None if shared else self._plain_weight(ids)
        tolerance = 1e-3 if model.dtype.itemsize >= 4 else 0.05  # read in parts, only the rounding differs
        if not _same(self._rewound(ids), self.run(ids, self.cache()), tolerance):
            raise ValueError(
                f"{self.config.family} keeps a state that cannot be rewound; use a model whose cache holds every token"
            )

    @classmethod
    def load(cls, folder: Path, dtype: str = "auto", device: str = "cpu", shared: bool = False) -> Adapter:
        """The model of a checkpoint folder; with `shared`, split over all processes that torchrun started.

        Raises ModuleNotFoundError without transformers or a package that the quantisation needs, ValueError for checkpoints
        that need code of their own, keep their weights pickled or cannot be rewound.
        """
        about, place = shaped(read_config(folder), Kind, folder / "config.json"), device_named(device)
        _refuse(folder, about)
        needed = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        refuse_bytes(str(folder), needed // (processes() if shared else 1), place)
        kind = "auto" if dtype == "auto" else dtype_named(dtype)
        return cls(_from_pretrained(folder, about, {"dtype": kind} | _place(str(place), shared)), shared)

    @property
    def vocabulary(self) -> Tensor | None:
        """The vocabulary weight, None where rows are logits."""
        return self.head_weight

    @property
    def width(self) -> int:
        """Numbers per row: hidden width, or the vocabulary size."""
        return self.config.vocab_size if self.head_weight is None else self.config.hidden

    def cut_vocabulary(self, size: int) -> None:
        """Score no id from `size` on; the model itself is not changed."""
        self.config = self.config._replace(vocab_size=size)
        self.head_weight = None if self.head_weight is None else self.head_weight[:size]

    def cache(self) -> Any:
        """An empty cache that keeps every token, even if the model attends to a window only."""
        from transformers import DynamicCache

        return DynamicCache()

    @torch.inference_mode()
    def run(self, tokens: Tensor, cache: Any) -> Tensor:
        """Rows [n, width] in float32 for tokens [n] after those in the cache, which grows by them."""
        part = self.model if self.head_weight is None else self.model.base_model
        out = part(input_ids=tokens[None].to(self.device), past_key_values=cache, use_cache=True)
        rows = out.logits[..., : self.config.vocab_size] if self.head_weight is None else out.last_hidden_state
        return rows[0].float()

    def _plain_weight(self, ids: Tensor) -> Tensor | None:
        """The vocabulary weight; None where logits are more than its product with the last hidden states."""
        if self.model.base_model is self.model:
            return None
        logits = self.model(input_ids=ids[None], use_cache=False).logits  # first: compressed-tensors unpacks here
        hidden = self.model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state
        weight = getattr(self.model.get_output_embeddings(), "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != (self.config.vocab_size, self.config.hidden):
            return None
        plain = weight.is_floating_point() and _same(F.linear(hidden, weight), logits, 1e-5)
        return weight.detach() if plain else None

    def _rewound(self, ids: Tensor) -> Tensor:
        """Rows of ids read in two parts, with two wrong tokens read and rewound in between."""
        try:
            cache = self.cache()
            first = self.run(ids[:3], cache)
            self.run(ids[:2], cache)
            cache.crop(-2)
            return torch.cat([first, self.run(ids[3:], cache)])
        except (RuntimeError, ValueError, AttributeError, TypeError, IndexError, KeyError):
            return torch.full((len(ids), self.width), torch.nan)


def _same(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a.to(b.device) - b).abs().max() <= tolerance * b.abs().max())


def processes() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaker() -> bool:
    """Whether this process prints: the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _refuse(folder: Path, about: Kind) -> None:
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no safetensors, and pickled weights are never read: convert them to safetensors")
    try:
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"only transformers could load {folder}: pip install 'flashspec[peers]'") from None

    found = about.quantization_config
    if found and found.quant_method not in KNOWN and not (found.load_in_8bit or found.load_in_4bit):
        raise ValueError(
            f"{folder} is quantised by {found.quant_method!r}, which transformers does not load; it loads: {', '.join(LOADERS)}"
        )


def _place(device: str, shared: bool) -> dict[str, Any]:
    if not shared:
        return {} if device == "cpu" else {"device_map": device}
    from transformers.distributed import DistributedConfig

    if "tp_plan" in DistributedConfig.__dataclass_fields__:
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    return {"tp_plan": "auto"}


def _from_pretrained(folder: Path, about: Kind, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    safe = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    try:
        model, found = load(folder, **safe, **options)
    except Exception as error:  # transformers checks few of the types in these files
        kind = ModuleNotFoundError if isinstance(error, ImportError) else ValueError
        method, needs = about.quantization_config and about.quantization_config.quant_method, ""
        if method:
            needs = f", whose {method} weights need {LOADERS.get(method, 'the package of that method')} installed"
        raise kind(f"transformers cannot load {folder}{needs}: {first_line(error)}") from None
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder} lacks {missing[0]} ({len(missing)} such tensors), which transformers would draw at random; "
            "copy the whole folder again"
        )
    return model


class AdapterReader(Reader):
    """Reads tokens through a complete transformers model; rewinding crops its cache."""

    def __init__(self, model: Adapter, context: int | None = None) -> None:
        room = min(model.config.context, context or model.config.context)
        super().__init__(room, torch.zeros(room, model.width, device=model.device))
        self.model, self._cache = model, model.cache()

    def _fresh(self, tokens: Tensor) -> Tensor:
        return self.model.run(tokens[self.seen :], self._cache)

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""
        if n == 0:
            self._cache = self.model.cache()
        elif n < self.seen:
            self._cache.crop(n - self.seen)
        super().rewind(n)
