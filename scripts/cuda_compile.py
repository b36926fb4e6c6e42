"""Compiles every shipped kernel to machine code with NVRTC: no GPU, no toolkit, only the library.

Fails if one does not compile, spills registers or takes more than shipped.txt allows. NVRTC is the package
nvidia-cuda-nvrtc; KVIST_NVRTC names the folder with libnvrtc.so if Python does not find it.
"""

import ctypes
import importlib.util
import os
import pathlib
import re
import sys
import time

SOURCES = pathlib.Path(__file__).parent.parent / "kernels" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90a")


def libraries() -> pathlib.Path:
    """The folder of libnvrtc."""
    if named := os.environ.get("KVIST_NVRTC"):
        return pathlib.Path(named)
    for package in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for place in (found and found.submodule_search_locations) or ():
            if list(pathlib.Path(place, "lib").glob("libnvrtc.so*")):
                return pathlib.Path(place, "lib")
    sys.exit("error: NVRTC not found (pip install nvidia-cuda-nvrtc, or set KVIST_NVRTC)")


def open_nvrtc() -> ctypes.CDLL:
    """NVRTC, with its built-ins loaded first: it looks them up by bare name."""
    folder = libraries()
    builtins = sorted(folder.glob("libnvrtc-builtins.so*"))
    compilers = sorted(folder.glob("libnvrtc.so*"))
    if not builtins or not compilers:
        sys.exit(f"error: expected libnvrtc and libnvrtc-builtins in {folder}")
    ctypes.CDLL(str(builtins[0]), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(compilers[0]), mode=ctypes.RTLD_GLOBAL)


def strings(items: list[str]) -> ctypes.Array:
    """A C array of strings."""
    return (ctypes.c_char_p * len(items))(*(item.encode() for item in items))


def compile_one(nvrtc: ctypes.CDLL, source: str, options: list[str]) -> tuple[int, str]:
    """Size of the machine code (0 if there is none) and the compiler's log."""
    headers = sorted(path for path in SOURCES.glob("*.cuh"))
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program),
        (SOURCES / source).read_bytes(),
        source.encode(),
        len(headers),
        strings([path.read_text() for path in headers]),
        strings([path.name for path in headers]),
    )
    failed = nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if not failed:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return (0 if failed else size.value), log.value.decode(errors="replace")


def main() -> None:
    """Compiles what matches the arguments (all without), and prints a line for each."""
    nvrtc = open_nvrtc()
    lines = (SOURCES / "shipped.txt").read_text().splitlines()
    shipped = [line.split() for line in lines if line and not line.startswith("#")]
    bad = 0
    for source, most, *macros in shipped:
        if not all(word in " ".join([source, *macros]) for word in sys.argv[1:]):
            continue
        for architecture in ARCHITECTURES:
            options = [f"-arch={architecture}", "--std=c++17", "--ptxas-options=-v"]
            start = time.monotonic()
            size, log = compile_one(nvrtc, source, options + [f"-D{macro}" for macro in macros])
            seconds = time.monotonic() - start
            registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
            spills = [int(n) for n in re.findall(r"(\d+) bytes spill", log)]
            stack = [int(n) for n in re.findall(r"(\d+) bytes stack frame", log)]
            wrong = size == 0 or not registers or any(spills) or max(registers) > int(most)
            bad += wrong
            print(
                f"{source} {' '.join(macros)} {architecture}: {registers} registers,"
                f" {sum(spills)} bytes spilled, {sum(stack)} of stack, {size} bytes, {seconds:.2f} s"
                + ("  WRONG" if wrong else ""),
                flush=True,
            )
            if wrong or "warning" in log:
                print(log)
    if bad:
        sys.exit(f"error: {bad} wrong")


if __name__ == "__main__":
    main()
