"""The tensors of published models: sizes as their authors give them, without the weights.

Linear layers are ``[out, in]``, as ``nn.Linear`` has them; names are those of Hugging Face's transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama, or of a Qwen, which is one with biases or with norms of queries and keys."""

    source: str
    """Where the sizes are published."""
    vocabulary: int
    hidden: int
    ffn: int
    layers: int
    kv: int | None = None
    """Width of keys and values, if not ``hidden``."""
    attention: int | None = None
    """Width of queries, if not ``hidden``."""
    tied: bool = False
    """Whether its head is its embedding."""
    biases: bool = False
    """Whether queries, keys and values have them."""
    head_norms: int | None = None
    """Width of the norms of queries' and keys' heads, if there are some."""

    embedding: str = field(default="model.embed_tokens.weight", init=False)
    lm_head: str = field(default="lm_head.weight", init=False)

    def shapes(self) -> Shapes:
        """Return name -> shape of every parameter."""
        hidden, ffn = self.hidden, self.ffn
        queries, keys = self.attention or hidden, self.kv or hidden
        shapes: Shapes = {self.embedding: (self.vocabulary, hidden)}
        for layer in range(self.layers):
            own: Shapes = {
                "self_attn.q_proj.weight": (queries, hidden),
                "self_attn.k_proj.weight": (keys, hidden),
                "self_attn.v_proj.weight": (keys, hidden),
                "self_attn.o_proj.weight": (hidden, queries),
                "mlp.gate_proj.weight": (ffn, hidden),
                "mlp.up_proj.weight": (ffn, hidden),
                "mlp.down_proj.weight": (hidden, ffn),
                "input_layernorm.weight": (hidden,),
                "post_attention_layernorm.weight": (hidden,),
            }
            if self.biases:
                widths = {"q": queries, "k": keys, "v": keys}
                own |= {f"self_attn.{name}_proj.bias": (width,) for name, width in widths.items()}
            if self.head_norms is not None:
                own |= {f"self_attn.{name}_norm.weight": (self.head_norms,) for name in "qk"}
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes[self.lm_head] = (self.vocabulary, hidden)
        return shapes


@dataclass(frozen=True)
class GPT2:
    """The sizes of a GPT-2, whose head is its embedding."""

    source: str
    hidden: int
    layers: int
    vocabulary: int = 50257
    positions: int = 1024

    tied: bool = field(default=True, init=False)
    embedding: str = field(default="transformer.wte.weight", init=False)
    lm_head: str = field(default="lm_head.weight", init=False)

    def shapes(self) -> Shapes:
        """Return name -> shape of every parameter. Positions are an embedding, too."""
        hidden = self.hidden
        shapes: Shapes = {
            self.embedding: (self.vocabulary, hidden),
            "transformer.wpe.weight": (self.positions, hidden),
        }
        for layer in range(self.layers):
            widths = {
                "attn.c_attn": (3 * hidden, hidden),
                "attn.c_proj": (hidden, hidden),
                "mlp.c_fc": (4 * hidden, hidden),
                "mlp.c_proj": (hidden, 4 * hidden),
            }
            for name in ("ln_1", "ln_2"):
                shapes |= {f"transformer.h.{layer}.{name}.{kind}": (hidden,) for kind in ("weight", "bias")}
            for name, shape in widths.items():
                shapes[f"transformer.h.{layer}.{name}.weight"] = shape
                shapes[f"transformer.h.{layer}.{name}.bias"] = shape[:1]
        shapes |= {f"transformer.ln_f.{kind}": (hidden,) for kind in ("weight", "bias")}
        return shapes


Model = Llama | GPT2

_GALORE = "GaLore, configs/llama_{}.json (github.com/jiaweizzhao/GaLore), the Llamas of papers on optimizers"
_LLAMA = "LLaMA (arXiv 2302.13971), table 2; feed-forward as in its released code"
_LLAMA_2 = "Llama 2 (arXiv 2307.09288), and config.json of meta-llama/Llama-2-{}-hf"
_LLAMA_3 = "The Llama 3 Herd of Models (arXiv 2407.21783), table 3"
_QWEN_25 = "Qwen2.5 Technical Report (arXiv 2412.15115), table 1, and config.json of Qwen/Qwen2.5-{}"
_QWEN_3 = "Qwen3 Technical Report (arXiv 2505.09388), table 1, and config.json of Qwen/Qwen3-{}"
_GPT_2 = "Language Models are Unsupervised Multitask Learners (2019), table 2; released as {}"


