"""What benchmarks/kernels.py reads from cuobjdump's output, on a small piece of real output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kernels as report
from audit import (
    Kernel,
    Kernels,
    least_width,
    occupancy,
    parse_code,
    parse_resources,
    parse_threads,
    problems_of,
    split_name,
)
from machine_code import in_loops, parse_instruction

# A kernel that copies 16 bytes a thread in a loop, compiled by nvcc 13.0 for sm_90; shortened.
SYMBOL = "_ZN1a41_GLOBAL__N__09410533_4_s_cu_923b8d91_81064copyI1BLi3EEEvNS0_1PE"
RESOURCES = f"""
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {SYMBOL}:
  REG:16 STACK:0 SHARED:1032 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_90
"""
ELF = f"""
arch = sm_90
.nv.info
\t<0x1>
\tAttribute:\tEIATTR_REGCOUNT
\tFormat:\tEIFMT_SVAL
\tValue:\t0x10 0x10
.nv.info.{SYMBOL}
\t<0x6>
\tAttribute:\tEIATTR_EXIT_INSTR_OFFSETS
\tFormat:\tEIFMT_SVAL
\tValue:\t0xd0 0x240
\t<0x7>
\tAttribute:\tEIATTR_MAX_THREADS
\tFormat:\tEIFMT_SVAL
\tValue:\t0x80 0x1 0x1
\t<0x8>
\tAttribute:\tEIATTR_CRS_STACK_SIZE
\tFormat:\tEIFMT_SVAL
\tValue:\t0x0
"""
CODE = f"""
\tcode for sm_90
arch = sm_90
\t\tFunction : {SYMBOL}
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000fe20000000800 */
        /*0050*/                   LDG.E.U16 R0, desc[UR6][R2.64] ;       /* 0x0000000602007981 */
        /*00c0*/                   STS [R5+UR4], R0 ;                     /* 0x0000000005007988 */
        /*00d0*/               @P0 EXIT ;                                 /* 0x000000000000094d */
        /*0170*/                   MOV R2, R0 ;                           /* 0x0000000000027202 */
        /*0190*/                   LDG.E.128 R4, desc[UR6][R2.64] ;       /* 0x0000000602047981 */
        /*01c0*/                   ISETP.GE.AND P0, PT, R9, UR8, PT ;     /* 0x0000000809007c0c */
        /*0220*/                   STG.E.128 desc[UR6][R2.64], R4 ;       /* 0x0000000402007986 */
        /*0230*/              @!P0 BRA 0x170 ;                            /* 0xfffffffc00cc8947 */
        /*0240*/                   EXIT ;                                 /* 0x000000000000794d */
        /*0250*/                   BRA 0x250;                             /* 0xfffffffc00fc7947 */
        /*0260*/                   NOP;                                   /* 0x0000000000007918 */
\t\t..........
"""


@pytest.fixture
def kernels() -> Kernels:
    found = parse_resources(RESOURCES.splitlines())
    parse_threads(ELF.splitlines(), found)
    parse_code(CODE.splitlines(), found)
    return found


def test_kernel(kernels: Kernels) -> None:
    assert list(kernels) == [("9.0", SYMBOL)]
    kernel = kernels["9.0", SYMBOL]
    assert (kernel.registers, kernel.stack_bytes, kernel.local_bytes) == (16, 0, 0)
    assert kernel.shared_bytes == 8  # without the 1024 of the system
    assert kernel.threads == 128
    assert kernel.loads == {16: 1, 2: 1}
    assert kernel.stores == {16: 1}
    assert +kernel.loop_loads == {16: 1}
    assert kernel.loop_stores == {16: 1}
    assert occupancy(kernel) == 1.0
    assert problems_of(kernel) == []


@pytest.mark.parametrize(
    ("code", "resources", "elf", "expected"),
    [
        (CODE.replace("LDC R1, c[0x0][0x28]", "LDL.64 R1, [R1+0x8]"), RESOURCES, ELF, "1 accesses"),
        (CODE, RESOURCES.replace("STACK:0", "STACK:24"), ELF, "24 bytes of stack"),
        (CODE, RESOURCES, "", "has no __launch_bounds__"),
        (CODE.replace("LDG.E.128", "LDG.E.64"), RESOURCES, ELF, "has no 16-byte loads"),
        (CODE.replace("STG.E.128", "STG.E"), RESOURCES, ELF, "has no 16-byte stores"),
    ],
)
def test_problems(code: str, resources: str, elf: str, expected: str) -> None:
    found = parse_resources(resources.splitlines())
    parse_threads(elf.splitlines(), found)
    parse_code(code.splitlines(), found)
    (problem,) = problems_of(found["9.0", SYMBOL])
    assert expected in problem


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "expected"),
    [
        ("9.0", 32, 0, 1.0),
        ("9.0", 33, 0, 0.75),  # 40 registers as they are handed out: 6 blocks of 8 warps
        ("9.0", 64, 0, 0.5),
        ("9.0", 32, 56 * 1024, 0.5),  # 57 KiB with the system's: 4 blocks
        ("7.5", 64, 0, 1.0),
        ("8.6", 40, 0, 1.0),
        ("99.0", 32, 0, None),
    ],
)
def test_occupancy(arch: str, registers: int, shared: int, expected: float | None) -> None:
    kernel = Kernel(arch, "k", registers=registers, shared_bytes=shared, threads=256)
    assert occupancy(kernel) == expected


def test_cold_code_that_jumps_back_is_no_loop() -> None:
    lines = [
        "        /*0000*/              @P0 BRA 0x40 ;",
        "        /*0010*/                   LDG.E.128 R4, desc[UR6][R2.64] ;",
        "        /*0020*/                   STG.E.128 desc[UR6][R2.64], R4 ;",
        "        /*0030*/                   EXIT ;",
        "        /*0040*/                   MOV R2, RZ ;",
        "        /*0050*/                   BRA 0x10 ;",
    ]
    code = [parsed for line in lines if (parsed := parse_instruction(line))]
    assert len(code) == len(lines)
    assert in_loops(code) == set()


@pytest.mark.parametrize(
    ("text", "width"),
    [("LDG.E R4", 4), ("LDG.E.U8 R4", 1), ("LDG.E.S16 R4", 2), ("LDG.E.64 R4", 8), ("LDG.E.ENL2.256 R4", 32)],
)
def test_width(text: str, width: int) -> None:
    parsed = parse_instruction(f"        /*0000*/                   {text}, desc[UR6][R2.64] ;")
    assert parsed is not None
    assert parsed.is_global_load
    assert parsed.width == width


def test_names() -> None:
    assert split_name("void a::(anonymous namespace)::copy<a::B, 3>(a::P<int>)") == ("copy", "B, 3")
    assert split_name("a::_GLOBAL__N__09_s_cu::tick(a::P)") == ("tick", "")


def test_table(kernels: Kernels, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = kernels["9.0", SYMBOL]
    kernel.occupancy = occupancy(kernel)
    report.print_table([report.summarize("copy", [kernel, kernel])])
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["kernel", "arch", "variants", "registers"]
    assert line.split()[:6] == ["copy", "9.0", "2", "16", "128", "100%"]
    assert "16 B x 1, 2 B x 1" in line


@pytest.mark.parametrize(
    ("variant", "width"), [("float", 16), ("Half, BFloat16", 16), ("BFloat16, float", 8), ("", 16)]
)
def test_arrays_of_16_bits_beside_fp32_ones_may_go_8_bytes_at_a_time(variant, width):
    assert least_width(variant) == width
