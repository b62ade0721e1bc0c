"""What nvcc made of the CUDA kernels in a compiled module: registers, spills, occupancy, widths of accesses.

Reads the output of NVIDIA's cuobjdump; needs no GPU. benchmarks/kernels.py prints the result.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from machine_code import Instruction, in_loops, parse_instruction

VECTOR = 16  # bytes of the widest access that all of these GPUs have
NARROW_TYPES = ("BFloat16", "Half")


@dataclass(frozen=True)
class SmLimits:
    """What one multiprocessor holds at a time (CUDA C++ Programming Guide, technical specifications)."""

    warps: int
    blocks: int
    shared_kib: int
    reserved: int = 1024  # bytes of shared memory that the system takes of every block
    shared_unit: int = 128


REGISTERS = 65536  # of a multiprocessor, in quarters; a warp's come in units of 256
LIMITS = {
    "7.5": SmLimits(32, 16, 64, reserved=0, shared_unit=256),
    "8.0": SmLimits(64, 32, 164),
    "8.6": SmLimits(48, 16, 100),
    "8.7": SmLimits(48, 16, 164),
    "8.9": SmLimits(48, 24, 100),
    "9.0": SmLimits(64, 32, 228),
    "10.0": SmLimits(64, 32, 228),
    "10.3": SmLimits(64, 32, 228),
    "12.0": SmLimits(48, 24, 100),
    "12.1": SmLimits(48, 24, 100),
}

# Kernels that need not move 16 bytes a thread at a time, and why. All others have to, in loads and in stores.
# A name may go on with what the variant has to match.
NARROW = {
    "sage_sums_kernel": {"stores": "one sum a column, of many rows that were read"},
    "scale_rows_kernel": {"stores": "one norm a row, of all that was read"},
    "scale_columns_kernel": {"stores": "one sum a column, of many rows that were read"},
    "scale_norms_kernel": {
        "loads": "many sums a column, side by side across threads",
        "stores": "one norm a column, of many sums that were read",
    },
    "sinkgd_columns_kernel": {"stores": "one scale a column, of many sums that were read"},
    r"sinkgd_rows_kernel<\w+, \d+, false": dict.fromkeys(
        ("loads", "stores"), "rows that do not start on 16-byte boundaries, element by element across threads"
    ),
    "alias_observe_signs_kernel": {
        "stores": "a byte of each sign plane for eight elements, and one slot a block"
    },
    "alias_observe_extrema_kernel": {"stores": "one slot a block, of all that was read"},
    "alias_observe_norm_kernel": {"stores": "one slot a block, of all that was read"},
    "alias_advance_kernel": {
        "loads": "one slot a block of another launch, in a single block",
        "stores": "the nine numbers that the tensors of a group share",
    },
    "alias_adam_observe_kernel": {
        "stores": "a byte of each sign plane for eight elements, and one slot a block"
    },
    "alias_adam_advance_kernel": {
        "loads": "one sum a block of another launch, in one block a tensor",
        "stores": "a tensor's two numbers",
    },
    # Of pieces of tensors on several processes: vectors of rows and columns between two exchanges.
    "sage_columns_kernel": {
        "loads": "one sum a column of each slot, side by side across threads",
        "stores": "one sum a column, of the slots that were read",
    },
    "sage_squares_kernel": {
        "loads": "one sum a column, side by side across threads",
        "stores": "one number a column, and two sums a block",
    },
    "scale_invert_kernel": {
        "loads": "one sum a row or column, side by side across threads",
        "stores": "one norm a row or column",
    },
    "sinkgd_row_sums_kernel": {"stores": "one sum a row, of all that was read"},
    "sinkgd_row_shares_kernel": {
        "loads": "neighbouring columns in neighbouring threads, four rounds of them in flight",
        "stores": "one sum a column, of the rows that were read",
    },
    "sinkgd_scales_kernel": {
        "loads": "one sum and one scale a row or column, side by side across threads",
        "stores": "one scale a row or column",
    },
    "pack_votes_kernel": {"stores": "a byte of each plane of votes for eight elements"},
    "unpack_votes_kernel": {"loads": "a byte of each plane of votes for eight elements"},
}


@dataclass
class Kernel:
    """One kernel's machine code for one architecture."""

    arch: str
    symbol: str
    name: str = ""
    variant: str = ""  # template arguments
    registers: int = 0
    stack_bytes: int = 0
    local_bytes: int = 0
    shared_bytes: int = 0  # static, the system's share left out
    threads: int | None = None  # a block's most, from __launch_bounds__
    occupancy: float | None = None
    local_accesses: int = 0
    loads: Counter[int] = field(default_factory=Counter)  # of global memory: instructions by width in bytes
    stores: Counter[int] = field(default_factory=Counter)
    loop_loads: Counter[int] = field(default_factory=Counter)  # those of them that are in loops
    loop_stores: Counter[int] = field(default_factory=Counter)


