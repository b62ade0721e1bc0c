"""Which role a parameter plays: embedding, output head, other matrix, or vector. Each role has its rule.

An embedding is the weight of an ``nn.Embedding`` or ``nn.EmbeddingBag`` module (and so whatever is tied to
it), what PEFT calls ``lora_embedding_A``, ``lora_embedding_B`` and ``trainable_tokens_delta``, or a parameter
that the caller names. It is never guessed from a shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from sage_ext.checks import brief

__all__ = ["ROLES", "Routed", "route"]

ROLES = ("embedding", "lm_head", "matrix", "vector")
"""What a parameter may be in a model."""


class Routed(NamedTuple):
    """A trainable parameter, its name and its role."""

    name: str
    """In the model, or as it was given."""
    param: Tensor
    """The parameter itself."""
    role: str
    """One of :data:`ROLES`."""
    output_dim: int = 0
    """The dimension, of the last two, that has a matrix's output units. 0 in the ``[out, in]`` of
    ``nn.Linear``, 1 in an embedding's ``[V, d]`` and in the ``[in, out]`` of transformers' ``Conv1D``."""
    decays: bool = True
    """Whether weight decay is for it."""
    is_tied: bool = False
    """Whether it is embedding and head in one, whichever role it has."""


def route(
    model_or_named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
    *,
    embeddings: str | Sequence[str] | None = None,
    lm_head: str | Sequence[str] | None = None,
    tied: str | None = "embedding",
    no_decay: str | Sequence[str] = (),
) -> list[Routed]:
    """Return the role of every trainable parameter, in the order in which the model lists them.

    Args:
        model_or_named_parameters: a module, or (name, parameter) pairs. Parameters with
            ``requires_grad=False`` are left out. A tied parameter is listed once, under its first name.
        embeddings: names of parameters that are embeddings, beside those that are known to be (see above).
            Required for pairs, which do not tell: an empty list says that there are none.
        lm_head: names of the parameters of the output head; ``[]`` says that there is none. For a module the
            default is the weight of ``get_output_embeddings()`` where it or a module in it has that method
            (Hugging Face models do), and else nothing: the head is then a matrix like any other.
        tied: the role of a parameter that is an embedding and the head (or that an ``nn.Linear`` shares with
            an embedding, where ``lm_head`` is not given): ``"embedding"`` or ``"lm_head"``; None refuses it.
        no_decay: names of parameters that weight decay is not for.

    Returns:
        One entry a parameter. The first role that fits is taken, of ``"embedding"`` (a tied head too, unless
        ``tied`` says otherwise), ``"lm_head"``, ``"vector"`` for fewer than two dimensions, and ``"matrix"``.

    Raises:
        TypeError: neither a module nor pairs, or something else than names.
        ValueError: nothing to train, a name that does not exist or exists twice, pairs without
            ``embeddings``, or a tied parameter without ``tied``.
    """
    tables_named = _names(embeddings, "embeddings")
    heads_named = _names(lm_head, "lm_head")
    without_decay = _names(no_decay, "no_decay")
    if isinstance(model_or_named_parameters, nn.Module):
        return _route_module(model_or_named_parameters, tables_named, heads_named, tied, without_decay)
    pairs = _pairs(model_or_named_parameters)
    if embeddings is None:
        raise ValueError(
            "embeddings: (name, parameter) pairs do not tell which parameters are embeddings; pass the model "
            "itself, or embeddings=[names] and lm_head=[names], or embeddings=[] if there are none"
        )
    params = dict(pairs)
    tables = _find(tables_named, params, "embeddings")
    heads = _find(heads_named, params, "lm_head")
    undecayed = _find(without_decay, params, "no_decay")
    return _assign(pairs, _Kinds(tables, heads, set(), undecayed), tied)


def heads_not_named(routed: Sequence[Routed]) -> list[str]:
    """Return what looks like an output head and has been taken for any other matrix: where no head is known,
    the matrices that have as many outputs as the largest embedding has tokens, or those of a padded
    vocabulary, and fewer inputs. Layers of a stack look so by chance: of them the last, if there is no other.
    """
    if any(entry.role == "lm_head" or entry.is_tied for entry in routed):
        return []
    tables = [e for e in routed if e.role == "embedding" and e.param.ndim == 2 and e.output_dim == 1]
    tokens = max((entry.param.shape[0] for entry in tables), default=0)
    outputs = {
        entry.name: entry.param.shape[entry.output_dim]
        for entry in routed
        if entry.role == "matrix"
        and entry.param.ndim == 2
        and entry.param.shape[entry.output_dim] > entry.param.shape[1 - entry.output_dim]
    }
    multiple = 1024 if tokens >= 1024 else 128
    padded = -(-tokens // multiple) * multiple
    exact = [name for name, count in outputs.items() if count == tokens]
    alike = exact or [name for name, count in outputs.items() if tokens < count <= padded]
    apart = [name for name in alike if not any(part.isdigit() for part in name.split("."))]
    return apart or alike[-1:]


def head_advice(routed: Sequence[Routed]) -> str | None:
    """Return what to say where a head has been taken for any other matrix."""
    heads = heads_not_named(routed)
    if not heads:
        return None
    which = heads[0] if len(heads) == 1 else f"one of {', '.join(heads)}"
    return (
        f"lm_head: no output head is named, and {which} looks like one, with an output for each token of the "
        "embedding. As it is, it gets the rule of any other matrix, with which a head may train far worse: "
        f"give lm_head={heads[-1:]!r}, or lm_head=[] if there is none"
    )


class _Kinds(NamedTuple):
    """Identities of parameters that are of a kind, before it is decided which role they play."""

    tables: set[int]
    """Embeddings of one row a token."""
    heads: set[int]
    transposed: set[int]
    """Matrices ``[in, out]``."""
    undecayed: set[int]


def _route_module(
    model: nn.Module,
    embeddings: list[str] | None,
    lm_head: list[str] | None,
    tied: str | None,
    no_decay: list[str] | None,
) -> list[Routed]:
    # Every name of a tied parameter may be used to name it; it is listed under the first.
    params = dict(model.named_parameters(remove_duplicate=False))
    modules = list(model.modules())
    tables = {
        id(_weight(module)) for module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    tables |= _find(embeddings, params, "embeddings")
    heads = _output_weights(model) if lm_head is None else _find(lm_head, params, "lm_head")
    if lm_head is None:
        # A linear layer on an embedding's weight is a tied head, whether or not the model names its head.
        heads |= tables & {id(_weight(module)) for module in modules if isinstance(module, nn.Linear)}
    transposed = {id(_weight(module)) for module in modules if _is_conv1d(module)}
    undecayed = _find(no_decay, params, "no_decay")
    return _assign(list(model.named_parameters()), _Kinds(tables, heads, transposed, undecayed), tied)


def _weight(module: nn.Module) -> Tensor | None:
    """A module's own weight. Not by its name alone: that of a parametrized one is computed, and spectral norm
    goes a step on in doing so."""
    return module._parameters.get("weight")


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of Hugging Face's GPT-2, which stores its weight as ``[in, out]``."""
    return any(
        cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        for cls in type(module).__mro__
    )


