"""``python -m sage_ext plan``: what an optimizer will cost, from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sage_ext import planning
from sage_ext.optimizers.presets import PRESETS
from sage_ext.planning import shapes, sources
from sage_ext.planning.hardware import CLUSTERS


def main(argv: Sequence[str] | None = None) -> int:
    """Print a plan. Returns 0, or 2 where an argument cannot be used."""
    args = _parser().parse_args(argv)
    if args.list:
        print(shapes.listing())
        return 0
    try:
        found = planning.plan(
            _source(args),
            args.preset,
            devices=args.devices,
            precision=args.precision,
            hardware=args.hardware,
            bandwidth=args.bandwidth,
            threads=args.threads,
            **({} if args.tied is None else {"tied": args.tied}),
        )
        if args.json:
            print(json.dumps(found.as_dict(), indent=1))
        else:
            print(found)
        if args.picture is not None:
            found.draw(args.picture)
    except BrokenPipeError:  # of "plan ... | head", which has nothing to do with the arguments
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        hint = " (here: --tied embedding or --tied lm_head)" if "tied=" in str(error) else ""
        print(f"python -m sage_ext plan: {error}{hint}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sage_ext plan",
        description="What an optimizer will cost a device, beside AdamW. Nothing is allocated, nothing runs.",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--params", metavar="NAME", help="a published model, such as llama-7b; see --list")
    model.add_argument(
        "--config", type=Path, help="config.json of a Hugging Face model, or its folder (needs transformers)"
    )
    model.add_argument("--list", action="store_true", help="print the published models and their sources")
    parser.add_argument(
        "--preset",
        default="sage",
        help=f"{', '.join(PRESETS)}, or {', '.join(sources.SINGLE)} (default: sage)",
    )
    parser.add_argument(
        "--devices",
        type=_devices,
        metavar="N|RxN",
        help="FSDP2 over N devices; R replicas over N each; Rx1 is DDP (default: one device)",
    )
    parser.add_argument(
        "--precision",
        choices=sources.PRECISIONS,
        help="of parameters and gradients (default: the model's own, bf16 for a published one)",
    )
    parser.add_argument(
        "--hardware",
        default="h100",
        choices=[*CLUSTERS, "cpu"],
        help="whose bandwidth and memory (default: h100); for another, sage_ext.plan(hardware=Cluster(...))",
    )
    parser.add_argument(
        "--bandwidth", type=float, help="of the memory, in bytes a second, in place of the hardware's"
    )
    parser.add_argument("--threads", type=int, help="of a CPU's step")
    parser.add_argument("--tied", choices=["embedding", "lm_head"], help="the role of a weight that is both")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.add_argument("--picture", type=Path, help="draw memory and time into this file (needs matplotlib)")
    return parser


def _source(args: argparse.Namespace) -> Any:
    if args.params is not None:
        shapes.find(args.params, "--params", " (--list shows them), or --config with a config.json")
        return args.params
    if not args.config.exists():  # transformers would look for it on the network
        raise ValueError(
            f"--config: there is no {args.config}; give a config.json, or the folder that has one"
        )
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(args.config), local_files_only=True)


def _devices(text: str) -> int | tuple[int, int]:
    numbers = [int(part) for part in text.lower().split("x")]
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"got {text}, expected N, or RxN: R replicas over N devices each")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