Kernels = dict[tuple[str, str], Kernel]


def arch_of(line: str) -> str | None:
    """The architecture that a line of cuobjdump's announces, as "9.0"."""
    match = re.match(r"arch = sm_(\d+)(\d[a-z]?)\s*$", line)
    return f"{match[1]}.{match[2]}" if match else None


def limits_of(arch: str) -> SmLimits | None:
    return LIMITS.get(arch.rstrip("af"))


def parse_resources(lines: Iterable[str]) -> Kernels:
    """From ``cuobjdump --dump-resource-usage``: the kernels, by architecture and symbol."""
    kernels: Kernels = {}
    arch, symbol = "", ""
    for line in lines:
        arch = arch_of(line) or arch
        if match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif symbol and "REG:" in line:
            used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            shared = used["SHARED"]
            if shared and float(arch.rstrip("af")) >= 9.0:
                shared -= 1024  # from here on the number has the system's share in it
            kernels[arch, symbol] = Kernel(
                arch,
                symbol,
                registers=used["REG"],
                stack_bytes=used["STACK"],
                local_bytes=used["LOCAL"],
                shared_bytes=shared,
            )
            symbol = ""
    return kernels


def parse_threads(lines: Iterable[str], kernels: Kernels) -> None:
    """From ``cuobjdump -elf``: each kernel's launch bound."""
    arch, symbol, is_bound = "", "", False
    for line in lines:
        if line.startswith("arch ="):
            arch = arch_of(line) or ""
        elif line.startswith("."):
            symbol = line.strip().removeprefix(".nv.info.") if line.startswith(".nv.info.") else ""
        elif "Attribute:" in line:
            is_bound = "EIATTR_MAX_THREADS" in line
        elif is_bound and "Value:" in line and (arch, symbol) in kernels:
            x, y, z = (int(number, 16) for number in line.split()[1:4])
            kernels[arch, symbol].threads = x * y * z
            is_bound = False


def functions(lines: Iterable[str]) -> Iterator[tuple[str, str, list[Instruction]]]:
    """From ``cuobjdump --dump-sass``: architecture, symbol and instructions of every function."""
    arch, symbol = "", ""
    code: list[Instruction] = []
    for line in lines:
        if instruction := parse_instruction(line):
            code.append(instruction)
        elif "Function :" in line or line.startswith("arch ="):
            if symbol:
                yield arch, symbol, code
            code = []
            arch = arch_of(line) or arch
            symbol = line.split(":", 1)[1].strip() if "Function :" in line else ""
    if symbol:
        yield arch, symbol, code


def parse_code(lines: Iterable[str], kernels: Kernels) -> None:
    """From ``cuobjdump --dump-sass``: which accesses to memory each kernel has, and which are in loops."""
    for arch, symbol, code in functions(lines):
        kernel = kernels.get((arch, symbol))
        if kernel is None:
            continue
        looping = in_loops(code)
        for instruction in code:
            if instruction.is_local_access:
                kernel.local_accesses += 1
            elif instruction.is_global_load:
                kernel.loads[instruction.width] += 1
                kernel.loop_loads[instruction.width] += instruction.address in looping
            elif instruction.is_global_store:
                kernel.stores[instruction.width] += 1
                kernel.loop_stores[instruction.width] += instruction.address in looping