def _is_lora_embedding(name: str) -> bool:
    """Whether PEFT calls it so: ``lora_embedding_A`` is ``[r, V]`` and ``lora_embedding_B`` ``[d, r]``."""
    return not {"lora_embedding_A", "lora_embedding_B"}.isdisjoint(name.split("."))


def _is_token_rows(name: str) -> bool:
    """Whether PEFT calls it rows of an embedding that are trained alone: ``[tokens, d]``."""
    return "trainable_tokens_delta" in name.split(".")


def _assign(pairs: list[tuple[str, Tensor]], kinds: _Kinds, tied: str | None) -> list[Routed]:
    routed = []
    for name, param in pairs:
        if not param.requires_grad:
            continue
        is_table = id(param) in kinds.tables or _is_token_rows(name)
        if is_table and id(param) in kinds.heads:
            if tied is None:
                raise ValueError(
                    f"{name}: embedding and output head are one tied parameter, and these rules differ for "
                    'the two; choose with tied="embedding" or tied="lm_head", or give group dicts'
                )
            role = tied
        elif is_table or _is_lora_embedding(name):
            role = "embedding"
        elif id(param) in kinds.heads:
            role = "lm_head"
        else:
            role = "matrix" if param.ndim >= 2 else "vector"
        outputs_last = id(param) in kinds.transposed or (is_table and role == "embedding")
        decays, is_tied = id(param) not in kinds.undecayed, is_table and id(param) in kinds.heads
        routed.append(Routed(name, param, role, int(outputs_last), decays, is_tied))
    if not routed:
        raise ValueError("model_or_named_parameters: holds no parameter with requires_grad=True")
    return routed


