"""Which role a parameter gets, and from which kind of input."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from models import TinyLanguageModel
from torch import nn

from sage_ext import FusedHybrid, routing
from sage_ext.optimizers.presets import PRESETS


def roles(*args: object, **kwargs: object) -> dict[str, str]:
    return {entry.name: entry.role for entry in routing.route(*args, **kwargs)}


EXPECTED = {
    "embed.weight": "embedding",
    "up.weight": "matrix",
    "up.bias": "vector",
    "down.weight": "matrix",
    "down.bias": "vector",
    "norm.weight": "vector",
    "norm.bias": "vector",
    "head.weight": "lm_head",
}


def test_module() -> None:
    assert roles(TinyLanguageModel()) == EXPECTED


def test_tied_head_is_an_embedding_and_listed_once() -> None:
    found = roles(TinyLanguageModel(tied=True))
    assert found["embed.weight"] == "embedding"
    assert "head.weight" not in found


def test_named_head_of_a_tied_model_is_still_an_embedding() -> None:
    assert roles(TinyLanguageModel(tied=True), lm_head="head.weight")["embed.weight"] == "embedding"


def test_embeddings_are_never_guessed_from_shapes() -> None:
    model = nn.Sequential(nn.Linear(8, 50_000, bias=False), nn.Linear(50_000, 8, bias=False))
    assert set(roles(model).values()) == {"matrix"}
    assert roles(model, embeddings=["1.weight"]) == {"0.weight": "matrix", "1.weight": "embedding"}


def test_head_by_name_and_no_head() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    assert roles(model)["1.weight"] == "matrix"
    assert roles(model, lm_head="1.weight")["1.weight"] == "lm_head"
    assert roles(TinyLanguageModel(), lm_head=[])["head.weight"] == "matrix"


def test_model_that_names_no_head() -> None:
    class Encoder(nn.Module):
        def __init__(self, error: bool) -> None:
            super().__init__()
            self.embed, self.error = nn.Embedding(5, 3), error

        def get_output_embeddings(self) -> None:
            if self.error:
                raise NotImplementedError

    for error in (False, True):
        assert roles(Encoder(error)) == {"embed.weight": "embedding"}


def test_wrapped_model() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    assert roles(Wrapper(TinyLanguageModel())) == {f"module.{name}": role for name, role in EXPECTED.items()}


def test_models_in_a_module_name_their_heads() -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a": TinyLanguageModel(), "b": TinyLanguageModel()})
            self.classifier = nn.Linear(3, 2, bias=False)

    expected = {f"parts.{part}.{name}": role for part in "ab" for name, role in EXPECTED.items()}
    assert roles(Task()) == {**expected, "classifier.weight": "matrix"}


def test_frozen_parameters_are_left_out() -> None:
    model = TinyLanguageModel()
    model.embed.requires_grad_(False)
    model.up.bias.requires_grad_(False)
    assert set(EXPECTED) - set(roles(model)) == {"embed.weight", "up.bias"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        routing.route(model)


def test_more_dimensions_are_matrices_and_scalars_are_vectors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.zeros(2, 3, 4))
            self.gain = nn.Parameter(torch.zeros(()))

    assert roles(Odd()) == {"experts": "matrix", "gain": "vector"}


def test_named_parameters() -> None:
    model = TinyLanguageModel()
    found = roles(model.named_parameters(), embeddings=["embed.weight"], lm_head="head.weight")
    assert found == EXPECTED
    found = roles(model.named_parameters(), embeddings=[])
    assert found["embed.weight"] == found["head.weight"] == "matrix"


def test_errors_say_what_to_do() -> None:
    model = TinyLanguageModel()
    with pytest.raises(ValueError, match=r"embeddings: .*embeddings=\[\] if there are none"):
        routing.route(model.named_parameters())
    with pytest.raises(ValueError, match=r"bare parameters have no names.*model\.named_parameters"):
        routing.route(model.parameters())
    with pytest.raises(
        ValueError, match=r"embeddings: there is no parameter named 'embd.weight'; .*'embed.weight'"
    ):
        routing.route(model, embeddings="embd.weight")
    with pytest.raises(ValueError, match=r"lm_head: there is no parameter named 'zzz'$"):
        routing.route(model, lm_head=["zzz"])
    with pytest.raises(ValueError, match=r"the name 'a' occurs twice"):
        routing.route([("a", torch.zeros(2)), ("a", torch.zeros(2))], embeddings=[])
    with pytest.raises(TypeError, match=r"got int"):
        routing.route(3)
    with pytest.raises(TypeError, match=r"got an item 3"):
        routing.route([("a", torch.zeros(2)), 3], embeddings=[])
    with pytest.raises(TypeError, match=r"got Parameter"):
        routing.route(nn.Parameter(torch.zeros(2, 2)))


@pytest.mark.parametrize("tied", [False, True])
def test_hugging_face_llama(tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    found = roles(transformers.LlamaForCausalLM(config))
    assert found.pop("model.embed_tokens.weight") == "embedding"
    assert found.pop("lm_head.weight", None) == (None if tied else "lm_head")
    for name, role in found.items():
        assert role == ("vector" if "norm" in name else "matrix"), name


class TestOtherTables:
    def test_embedding_bag(self) -> None:
        model = nn.Sequential(nn.EmbeddingBag(20, 4), nn.Linear(4, 2))
        assert roles(model) == {"0.weight": "embedding", "1.weight": "matrix", "1.bias": "vector"}

    def test_lora_of_an_embedding(self) -> None:
        """As PEFT names and shapes it: A is [r, V], B is [d, r], and both are parameters of a
        ParameterDict."""

        class LoraEmbedding(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.base_layer = nn.Embedding(20, 8).requires_grad_(False)
                self.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(torch.zeros(2, 20))})
                self.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(torch.zeros(8, 2))})

        model = nn.ModuleDict({"embed": LoraEmbedding(), "lora_A": nn.Linear(8, 2, bias=False)})
        found = {entry.name: (entry.role, entry.output_dim) for entry in routing.route(model)}
        assert found == {
            "embed.lora_embedding_A.default": ("embedding", 0),
            "embed.lora_embedding_B.default": ("embedding", 0),
            "lora_A.weight": ("matrix", 0),
        }
        assert set(roles(model.named_parameters(), embeddings=[]).values()) == {"embedding", "matrix"}

    def test_where_a_matrix_has_its_outputs(self) -> None:
        model = TinyLanguageModel(tied=True)
        found = {entry.name: entry.output_dim for entry in routing.route(model)}
        assert found["embed.weight"] == 1
        assert found["up.weight"] == 0
        found = {entry.name: entry.output_dim for entry in routing.route(model, tied="lm_head")}
        assert found["embed.weight"] == 0

    def test_transformers_conv1d(self) -> None:
        pytest.importorskip("transformers")
        from transformers.pytorch_utils import Conv1D

        class Own(nn.Module):  # of the same name, and torch's layout
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(3, 5))

        Own.__name__ = "Conv1D"
        found = {entry.name: entry for entry in routing.route(nn.Sequential(Conv1D(10, 6), Own()))}
        assert (found["0.weight"].role, found["0.weight"].output_dim) == ("matrix", 1)
        assert found["1.weight"].output_dim == 0


class Headless(nn.Module):
    """With a head of a name that nobody knows."""

    def __init__(self, tokens: int = 40, positions: int = 16, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.positions = nn.Embedding(positions, width)
        self.up = nn.Linear(width, positions)
        self.classes = nn.Linear(width, tokens, bias=False)


class Stack(nn.Module):
    """A byte-level model: its layers have as many outputs as there are tokens."""

    def __init__(self, tokens: int, outputs: int, tied: bool = False) -> None:
        super().__init__()
        self.wte = nn.Embedding(tokens, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, tokens) for _ in range(2))
        if outputs:
            self.head = nn.Linear(16, outputs, bias=False)
        if tied:
            self.head.weight = self.wte.weight


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Stack(64, 64), ["head.weight"]),
        (Stack(64, 64, tied=True), []),
        (Stack(64, 0), ["blocks.1.weight"]),
        (nn.ModuleDict({"wte": nn.Embedding(300, 16), "head": nn.Linear(16, 320)}), ["head.weight"]),
        (nn.ModuleDict({"wte": nn.Embedding(300, 16), "up": nn.Linear(16, 400)}), []),
        (nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 40)), ["1.weight"]),
        (
            nn.ModuleDict({"e": nn.Embedding(40, 8), "a": nn.Linear(8, 40), "b": nn.Linear(8, 40)}),
            ["a.weight", "b.weight"],
        ),
    ],
)
def test_what_looks_like_a_head(model: nn.Module, expected: list[str]) -> None:
    routed = routing.route(model, tied="embedding")
    assert routing.heads_not_named(routed) == expected
    advice = routing.head_advice(routed)
    assert (advice is not None) == bool(expected)
    if advice is not None:
        assert f"lm_head={expected[-1:]!r}" in advice


@pytest.mark.parametrize("as_pairs", [False, True])
def test_what_looks_like_a_head_that_nobody_named_is_told(as_pairs: bool) -> None:
    model = Headless()
    source: Any = list(model.named_parameters()) if as_pairs else model
    given = {"embeddings": ["embed.weight", "positions.weight"]} if as_pairs else {}
    for preset in PRESETS:
        given["tied"] = "embedding"
        with pytest.warns(
            UserWarning, match=r"classes.weight looks like one, .* lm_head=\['classes.weight'\]"
        ):
            FusedHybrid(source, preset, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FusedHybrid(source, lm_head="classes.weight", **given)
        FusedHybrid(source, lm_head=[], **given)
    assert routing.heads_not_named(routing.route(nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8)))) == []
