"""What every run needs, imported once by the process that runs are forked from."""

import transformers.models.llama.modeling_llama  # noqa: F401

import train.single
import train.store
import train.text  # noqa: F401