def occupancy(kernel: Kernel) -> float | None:
    """The share of a multiprocessor's warps that can be resident, or None where that is not known."""
    limits = limits_of(kernel.arch)
    if limits is None or kernel.threads is None:
        return None
    warps = -(-kernel.threads // 32)
    per_warp = -(-kernel.registers * 32 // 256) * 256
    warps_by_registers = REGISTERS // 4 // per_warp * 4
    shared = -(-(kernel.shared_bytes + limits.reserved) // limits.shared_unit) * limits.shared_unit
    by_shared = limits.shared_kib * 1024 // shared if shared else limits.blocks
    blocks = min(limits.blocks, limits.warps // warps, warps_by_registers // warps, by_shared)
    return blocks * warps / limits.warps


def split_name(demangled: str) -> tuple[str, str]:
    """``void a::f<a::B, 2>(a::P)`` as ``f`` and ``B, 2``."""
    text = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", demangled).removeprefix("void ")
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            text = text[:place]
            break
    name, _, variant = text.partition("<")
    return name, variant.removesuffix(">")


def demangle(symbols: list[str]) -> list[str]:
    """The symbols' names in C++; the symbols themselves where there is no c++filt."""
    try:
        result = subprocess.run(
            ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        return symbols
    return result.stdout.splitlines()


def dump(cuobjdump: str, module: Path, *options: str) -> Iterator[str]:
    """The lines that cuobjdump prints."""
    # It finds nvdisasm next to itself only if that folder is on the PATH.
    environment = {**os.environ, "PATH": f"{Path(cuobjdump).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with subprocess.Popen(
        [cuobjdump, *options, str(module)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise SystemExit(
            f"{cuobjdump} {' '.join(options)} {module} failed with exit code {process.returncode}"
        )


def audit(cuobjdump: str, module: Path) -> list[Kernel]:
    """Every kernel in the module for every architecture, sorted."""
    kernels = parse_resources(dump(cuobjdump, module, "--dump-resource-usage"))
    parse_threads(dump(cuobjdump, module, "-elf"), kernels)
    parse_code(dump(cuobjdump, module, "--dump-sass"), kernels)
    found = list(kernels.values())
    for kernel, name in zip(found, demangle([kernel.symbol for kernel in found]), strict=True):
        kernel.name, kernel.variant = split_name(name)
        kernel.occupancy = occupancy(kernel)
    return sorted(found, key=lambda k: (k.name, float(k.arch.rstrip("af")), k.variant))


def least_width(variant: str) -> int:
    """Bytes that an access has to move: half a vector for 16-bit arrays that go along with fp32 ones."""
    mixed = "float" in variant and any(name in variant for name in NARROW_TYPES)
    return VECTOR // 2 if mixed else VECTOR


def problems_of(kernel: Kernel) -> list[str]:
    """What must not be: spills, no launch bound, no 16-byte accesses."""
    problems = []
    allowed = {
        what
        for name, narrow in NARROW.items()
        if re.match(name if "<" in name else f"{name}<", f"{kernel.name}<{kernel.variant}>")
        for what in narrow
    }
    least = least_width(kernel.variant)
    if kernel.stack_bytes or kernel.local_bytes or kernel.local_accesses:
        problems.append(
            f"uses local memory: {kernel.stack_bytes} bytes of stack, {kernel.local_bytes} of local memory, "
            f"{kernel.local_accesses} accesses"
        )
    if kernel.threads is None:
        problems.append("has no __launch_bounds__")
    for what, counts in (("loads", kernel.loads), ("stores", kernel.stores)):
        if not any(width >= least for width in counts) and what not in allowed:
            problems.append(f"has no {least}-byte {what} of global memory")
    return [f"{kernel.name}<{kernel.variant}> for {kernel.arch} {problem}" for problem in problems]
