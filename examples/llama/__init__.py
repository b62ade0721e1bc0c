"""The parts of ``examples/train_llama.py``: corpus, data, model, optimizers, training loop, report."""
