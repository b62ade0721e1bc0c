"""What every run needs, imported once by the process that runs are forked from."""

import transformers.models.llama.modeling_llama  # noqa: F401

import lab.single
import lab.store
import lab.text  # noqa: F401
