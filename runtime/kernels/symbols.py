"""Read what a library of native operators exports and imports (ELF, Mach-O, PE).

    python runtime/kernels/symbols.py LIBRARY [LIBRARY ...]

Needs the package lief. Says nothing about whether the library runs.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lief

EXPORTS = {"RegisterCustomOps", "gptx_choose", "gptx_interface", "gptx_packed"}
EXPORTS |= {"gptx_exp_weights", "gptx_logsumexp", "gptx_exp", "gptx_log"}
OF_THE_LINKER = {"_mh_dylib_header", "__dso_handle"}  # Apple's linker exports them unasked
SYSTEM = re.compile(
    r"lib(c|m|pthread|dl)\.so\.\d|ld-linux-aarch64\.so\.1|/usr/lib/libSystem\.B\.dylib"
    r"|kernel32\.dll|ucrtbase\.dll|api-ms-win-crt-[a-z0-9-]+\.dll",
    re.IGNORECASE,
)
CPLUSPLUS = re.compile(r"_Z|__gxx_|__cxa_(?!finalize|atexit)|_Unwind_")


@dataclass(frozen=True)
class Symbols:
    """What a library exports, which functions it imports, and from which libraries."""

    exports: set[str]
    imports: set[str]
    libraries: set[str]
    glibc: tuple[int, ...]  # the newest version of glibc that an import needs; (): none

    def problems(self, glibc: tuple[int, ...] | None = None) -> list[str]:
        """What may not be there; empty if all is well. glibc: the newest version allowed."""
        found = []
        if self.exports != EXPORTS:
            found.append(f"exports {sorted(self.exports)}, expected {sorted(EXPORTS)}")
        if others := sorted(name for name in self.libraries if not SYSTEM.fullmatch(name)):
            found.append(f"needs the libraries {others}, expected only those of the C language")
        if names := sorted(name for name in self.imports if CPLUSPLUS.match(name)):
            found.append(f"imports {names} of the C++ library")
        if glibc is not None and self.glibc > glibc:
            found.append(f"needs glibc {self.glibc}, expected {glibc} or older")
        return found


def read_symbols(library: Path) -> Symbols:
    """The symbols of a library for Linux, macOS or Windows; ValueError for another file."""
    binary = lief.parse(str(library))
    if isinstance(binary, lief.ELF.Binary):
        return read_elf(binary)
    if isinstance(binary, lief.MachO.Binary):
        # each name of C has one underscore more
        exports = {str(symbol.name).removeprefix("_") for symbol in binary.exported_symbols}
        imports = {str(symbol.name).removeprefix("_") for symbol in binary.imported_symbols}
        libraries = {one.name for one in binary.libraries if one.command == LOAD_DYLIB}
        return Symbols(exports - OF_THE_LINKER, imports, libraries, ())
    if isinstance(binary, lief.PE.Binary):
        exported = binary.get_export()
        exports = {str(entry.name) for entry in exported.entries} if exported else set()
        imports = {str(entry.name) for library in binary.imports for entry in library.entries}
        return Symbols(exports, imports, {str(library.name) for library in binary.imports}, ())
    raise ValueError(f"{library}: neither an ELF, a Mach-O nor a PE file")


LOAD_DYLIB = lief.MachO.LoadCommand.TYPE.LOAD_DYLIB


def read_elf(binary: Any) -> Symbols:
    symbols = list(binary.dynamic_symbols)
    versions = [
        tuple(int(part) for part in auxiliary.name.removeprefix("GLIBC_").split("."))
        for requirement in binary.symbols_version_requirement
        for auxiliary in requirement.get_auxiliary_symbols()
        if auxiliary.name.startswith("GLIBC_")
    ]
    return Symbols(
        {symbol.name for symbol in symbols if symbol.exported},
        {symbol.name for symbol in symbols if symbol.imported},
        set(binary.libraries),
        max(versions, default=()),
    )


def main() -> None:
    failed = False
    for name in sys.argv[1:]:
        symbols = read_symbols(Path(name))
        print(f"{name}\n  exports  {' '.join(sorted(symbols.exports))}")
        print(f"  imports  {' '.join(sorted(symbols.imports))}")
        print(f"  needs    {' '.join(sorted(symbols.libraries))}")
        for problem in symbols.problems():
            failed = True
            print(f"  problem: {problem}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
