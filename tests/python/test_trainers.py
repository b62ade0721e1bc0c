"""Inside the trainers that people use: they clip, scale, skip and hand over closures, each in its own way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import support
import torch
from models import BUILDERS, NAMES, TinyLanguageModel, loss_of
from torch import nn

from sage_ext.optimizers import FusedALIAS, FusedHybrid, FusedLion

Builder = Callable[..., Any]
every_optimizer = pytest.mark.parametrize("build", BUILDERS, ids=NAMES)


class TestLightning:
    @pytest.fixture(autouse=True)
    def lightning(self) -> Iterator[Any]:
        self.pl = pytest.importorskip("pytorch_lightning")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's own, about workers and loggers
            yield

    def fit(self, build: Builder, returns: bool = True, **trainer: Any) -> tuple[TinyLanguageModel, Any]:
        pl, held = self.pl, {}

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(5)
                self.model = TinyLanguageModel()

            def training_step(self, batch: Any, index: int) -> Any:
                loss = loss_of(self.model, index)
                if returns:
                    return loss
                held["optimizer"].set_loss(loss)
                return None

            def configure_optimizers(self) -> Any:
                held["optimizer"] = build(self.model)
                return held["optimizer"]

        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        module = Module()
        data = torch.utils.data.DataLoader(range(3))
        settings = {"accelerator": "cpu", "max_steps": 3, "enable_model_summary": False, **quiet, **trainer}
        pl.Trainer(**settings).fit(module, data)
        return module.model, held["optimizer"]

    @every_optimizer
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
    def test_clips_in_every_precision(self, build: Builder, precision: str) -> None:
        torch.manual_seed(5)
        before = TinyLanguageModel()
        model, _ = self.fit(build, precision=precision, gradient_clip_val=0.25)
        assert all(param.isfinite().all() for param in model.parameters())
        assert not torch.equal(before.up.weight, model.up.weight)

    def test_same_as_without_it(self) -> None:
        build = models.hybrid("sage")
        _model, optimizer = self.fit(build)
        torch.manual_seed(5)
        twin = TinyLanguageModel()
        other = build(twin)
        models.train(twin, other, range(3))
        support.assert_same_bits(models.snapshot(other), models.snapshot(optimizer))

    def test_first_loss_comes_through_its_closure(self) -> None:
        _, optimizer = self.fit(models.alias_lower_bound)
        assert float(optimizer.param_groups[0]["scalars"][0]) == 3

    def test_closure_that_returns_none(self) -> None:
        """A training_step that returns None: there is no gradient, and no loss that anybody would need."""
        _, optimizer = self.fit(models.alias_lower_bound, returns=False)
        assert optimizer.param_groups[0]["scalars"] is None


class TestAccelerate:
    @pytest.fixture(autouse=True)
    def accelerator(self) -> Iterator[Any]:
        accelerate = pytest.importorskip("accelerate")
        self.accelerate = accelerate
        self.accelerator = accelerate.Accelerator(cpu=True)
        yield
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)

    @every_optimizer
    def test_same_as_without_it(self, build: Builder) -> None:
        ends = []
        for wrapped in (True, False):
            torch.manual_seed(5)
            model = TinyLanguageModel()
            optimizer = build(model)
            if not wrapped:
                models.train(model, optimizer, range(3))
                ends.append(models.snapshot(optimizer))
                continue
            prepared, wrapper = self.accelerator.prepare(model, optimizer)
            for seed in range(3):
                wrapper.zero_grad()
                loss = loss_of(prepared, seed)
                self.accelerator.backward(loss)
                optimizer.set_loss(loss)
                wrapper.step()
                assert not wrapper.step_was_skipped
            ends.append(models.snapshot(optimizer))
        support.assert_same_bits(*ends)

    @every_optimizer
    @pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
    def test_clips_in_every_precision(self, build: Builder, precision: str) -> None:
        """As a loop of one's own does it. On a CPU accelerate makes no scaler for fp16: it is given one."""
        kind = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = self.accelerate.Accelerator(cpu=True, mixed_precision=precision)
        scalers = [
            torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=precision == "fp16") for _ in range(2)
        ]
        if precision == "fp16":
            accelerator.scaler, accelerator.native_amp = scalers[0], True
        torch.manual_seed(5)
        model = TinyLanguageModel()
        twin = copy.deepcopy(model)
        optimizers = [build(m) for m in (model, twin)]
        prepared, wrapper = accelerator.prepare(model, optimizers[0])
        for seed in range(3):
            wrapper.zero_grad()
            loss = loss_of(prepared, seed)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(prepared.parameters(), 0.25)
            optimizers[0].set_loss(loss)
            wrapper.step()

            optimizers[1].zero_grad()
            with torch.autocast("cpu", kind, enabled=precision != "no"):
                loss = loss_of(twin, seed)
            scalers[1].scale(loss).backward()
            scalers[1].unscale_(optimizers[1])
            other = nn.utils.clip_grad_norm_(twin.parameters(), 0.25)
            optimizers[1].set_loss(loss)
            scalers[1].step(optimizers[1])
            scalers[1].update()
            assert 0.25 < float(norm) == float(other)
        support.assert_same_bits(*(models.snapshot(optimizer) for optimizer in optimizers))

    @every_optimizer
    def test_skipped_steps_are_reported(self, build: Builder) -> None:
        """What accelerate does with mixed_precision="fp16", whose scaler it makes on a GPU only."""
        model = TinyLanguageModel()
        optimizer = build(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        wrapper = self.accelerate.optimizer.AcceleratedOptimizer(optimizer, scaler=scaler)
        for seed, overflows in enumerate((True, False, True)):
            wrapper.zero_grad()
            loss = loss_of(model, seed)
            scaler.scale(loss).backward()
            optimizer.set_loss(loss)
            if overflows:
                model.up.weight.grad[0, 0] = float("inf")
            before = models.snapshot(optimizer)
            wrapper.step()
            assert wrapper.step_was_skipped is overflows
            assert overflows is all(map(torch.equal, before, models.snapshot(optimizer)))


class TestTransformersTrainer:
    @pytest.mark.parametrize("preset", ["sage", "scale"])
    def test_runs_and_resumes(self, preset: str, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        rows = [{"input_ids": row, "labels": row} for row in torch.arange(64).reshape(16, 4) % 29]

        def run(steps: int, resume: Any = None) -> list[torch.Tensor]:
            config = transformers.GPT2Config(
                vocab_size=29,
                n_positions=8,
                n_embd=8,
                n_layer=1,
                n_head=2,
                resid_pdrop=0,
                embd_pdrop=0,
                attn_pdrop=0,
            )
            torch.manual_seed(5)
            model = transformers.GPT2LMHeadModel(config)
            optimizer = FusedHybrid(model, preset, tied="embedding")
            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path), max_steps=steps, save_steps=2, use_cpu=True, report_to=[],
                disable_tqdm=True, per_device_train_batch_size=4, lr_scheduler_type="constant", seed=3,
                max_grad_norm=0.5,
            )  # fmt: skip
            trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
            trainer.train(resume_from_checkpoint=resume)
            return models.snapshot(optimizer)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            straight = run(4)
            run(2)
            resumed = run(4, str(tmp_path / "checkpoint-2"))
        support.assert_same_bits(straight, resumed)


class TestPeft:
    def test_routing_of_a_lora(self) -> None:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(
            TinyLanguageModel(), peft.LoraConfig(r=2, target_modules=["embed", "up"], task_type=None)
        )
        optimizer = FusedHybrid(model, "scale")
        found = {
            name: (group["role"], group["dim"])
            for group in optimizer.param_groups
            for name in group["param_names"]
        }
        for kind, expected in {"lora_embedding_": ("embedding", 1), ".lora_": ("matrix", 1)}.items():
            named = [value for name, value in found.items() if kind in name]
            assert named[-2:] == [expected] * 2
        assert len(found) == 4
        loss_of(model).backward()
        optimizer.step()


def test_grad_scaler_clips_and_steps() -> None:
    """torch's own recipe: unscale, clip, step."""
    for build in (lambda m: FusedLion(m.parameters()), lambda m: FusedALIAS(m.parameters())):
        for scaling in (None, True):
            model = TinyLanguageModel()
            optimizer = build(model)
            optimizer.amp_scaling = scaling
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            scaler.scale(loss_of(model)).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            assert float(norm) < 20
            before = model.up.weight.detach().clone()
            scaler.step(optimizer)
            assert not torch.equal(before, model.up.weight)
