#!/usr/bin/env python3
"""Makes static libraries that stand in for libcuda, libcublas and their kin at link time.

usage: cuda-trampolines.py CUDARC_SOURCES OUTPUT_FOLDER

Each function that cudarc's bindings name becomes a trampoline: at its first call it opens the real library and jumps
to the real function. Where there is no such library (or it lacks the function) the call returns that library's own
word for 'there is no device', so a binary starts, and fails with an error value, on a machine without a GPU.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

# library: (folder of its bindings, names to open, the status when there is none)
LIBRARIES = {
    "cuda": ("driver", ["libcuda.so.1", "libcuda.so"], 100),  # CUDA_ERROR_NO_DEVICE
    "cublas": ("cublas", ["libcublas.so.13", "libcublas.so", "libcublas.so.12"], 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    "cublasLt": ("cublaslt", ["libcublasLt.so.13", "libcublasLt.so", "libcublasLt.so.12"], 1),
    "curand": ("curand", ["libcurand.so.10", "libcurand.so"], 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    "nccl": ("nccl", ["libnccl.so.2", "libnccl.so"], 2),  # ncclSystemError
    "nvrtc": ("nvrtc", ["libnvrtc.so.13", "libnvrtc.so", "libnvrtc.so.12"], 11),  # NVRTC_ERROR_INTERNAL_ERROR
}

FUNCTION = re.compile(r'extern "C" \{\s*fn (\w+)\(.*?\)(?: -> ([^;]+))?;', re.DOTALL)

# One trampoline: jump through the slot, which at first leads to code that fills it. r10 and r11 carry no argument.
TRAMPOLINE = """
    .globl {name}
    .hidden {name}
    .type {name}, @function
{name}:
    jmp *slots+{offset}(%rip)
first_{name}:
    movl ${index}, %r11d
    jmp resolve
"""

# Integer and floating-point arguments live in registers that the search for the library may change.
RESOLVE = """
resolve:
    pushq %rbp
    movq %rsp, %rbp
    subq $192, %rsp
    andq $-16, %rsp
    {save}
    movl %r11d, %edi
    call {library}_find
    {restore}
    leave
    jmp *%rax
"""

SOURCE = """
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

extern const char *const {library}_names[];
static const char *const libraries[] = {{ {libraries}, NULL }};
static const unsigned char is_text[] = {{ {is_text} }};

static intptr_t no_device(void) {{ return {status}; }}
static const char *no_text(void) {{ return "{library} is not installed on this machine"; }}

extern void *{library}_slots[] __attribute__((visibility("hidden")));

/* Two threads that come here together find, and store, the same address. */
__attribute__((visibility("hidden"))) void *{library}_find(unsigned index) {{
    void *function = NULL;
    for (const char *const *name = libraries; *name && !function; ++name) {{
        void *library = dlopen(*name, RTLD_NOW | RTLD_GLOBAL);
        if (library) function = dlsym(library, {library}_names[index]);
    }}
    if (!function) function = is_text[index] ? (void *)no_text : (void *)no_device;
    __atomic_store_n(&{library}_slots[index], function, __ATOMIC_RELEASE);
    return function;
}}
"""


def functions(bindings: str) -> dict[str, bool]:
    """The functions of a binding, and whether each returns text (their error value is not a number)."""
    return {name: "c_char" in (returned or "") for name, returned in FUNCTION.findall(bindings)}


def assembly(library: str, names: list[str]) -> str:
    registers = ["rdi", "rsi", "rdx", "rcx", "r8", "r9"]
    moves = [("movq", f"%{name}", f"{8 * i}(%rsp)") for i, name in enumerate(registers)]
    moves += [("movups", f"%xmm{i}", f"{48 + 16 * i}(%rsp)") for i in range(8)]
    text = [".text", RESOLVE.format(
        library=library,
        save="\n    ".join(f"{move} {register}, {place}" for move, register, place in moves),
        restore="\n    ".join(f"{move} {place}, {register}" for move, register, place in moves),
    )]
    text += [TRAMPOLINE.format(name=name, index=i, offset=8 * i) for i, name in enumerate(names)]
    text += [".data", ".balign 8", f".globl {library}_slots", f".hidden {library}_slots", f"{library}_slots:", "slots:"]
    text += [f"    .quad first_{name}" for name in names]
    text += [".section .data.rel.ro,\"aw\"", ".balign 8", f".globl {library}_names", f".hidden {library}_names", f"{library}_names:"]
    text += [f"    .quad name_{name}" for name in names]
    text += [".section .rodata"]
    text += [f'name_{name}: .string "{name}"' for name in names]
    text += ['.section .note.GNU-stack,"",@progbits', ""]
    return "\n".join(text)


def source(library: str, opened: list[str], status: int, is_text: list[bool]) -> str:
    return SOURCE.format(
        library=library,
        libraries=", ".join(f'"{name}"' for name in opened),
        is_text=", ".join(str(int(value)) for value in is_text),
        status=status,
    )


def build(library: str, sources: pathlib.Path, output: pathlib.Path) -> None:
    folder, opened, status = LIBRARIES[library]
    found = functions((sources / folder / "sys" / "mod.rs").read_text())
    if not found:
        sys.exit(f"cuda-trampolines: no function in cudarc's bindings of {library}")
    names = sorted(found)
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        (work / "trampolines.s").write_text(assembly(library, names))
        (work / "find.c").write_text(source(library, opened, status, [found[name] for name in names]))
        for file in ("trampolines.s", "find.c"):
            subprocess.run(["cc", "-O1", "-fPIC", "-c", file, "-o", file + ".o"], cwd=work, check=True)
        archive = output / f"lib{library}.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", str(archive), "trampolines.s.o", "find.c.o"], cwd=work, check=True)
    print(f"cuda-trampolines: {archive} ({len(names)} functions)")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sources, output = map(pathlib.Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        build(library, sources, output)


if __name__ == "__main__":
    main()