def _output_weights(model: nn.Module) -> set[int]:
    """The weights of the output heads that the model names, or where it has no word for that, modules in it:
    what a wrapper wraps, or several models in one."""
    getter = getattr(model, "get_output_embeddings", None)
    if not callable(getter):
        return set().union(*map(_output_weights, model.children()))
    try:
        head = getter()
    except NotImplementedError:  # the base class of Hugging Face models, for a model without a head
        return set()
    weight = getattr(head, "weight", None)
    return {id(weight)} if isinstance(weight, Tensor) else set()


def _pairs(candidates: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    expected = "a module, (name, parameter) pairs such as model.named_parameters(), or group dicts"
    if isinstance(candidates, (Tensor, str)) or not isinstance(candidates, Iterable):
        raise TypeError(f"model_or_named_parameters: got {type(candidates).__name__}, expected {expected}")
    pairs = list(candidates)
    if not pairs:
        raise ValueError(
            "model_or_named_parameters: there are no parameters in it; a generator, such as "
            "model.named_parameters(), is empty where it has been gone through before: make a new one, or "
            "pass the model itself"
        )
    if any(isinstance(item, Tensor) for item in pairs):
        raise ValueError(
            "model_or_named_parameters: bare parameters have no names, so their roles cannot be known; pass "
            "the model, model.named_parameters() with embeddings=[names] and lm_head=[names], or group dicts "
            'with a "rule" each'
        )
    seen: set[str] = set()
    for item in pairs:
        if not (
            isinstance(item, tuple)
            and len(item) == 2
            and isinstance(item[0], str)
            and isinstance(item[1], Tensor)
        ):
            raise TypeError(
                f"model_or_named_parameters: got an item {brief(item, 60, 'of type')}, expected {expected}"
            )
        if item[0] in seen:
            raise ValueError(f"model_or_named_parameters: the name {item[0]!r} occurs twice")
        seen.add(item[0])
    return pairs


def _names(names: str | Sequence[str] | None, argument: str) -> list[str] | None:
    if names is None:
        return None
    is_one = isinstance(names, (str, Tensor)) or not isinstance(names, Iterable)
    found: list[Any] = [names] if is_one else list(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(
                f"{argument}: got {type(name).__name__}, expected a parameter's name or a list of names, as "
                'in model.named_parameters(), such as "head.weight"'
            )
    return found


def _find(names: list[str] | None, params: Mapping[str, Tensor], argument: str) -> set[int]:
    """Return the identities of the named parameters."""
    for name in names or ():
        if name not in params:
            close = difflib.get_close_matches(str(name), params, n=3, cutoff=0.3)
            hint = f"; close to it: {', '.join(map(repr, close))}" if close else ""
            raise ValueError(f"{argument}: there is no parameter named {name!r}{hint}")
    return {id(params[name]) for name in names or ()}