def _qwen25(size: str, hidden: int, ffn: int, layers: int, kv: int, tied: bool = False) -> Llama:
    vocabulary = 151936 if tied or size == "3B" else 152064
    return Llama(_QWEN_25.format(size), vocabulary, hidden, ffn, layers, kv, tied=tied, biases=True)


def _qwen3(
    size: str, hidden: int, ffn: int, layers: int, attention: int | None = None, tied: bool = False
) -> Llama:
    source = _QWEN_3.format(size)
    return Llama(source, 151936, hidden, ffn, layers, 1024, attention, tied=tied, head_norms=128)


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "llama-60m": Llama(_GALORE.format("60m"), 32000, 512, 1376, 8),
        "llama-130m": Llama(_GALORE.format("130m"), 32000, 768, 2048, 12),
        "llama-350m": Llama(_GALORE.format("350m"), 32000, 1024, 2736, 24),
        "llama-1b": Llama(_GALORE.format("1b"), 32000, 2048, 5461, 24),
        "llama-7b": Llama(_LLAMA, 32000, 4096, 11008, 32),
        "llama-13b": Llama(_LLAMA, 32000, 5120, 13824, 40),
        "llama-70b": Llama(_LLAMA_2.format("70b"), 32000, 8192, 28672, 80, kv=1024),
        "llama-405b": Llama(_LLAMA_3, 128256, 16384, 53248, 126, kv=1024),
        "llama3-8b": Llama(_LLAMA_3, 128256, 4096, 14336, 32, kv=1024),
        "llama3-70b": Llama(_LLAMA_3, 128256, 8192, 28672, 80, kv=1024),
        "llama3.2-1b": Llama(
            "config.json of meta-llama/Llama-3.2-1B", 128256, 2048, 8192, 16, kv=512, tied=True
        ),
        "gpt2": GPT2(_GPT_2.format("gpt2"), 768, 12),
        "gpt2-medium": GPT2(_GPT_2.format("gpt2-medium"), 1024, 24),
        "gpt2-large": GPT2(_GPT_2.format("gpt2-large"), 1280, 36),
        "gpt2-xl": GPT2(_GPT_2.format("gpt2-xl"), 1600, 48),
        "qwen2.5-0.5b": _qwen25("0.5B", 896, 4864, 24, 128, tied=True),
        "qwen2.5-1.5b": _qwen25("1.5B", 1536, 8960, 28, 256, tied=True),
        "qwen2.5-7b": _qwen25("7B", 3584, 18944, 28, 512),
        "qwen2.5-72b": _qwen25("72B", 8192, 29568, 80, 1024),
        "qwen3-0.6b": _qwen3("0.6B", 1024, 3072, 28, 2048, tied=True),
        "qwen3-8b": _qwen3("8B", 4096, 12288, 36),
        "qwen3-32b": _qwen3("32B", 5120, 25600, 64, 8192),
    }
)
"""Name -> sizes. ``llama-1b`` is also known as 1.3B."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {"llama-1.3b": "llama-1b", "llama2-7b": "llama-7b", "llama2-13b": "llama-13b", "llama2-70b": "llama-70b"}
)


def find(
    name: str,
    argument: str = "model_or_config",
    otherwise: str = ", or give the model itself, built on torch.device('meta') if it is large",
) -> Model:
    """Return the sizes of a published model; letters may be of either case.

    Args:
        name: what the model is called.
        argument, otherwise: for the message: what the name was given as, and its end, what else can be given.

    Raises:
        ValueError: there is none of this name.
    """
    wanted = name.lower()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in MODELS:
        return MODELS[wanted]
    close = difflib.get_close_matches(wanted, [*MODELS, *ALIASES], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(
        f"{argument}: got {name!r}, which is no published model that is known here{hint}; expected one of "
        f"{', '.join(MODELS)}{otherwise}"
    )


def numel(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many parameters there are."""
    return sum(map(prod, shapes.values()))


def listing() -> str:
    """Return the table of ``python -m sage_ext plan --list``."""
    lines = [f"{'name':14}{'parameters':>12}  published in"]
    for name, model in MODELS.items():
        count = numel(model.shapes())
        size = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
        lines.append(f"{name:14}{size:>12}  {model.source}")
    return "\n".join([*lines, "", *(f"{alias} is {name}" for alias, name in ALIASES.items())])
