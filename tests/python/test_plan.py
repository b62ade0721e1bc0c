"""What ``sage_ext.plan`` says before training: state, traffic, messages, time, models, errors, and how it is
said. Its memory is compared with what is allocated in ``test_plan_memory.py``."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TinyLanguageModel
from torch import nn

import sage_ext
from sage_ext import FusedHybrid, FusedLion
from sage_ext.optimizers.presets import PRESETS
from sage_ext.planning import cli, shapes
from sage_ext.planning.hardware import CLUSTERS, H100

HERE = Path(__file__).parent


# --- state, traffic and messages ---


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_that_of_the_optimizer(preset: str, dtype: torch.dtype) -> None:
    model = TinyLanguageModel().to(dtype)
    optimizer = FusedHybrid(model, preset)
    described = optimizer.describe()
    chosen = sage_ext.plan(model, preset).chosen
    assert chosen.state_bytes == described.state_bytes
    assert chosen.state_by_rule == {rule: total.state_bytes for rule, total in described.totals.items()}
    assert chosen.parameter_bytes == sum(param.nbytes for param in model.parameters())
    assert sage_ext.plan(model, optimizer).chosen.groups == chosen.groups


def test_adamw_is_torchs_with_moments_in_fp32() -> None:
    model = TinyLanguageModel()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer.step()
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert sage_ext.plan(model).adamw.state_bytes == held
    # 16-bit parameters change the parameters' bytes alone.
    other = sage_ext.plan(model, precision="bf16")
    assert other.adamw.state_bytes == held
    assert 2 * other.adamw.parameter_bytes == sum(param.nbytes for param in model.parameters())
    assert {param.dtype for param in model.parameters()} == {torch.float32}


def test_adamw_moves_22_bytes_a_parameter_in_bf16() -> None:
    found = sage_ext.plan("llama-7b", precision="bf16")
    assert found.adamw.moved_bytes == 22 * found.numel
    assert found.adamw.memory_seconds == pytest.approx(22 * found.numel / 3.35e12)
    assert found.adamw.exchange_seconds == 0.0


@pytest.mark.parametrize("name", ["FusedSAGE", "FusedLion", "FusedSignSGD", "FusedALIAS", "FusedAdamW"])
def test_traffic_is_that_of_the_benchmarks(name: str) -> None:
    sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
    import contenders

    from sage_ext import optimizers

    model = nn.Linear(96, 64, bias=False, dtype=torch.bfloat16)
    model.weight.grad = torch.full_like(model.weight, 0.5)
    optimizer = getattr(optimizers, name)(model.named_parameters())
    optimizer.step()
    assert sage_ext.plan(model, name).chosen.moved_bytes == sum(contenders.traffic(optimizer))


def test_torchs_traffic_needs_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
    import contenders

    monkeypatch.setitem(sys.modules, "sage_ext.planning.traffic", None)  # as where it could not be built
    model = nn.Linear(8, 4, bias=False)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer.step()
    assert contenders.traffic(optimizer) == (4 * 4 * 32, 3 * 4 * 32)


def test_pieces_share_out_what_is_cut() -> None:
    whole = sage_ext.plan("llama-7b", "lion").chosen
    eighth = sage_ext.plan("llama-7b", "lion", devices=8).chosen
    assert 8 * eighth.parameter_bytes == whole.parameter_bytes  # 8 divides all of its rows
    assert 8 * eighth.state_bytes == whole.state_bytes
    assert 8 * eighth.moved_bytes == whole.moved_bytes
    assert whole.messages == 0
    assert eighth.messages == 1
    # Of the column sums the first are in fp64, with a flag for every matrix, and those of four more in fp32.
    columns, matrices = 32 * (6 * 4096 + 11008), 32 * 7
    assert eighth.message_bytes == 8 * (columns + matrices)
    of_paper = sage_ext.plan("llama-7b", "lion", devices=8, sinkgd={"iterations": 5}).chosen
    assert of_paper.messages == 5
    assert of_paper.message_bytes == 8 * (columns + matrices) + 4 * 4 * columns
    uneven = sage_ext.plan({"w": (10, 6), "b": (3,)}, devices=4, embeddings=[], precision="fp32").chosen
    assert uneven.parameter_bytes == 4 * (3 * 6 + 1)  # of the device that has most


def test_replicas_of_whole_parameters_exchange_nothing() -> None:
    found = sage_ext.plan("gpt2", devices=(8, 1))
    assert (found.layout, found.chosen.messages) == ("DDP on 8 devices", 0)
    assert found.chosen.state_bytes == sage_ext.plan("gpt2").chosen.state_bytes
    hybrid = sage_ext.plan("gpt2", devices=(4, 8)).chosen
    pure = sage_ext.plan("gpt2", devices=8).chosen
    assert (hybrid.messages, hybrid.message_bytes) == (pure.messages, pure.message_bytes)
    assert hybrid.sent_bytes == pure.sent_bytes == round(2 * 7 / 8 * pure.message_bytes)


def test_signs_of_pieces_take_a_byte() -> None:
    numel = sage_ext.plan("llama-60m").numel
    alone = sage_ext.plan("llama-60m", "FusedALIAS").chosen
    two = sage_ext.plan("llama-60m", "FusedALIAS", devices=2).chosen
    assert alone.state_bytes == pytest.approx(0.25 * numel, rel=1e-4)
    assert two.state_bytes == pytest.approx(numel / 2, rel=1e-4)
    assert two.moved_bytes > alone.moved_bytes  # they are packed and unpacked in every step


def test_time_follows_the_hardware() -> None:
    times = {name: sage_ext.plan("llama-7b", hardware=name).chosen.seconds for name in CLUSTERS}
    assert sorted(times, key=lambda name: -(times[name] or 0.0)) == ["a100", "h100", "h200", "b200"]
    assert sage_ext.plan("llama-7b", hardware=H100._replace(memory=1e12)).chosen.memory_seconds == (
        sage_ext.plan("llama-7b", bandwidth=1e12).chosen.memory_seconds
    )
    assert sage_ext.plan("llama-7b", hardware="cpu").chosen.seconds is None
    assert sage_ext.plan("llama-7b", hardware="cpu", bandwidth=5e10).chosen.seconds is not None
    assert not sage_ext.plan("llama-70b", "sage").fits
    assert sage_ext.plan("llama-70b", "sage", devices=8).fits


# --- models ---


# From their model cards and, for GaLore's, from the names that papers give them.
PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-70b": 68_976_648_192,
    "llama-405b": 405_853_388_800,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_parameters(name: str) -> None:
    assert shapes.numel(shapes.MODELS[name].shapes()) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "millions"), [("llama-60m", 58), ("llama-130m", 134), ("llama-350m", 368), ("llama-1b", 1339)]
)
def test_galores_models_have_theirs(name: str, millions: int) -> None:
    assert round(shapes.numel(shapes.MODELS[name].shapes()) / 1e6) == millions
    assert {*PUBLISHED, "llama-60m", "llama-130m", "llama-350m", "llama-1b"} == set(shapes.MODELS)


@pytest.mark.parametrize("name", ["llama-70b", "gpt2", "qwen2.5-0.5b", "qwen3-32b"])
def test_shapes_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = dataclasses.replace(shapes.MODELS[name], layers=1)
    if isinstance(model, shapes.GPT2):
        config = transformers.GPT2Config(n_embd=model.hidden, n_layer=1)
    else:
        head = model.head_norms or (64 if model.hidden < 1024 else 128)
        kind = transformers.LlamaConfig
        if name.startswith("qwen"):
            kind = transformers.Qwen3Config if model.head_norms else transformers.Qwen2Config
        config = kind(
            vocab_size=model.vocabulary,
            hidden_size=model.hidden,
            intermediate_size=model.ffn,
            num_hidden_layers=1,
            num_attention_heads=(model.attention or model.hidden) // head,
            num_key_value_heads=(model.kv or model.hidden) // head,
            tie_word_embeddings=model.tied,
            **({"head_dim": head} if model.head_norms else {}),
        )
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config)
    if model.tied:
        built.tie_weights()
    found = {key: tuple(param.shape) for key, param in built.named_parameters()}
    if isinstance(model, shapes.GPT2):  # whose linear layers lie the other way round in transformers
        linear = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
        found = {key: shape[::-1] if key.endswith(linear) else shape for key, shape in found.items()}
    assert found == model.shapes()
    # From the configuration, from the module on the meta device and from the name come the same numbers.
    by_shapes = {"embeddings": [n for n in found if "embed" in n or "wte" in n or "wpe" in n]}
    by_shapes["lm_head"] = [model.embedding if model.tied else model.lm_head]
    plans = [
        sage_ext.plan(config, precision="bf16"),
        sage_ext.plan(built, precision="bf16"),
        sage_ext.plan(found, **by_shapes),
    ]
    if not isinstance(model, shapes.GPT2):
        assert len({json.dumps(plan.chosen.as_dict()) for plan in plans}) == 1
    assert len({plan.chosen.state_bytes for plan in plans}) == 1


def test_the_largest_model_takes_no_memory() -> None:
    """405 billion parameters, on the meta device from the beginning."""
    found = sage_ext.plan("llama-405b", "alias", devices=(4, 128))
    assert found.numel == PUBLISHED["llama-405b"]
    assert found.chosen.messages == 2


def test_frozen_parameters_are_left_out() -> None:
    model = TinyLanguageModel()
    model.up.requires_grad_(False)
    rest = sum(param.numel() for param in model.parameters() if param.requires_grad)
    for preset in ("sage", "FusedLion"):
        assert sage_ext.plan(model, preset).numel == rest


def test_options_go_to_the_optimizer() -> None:
    of_paper = sage_ext.plan("llama-60m", "sage", devices=2, sinkgd={"iterations": 5}).chosen
    assert of_paper.messages > sage_ext.plan("llama-60m", "sage", devices=2).chosen.messages
    narrow = sage_ext.plan("llama-60m", "FusedLion", precision="fp32", state_dtype=torch.bfloat16).chosen
    assert 2 * narrow.state_bytes == narrow.parameter_bytes
    assert sage_ext.plan("gpt2", "scale", tied="lm_head").chosen.state_bytes > 0


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_or_config": "llama-7"}, r"model_or_config: got 'llama-7'.*did you mean 'llama-7b'"),
        ({"preset": "adam"}, r"preset: got 'adam', expected a preset of FusedHybrid \('sage'.*'FusedLion'"),
        ({"preset": 3}, r"preset: got 3"),
        ({"devices": 0}, r"devices: got 0, expected a number of devices from 1"),
        ({"devices": True}, r"devices: got True"),
        ({"devices": (2, 2, 2)}, r"devices: got \(2, 2, 2\)"),
        ({"precision": "fp8"}, r"precision: got 'fp8', expected 'fp32'.*autocast"),
        ({"precision": torch.float64}, r"precision: got torch.float64"),
        ({"hardware": "v100"}, r"hardware: got 'v100', expected 'a100'.*Cluster"),
        ({"bandwidth": 0}, r"bandwidth: got 0, expected bytes a second"),
        ({"threads": 0}, r"threads: got 0"),
        ({"model_or_config": "gpt2", "preset": "scale"}, r"tied=\"embedding\" or tied=\"lm_head\""),
        ({"model_or_config": {"w": (2, 3)}}, r"embeddings: .*do not tell"),
        ({"preset": "FusedSinkGD"}, r"norm.weight.*needs 2 or more dimensions"),
        ({"sinkgd": {"steps": 3}}, r"sinkgd: unknown hyperparameter 'steps'"),
    ],
)
def test_errors_name_the_argument_and_the_cure(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sage_ext.plan(**{"model_or_config": "llama-60m", **arguments})


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model_or_config: got list, expected a module"):
        sage_ext.plan([torch.ones(2)])
    optimizer = FusedLion([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="tied: preset is an optimizer"):
        sage_ext.plan(None, optimizer, tied="lm_head")


# --- table, dict, picture, command line ---


def test_table() -> None:
    text = str(sage_ext.plan("llama-7b", "sage", devices=8, precision="bf16"))
    lines = {line.strip().split("  ")[0]: line for line in text.splitlines()}
    assert text.splitlines()[0] == "llama-7b: 6.74 B parameters in bf16, FSDP2 over 8 devices"
    assert "H100" in text
    assert text.splitlines()[3].split() == ["sage", "hybrid", "AdamW"]
    for label in ("gradients", "state", "transient in a step", "peak in a step", "messages a step"):
        assert label in lines
    assert lines["sinkgd (matrix)"].split()[-2:] == ["0", "B"]
    assert all(len(line) < 100 for line in text.splitlines())


def test_dict_has_every_number_and_is_json() -> None:
    found = sage_ext.plan("llama-60m", "alias", devices=4)
    back = json.loads(json.dumps(found.as_dict()))
    assert (back["model"], back["parameters"], back["mesh"]) == ("llama-60m", found.numel, [1, 4])
    for key, budget in (("optimizer", found.chosen), ("adamw", found.adamw)):
        numbers = back[key]
        held = ("parameter_bytes", "gradient_bytes", "state_bytes", "transient_bytes")
        assert sum(numbers[name] for name in held) == numbers["peak_bytes"] == budget.peak_bytes
        assert sum(group["state_bytes"] for group in numbers["groups"]) == numbers["state_bytes"]
        assert numbers["seconds"] == pytest.approx(numbers["memory_seconds"] + numbers["exchange_seconds"])


@pytest.mark.parametrize(
    "arguments", [{"preset": "alias", "devices": 8}, {"preset": "FusedSAGE", "hardware": "cpu"}]
)
def test_picture(arguments: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = sage_ext.plan("llama-7b", **arguments)
    found.draw(tmp_path / "plan.svg")
    text = (tmp_path / "plan.svg").read_text()
    assert found.chosen.name in text
    assert "AdamW" in text
    found.draw(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 5_000


def test_without_matplotlib_there_is_a_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        sage_ext.plan("llama-60m").draw(tmp_path / "plan.png")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--params", "llama-7b", "--preset", "sage", "--devices", "8", "--precision", "bf16"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.rstrip("\n") == str(sage_ext.plan("llama-7b", "sage", devices=8, precision="bf16"))
    assert cli.main([*arguments, "--devices", "4x8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == [4, 8]
    assert cli.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in shapes.MODELS)
    assert cli.main(["--params", "gpt2", "--preset", "scale"]) == 2
    assert "--tied lm_head" in capsys.readouterr().err
    assert cli.main(["--params", "lama-7b"]) == 2
    said = capsys.readouterr().err
    assert "plan: --params: got 'lama-7b', which is no" in said
    assert "(did you mean 'llama-7b'?)" in said
    assert said.endswith("(--list shows them), or --config with a config.json\n")
    assert cli.main(["--config", "no/such/folder"]) == 2
    assert "there is no no/such/folder" in capsys.readouterr().err


def test_command_line_takes_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    config.save_pretrained(tmp_path)
    assert cli.main(["--config", str(tmp_path), "--json"]) == 0
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    assert json.loads(capsys.readouterr().out)["parameters"] == sum(p.numel() for p in model.parameters())


def test_what_reads_its_output_may_stop() -> None:
    """``plan ... | head``: no error is printed where a pipe is closed."""
    command = f"{sys.executable} -m sage_ext plan --params llama-60m --json | true"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, cwd=HERE.anchor)
    assert (found.returncode, found.stderr) == (0, "")


def test_it_is_a_command_of_the_module() -> None:
    command = [sys.executable, "-m", "sage_ext", "plan", "--params", "llama-60m", "--preset", "lion"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.anchor)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("llama-60m: 58.07 M parameters in bf16, 1 device")
