"""A folder that MindSpore's Ascend plugin takes for CANN: every function is there, and none does anything.

MindSpore's wheel for x86-64 contains its Ascend plugin; what a machine without an Ascend lacks is CANN, which the
plugin is linked to. `prepare_stubs` reads the names that the plugin asks for out of the wheel's own libraries, makes a
library with a function for each, and gives it the name of every library of CANN. It takes about twenty seconds, once
per version of MindSpore and of these sources.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Optional

from focal.errors import UserError

SOURCES = Path(__file__).parent / "stubs"
CACHE_VARIABLE = "ASCEND_DRY_RUN_CACHE"  # names the folder that takes the stubs; default: one in the user's cache
WRITTEN_FOR = "2.8.0"
# Of the C++ functions that the plugins of 2.8.0 and 2.9.0 ask for and that merely return 0 here; see `_check_known`.
_KNOWN_FUNCTIONS = "ccdc85286e6a488a"
_CPP = ("-O1", "-fPIC", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=0")  # MindSpore is built with the old ABI of strings
_TOOLS = ("g++", "readelf", "strings", "nm")

# Libraries of the wheel that have nothing to do with Ascend, or that hold device code.
_UNRELATED = re.compile(
    r"gpu|op_kernels/|libcust_cpu_kernels|libmindspore_cpu_kernels|libmpi_collective|libav|libsw|libgrpc|_grpc"
)
# Undefined names that are not CANN's: of Python, of MPI, of compression, of the compiler's run time.
_FOREIGN = re.compile(
    r"^(_?Py|MPI_|ompi_|BZ2_|lzma_|(de|in)flate|compress|uncompress|gz|zlib|_ITM|__gmon|__gcov|__morestack|__stack_chk"
    r"|_ZTH|__pthread|_ZNK?14mindspore_grpc)"
)
_LOOKED_UP = re.compile(
    r"(acl|Hccl|Hcom|rt[A-Z]|mstx|Msprof|hcom)[A-Za-z0-9_]+"
)  # by dlsym: names in the plugin's data
_CANN_CLASSES = re.compile(r"_ZNK?(2ge|2fe|3ops|8optiling|3atb|13error_message)")
_SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libgomp.so.1", "libdl.so.2",
           "librt.so.1", "ld-linux-x86-64.so.2")  # fmt: skip
_CANN_LIBRARIES = (
    "libacl_dvpp", "libacl_dvpp_mpi", "libacl_dvpp_op", "libacl_op_compiler", "libacl_tdt_channel",
    "libacl_tdt_queue", "libaicpu_engine_common", "libaoe_executor", "libascend_dump", "libascend_hal",
    "libascend_ml", "libascendalog", "libascendcl", "libatb", "libc_sec", "libcann_kb", "libcompress",
    "libdummy_tls", "liberror_manager", "libexe_graph", "libge_common", "libge_runner", "libgmem", "libgraph",
    "libhccl", "libhccl_alg", "libhccl_plf", "libhcom_graph_adaptor", "libhcom_opskernel_builder",
    "libhost_cpu_engine", "libmmpa", "libmsprofiler", "libnnopbase", "libopapi", "libopapi_cv", "libopapi_legacy",
    "libopapi_math", "libopapi_nn", "libopapi_transformer", "libopskernel", "libplatform", "libprofapi", "libra",
    "libregister", "libruntime", "libslice",
)  # fmt: skip


def why_unavailable() -> Optional[str]:
    """Why no dry run is possible on this machine, in one line; None: it is."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the stubs are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)} on this machine: install a C++ compiler and binutils (apt install g++)"
    if not list((mindspore_folder() / "lib" / "plugin").glob("libmindspore_ascend.so*")):
        return f"the MindSpore in {mindspore_folder()} has no Ascend plugin; install mindspore=={WRITTEN_FOR} from PyPI"
    return None


def mindspore_folder() -> Path:
    """The package of MindSpore in this environment, found without importing it."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"MindSpore is not installed in {sys.prefix}; see README.md")
    return Path(spec.submodule_search_locations[0])


def stubs_folder() -> Path:
    """Where the stubs of this MindSpore and of these sources belong, whether or not they are there."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get(CACHE_VARIABLE) or user_cache / "focal_ascend_dry_run").absolute()
    return cache / f"mindspore-{metadata.version('mindspore')}-{digest.hexdigest()[:12]}"


def prepare_stubs() -> Path:
    """Make the stubs unless they are there already. Returns their folder.

    Raises:
        UserError: they cannot be made here, or do not fit this MindSpore.
    """
    reason = why_unavailable()
    if reason is not None:
        raise UserError(f"ascend_dry_run: {reason}")
    folder = stubs_folder()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "stubs"
        _make(made)
        try:
            made.replace(folder)  # whole or not at all
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    return folder


def _make(folder: Path) -> None:
    """Everything that belongs into `stubs_folder`, in a new folder."""
    library_folder = folder / "cann" / "lib64"
    library_folder.mkdir(parents=True)
    objects = [folder / "cann_answers.o", folder / "ge_classes.o"]
    for target in objects:
        _run("g++", *_CPP, "-c", SOURCES / f"{target.stem}.cc", "-o", target)
    _run("g++", *_CPP, "-shared", SOURCES / "chip_name.cc", "-o", folder / "libchip_name.so", "-ldl")
    own = {line.split()[-1] for line in _run("nm", "--defined-only", *objects).splitlines() if len(line.split()) == 3}
    functions = sorted(_wanted_names(mindspore_folder()) - own)
    _check_known(functions)
    (folder / "stubs.s").write_text(_assembler(functions), encoding="ascii")
    _run("g++", "-shared", "-o", library_folder / "libcann_stub.so", folder / "stubs.s", *objects)
    for name in _CANN_LIBRARIES:
        (library_folder / f"{name}.so").symlink_to("libcann_stub.so")
    # What MindSpore's check of the version looks for.
    files = {
        "cann/compiler/version.info": "Version=8.5.0\n",
        "python/hccl/__init__.py": "",
        "python/hccl/sys_version.py": '__sys_version__ = "8.5.0"\n',
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")


def _wanted_names(package: Path) -> set[str]:
    """Functions that the wheel's libraries ask for, and that neither they nor the system define."""
    undefined, defined, looked_up = set(), set(), set()
    for library in sorted(package.rglob("*.so*")):
        if _UNRELATED.search(str(library.relative_to(package))):
            continue
        for name, is_defined in _dynamic_symbols(library):
            (defined if is_defined else undefined).add(name)
        if "tbe_adapter" not in library.name:  # hundreds of megabytes of device code
            strings = _run("strings", "-n", "4", "-a", library).split("\n")
            looked_up.update(text for text in strings if _LOOKED_UP.fullmatch(text))
    for name in _SYSTEM:
        defined.update(symbol for symbol, is_defined in _dynamic_symbols(_system_library(name)) if is_defined)
    # An operator of aclnn has two functions, of which some libraries hold the name of one only.
    sizes = {f"{name}GetWorkspaceSize" for name in looked_up if name.startswith("aclnn")}
    looked_up |= {name for name in sizes if not name.endswith("GetWorkspaceSizeGetWorkspaceSize")}
    wanted = {name for name in undefined - defined if not _FOREIGN.match(name)}
    wanted |= {name for name in looked_up if name not in defined or name.startswith(("acl", "Hccl", "rt"))}
    return {name for name in wanted if re.fullmatch(r"[A-Za-z_][\w.$]*", name)}


def _dynamic_symbols(library: Path) -> Iterator[tuple[str, bool]]:
    """Name, and whether it is defined there, of each dynamic symbol."""
    for line in _run("readelf", "-W", "--dyn-syms", library).splitlines():
        columns = line.split()
        if len(columns) >= 8 and columns[0].rstrip(":").isdigit():
            yield columns[7].split("@")[0], columns[6] != "UND"


def _system_library(name: str) -> Path:
    return Path(_run("g++", f"-print-file-name={name}").strip())


def _check_known(functions: Iterable[str]) -> None:
    """Refuse a plugin that asks for other C++ functions of CANN than the version these sources were written for.

    A C function that is new may return 0 like the others; of a class that is held by value, that is a crash later on.
    """
    classes = sorted(name for name in functions if _CANN_CLASSES.match(name))
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]
    if digest != _KNOWN_FUNCTIONS:
        raise UserError(
            f"ascend_dry_run: the Ascend plugin of MindSpore {metadata.version('mindspore')} asks for other C++ "
            f"functions of CANN ({digest}) than that of {WRITTEN_FOR}; install mindspore=={WRITTEN_FOR}, or see "
            "'Another MindSpore' in tools/ascend_dry_run/README.md"
        )


def _assembler(functions: Iterable[str]) -> str:
    """One function under all the names, which returns 0 (a null pointer, 0.0)."""
    labels = [f".globl {name}\n.type {name},@function\n{name}:" for name in functions]
    body = [" endbr64", " pxor %xmm0,%xmm0", " xor %edx,%edx", " xor %eax,%eax", " ret"]
    return "\n".join([".text", *labels, *body, '.section .note.GNU-stack,"",@progbits', ""])


def _run(*command: object) -> str:
    """Output of a command.

    Raises:
        UserError: it failed.
    """
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="replace")
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"ascend_dry_run: {command[0]} failed while making the stubs: {reason}")
    return result.stdout
