"""libbpf through ctypes: the few calls that capture needs, with errors translated.

Nothing here knows what the maps and programs are for. Every function raises `BpfError`, with the kernel's
or libbpf's own words in `cause`; file descriptors are plain ints that the caller closes.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from shared.errors import BpfError, CaptureUnavailableError

MAP_HASH: Final = 1
MAP_ARRAY: Final = 2
MAP_ARRAY_OF_MAPS: Final = 12
MAP_RING: Final = 27
F_MMAPABLE: Final = 1 << 10
F_INNER_MAP: Final = 1 << 12
BPFFS_MAGIC: Final = 0xCAFE4A11

_T = TypeVar("_T")
_S = TypeVar("_S", bound=ctypes.Structure)
_NAME_B: Final = 16
_MOST_MAPS: Final = 64
"""That a program may use (MAX_USED_MAPS)."""
_LOG_LINES: Final = 4
_PROGRAM_LINE: Final = re.compile(r"\s*(;|\d+: |-- |processed \d|R\d|from \d|last_idx|regs=|parent )")


class _MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class Shape(NamedTuple):
    """What a pinned map is to be before anything of it is read."""

    type: int
    key_b: int
    value_b: int
    entries: int = 0
    """0: any number."""


class MapInfo(ctypes.Structure):
    """struct bpf_map_info, as far as it is used."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * _NAME_B),
    )
    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    name: bytes


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info up to recursion_misses."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * _NAME_B),
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
    )
    id: int
    name: bytes
    run_time_ns: int
    recursion_misses: int


class LinkInfo(ctypes.Structure):
    """struct bpf_link_info; the union after it is not used."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 64),
    )
    id: int
    prog_id: int


_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_POINTERS: Final = (
    "bpf_object__open_file",
    "bpf_object__find_map_by_name",
    "bpf_object__find_program_by_name",
    "bpf_object__next_program",
    "bpf_program__attach",
    "libbpf_set_print",
    "bpf_program__name",
)


class _Said(threading.local):
    """What libbpf said since the last call, to the thread that called: a disk is tried out in one while the event loop asks maps."""

    def __init__(self) -> None:
        self.lines: list[str] = []


class _Library:
    """The loaded library, and what it said."""

    def __init__(self) -> None:
        try:
            self.c = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as exc:
            raise CaptureUnavailableError(
                "libbpf could not be loaded",
                cause=str(exc),
                action="Install it (Debian: apt-get install libbpf1).",
            ) from exc
        for name in _POINTERS:
            getattr(self.c, name).restype = ctypes.c_void_p
        self._libc = ctypes.CDLL(None)
        self._said = _Said()
        self._print = _PRINT(self._listen)  # kept: libbpf holds its address
        self.c.libbpf_set_print(self._print)

    def _listen(self, level: int, text: int, arguments: int) -> int:
        if level > 1:  # debug
            return 0
        buffer = ctypes.create_string_buffer(8192)
        self._libc.vsnprintf(buffer, len(buffer), ctypes.c_void_p(text), ctypes.c_void_p(arguments))
        self._said.lines.extend(
            line for line in buffer.value.decode(errors="replace").splitlines() if line.strip()
        )
        del self._said.lines[:-200]
        return 0

    def call(self, name: str, what: str, *arguments: Any) -> int:
        """Calls a function that returns a count or descriptor, or a negative value on error."""
        self._said.lines.clear()
        result = int(getattr(self.c, name)(*arguments))
        if result < 0:
            raise self.error(what)
        return result

    def pointer(self, name: str, what: str, *arguments: Any) -> int:
        """Calls a function that returns an address, or NULL on error."""
        self._said.lines.clear()
        result = getattr(self.c, name)(*arguments)
        if not result:
            raise self.error(what)
        return int(result)

    def error(self, what: str) -> BpfError:
        number = ctypes.get_errno()
        # The verifier's log repeats the program; what it objects to is among the last lines that are not program.
        lines = [line.removeprefix("libbpf: ") for line in self._said.lines if not _PROGRAM_LINE.match(line)]
        return BpfError(what, cause="; ".join([os.strerror(number), *lines[-_LOG_LINES:]]), number=number)


@functools.cache
def _library() -> _Library:
    return _Library()


class BpfObject:
    """An object file: opened, adjusted, loaded. `close` frees everything of it that is not pinned or
    attached by a pinned link."""

    def __init__(self, path: Path) -> None:
        self._lib = _library()
        self._path = path
        self._object = self._lib.pointer(
            "bpf_object__open_file", f"{path} could not be opened", os.fsencode(path), None
        )

    def _map(self, name: str) -> int:
        what = f"{self._path} has no map {name}"
        return self._lib.pointer(
            "bpf_object__find_map_by_name", what, ctypes.c_void_p(self._object), name.encode()
        )

    def _program(self, name: str) -> int:
        what = f"{self._path} has no program {name}"
        return self._lib.pointer(
            "bpf_object__find_program_by_name", what, ctypes.c_void_p(self._object), name.encode()
        )

    def set_max_entries(self, map_name: str, entries: int) -> None:
        """Before `load`."""
        self._lib.call(
            "bpf_map__set_max_entries",
            f"Map {map_name} cannot have {entries} entries",
            ctypes.c_void_p(self._map(map_name)),
            ctypes.c_uint32(entries),
        )

    def reuse(self, map_name: str, fd: int) -> None:
        """Before `load`: the programs share the map `fd` instead of getting one of their own."""
        self._lib.call(
            "bpf_map__reuse_fd",
            f"Map {map_name} does not fit the one that exists",
            ctypes.c_void_p(self._map(map_name)),
            fd,
        )

    def load(self) -> None:
        self._lib.call(
            "bpf_object__load", "The kernel refused the BPF programs", ctypes.c_void_p(self._object)
        )

    def map_fd(self, name: str) -> int:
        """Descriptor of a loaded map; it belongs to the object and is valid until `close`."""
        return self._lib.call("bpf_map__fd", f"Map {name} is not loaded", ctypes.c_void_p(self._map(name)))

    def attach(self, program: str) -> Link:
        what = f"Program {program} could not be attached"
        return Link(self._lib.pointer("bpf_program__attach", what, ctypes.c_void_p(self._program(program))))

    def close(self) -> None:
        if self._object:
            self._lib.c.bpf_object__close(ctypes.c_void_p(self._object))
            self._object = 0


class Link:
    """An attached program. `close` detaches it unless it is pinned."""

    def __init__(self, pointer: int) -> None:
        self._link = pointer

    @property
    def fd(self) -> int:
        return _library().call("bpf_link__fd", "A link has no descriptor", ctypes.c_void_p(self._link))

    def close(self) -> None:
        if self._link:
            _library().c.bpf_link__destroy(ctypes.c_void_p(self._link))
            self._link = 0


def pin(fd: int, path: Path) -> None:
    _library().call("bpf_obj_pin", f"{path} could not be pinned", fd, os.fsencode(path))


def get(path: Path) -> int:
    """A new descriptor of what is pinned at `path`."""
    return _library().call("bpf_obj_get", f"{path} could not be opened", os.fsencode(path))


def create_array(name: str, value_b: int, entries: int, flags: int) -> int:
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags)
    return _library().call(
        "bpf_map_create",
        f"Map {name} with {entries} entries of {value_b} bytes could not be made",
        MAP_ARRAY,
        name.encode(),
        ctypes.c_uint32(4),
        ctypes.c_uint32(value_b),
        ctypes.c_uint32(entries),
        ctypes.byref(opts),
    )


def update(fd: int, key: bytes, value: bytes) -> None:
    _library().call("bpf_map_update_elem", "A map could not be updated", fd, key, value, ctypes.c_uint64(0))


def lookup(fd: int, key: bytes, value_b: int) -> bytes | None:
    """The value (bytes), or None if there is none."""
    value = ctypes.create_string_buffer(value_b)
    if _library().c.bpf_map_lookup_elem(fd, key, value) < 0:
        if ctypes.get_errno() == errno.ENOENT:
            return None
        raise _library().error("A map could not be read")
    return value.raw


def delete(fd: int, key: bytes) -> bool:
    """False if there was none."""
    if _library().c.bpf_map_delete_elem(fd, key) < 0:
        if ctypes.get_errno() == errno.ENOENT:
            return False
        raise _library().error("An entry of a map could not be deleted")
    return True


def read_hash(fd: int, key: np.dtype[Any], value: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """All keys and values of a hash map. Entries that stay in the map throughout are all there."""
    lib = _library()
    room = 1024
    keys: list[npt.NDArray[Any]] = []
    values: list[npt.NDArray[Any]] = []
    position: ctypes.Array[ctypes.c_char] | None = None
    while True:
        some_keys, some_values = np.zeros(room, key), np.zeros(room, value)
        count = ctypes.c_uint32(room)
        following = ctypes.create_string_buffer(8)
        result = lib.c.bpf_map_lookup_batch(
            fd,
            position,
            following,
            some_keys.ctypes.data_as(ctypes.c_void_p),
            some_values.ctypes.data_as(ctypes.c_void_p),
            ctypes.byref(count),
            None,
        )
        number = ctypes.get_errno() if result < 0 else 0
        if number == errno.ENOSPC:  # one bucket holds more than there is room for
            room *= 2
            continue
        if number not in (0, errno.ENOENT):
            raise lib.error("A map could not be read")
        keys.append(some_keys[: count.value])
        values.append(some_values[: count.value])
        if number == errno.ENOENT:
            return np.concatenate(keys), np.concatenate(values)
        position = following


def map_info(fd: int) -> MapInfo:
    return _info(fd, MapInfo())


def has_shape(fd: int, shape: Shape) -> bool:
    """Whether it is such a map: the kernel writes as much as its values are long into the buffer of who looks one up."""
    info = map_info(fd)
    return shape == (info.type, info.key_size, info.value_size, shape.entries and info.max_entries)


def program_info(fd: int) -> ProgramInfo:
    return _info(fd, ProgramInfo())


def link_info(fd: int) -> LinkInfo:
    return _info(fd, LinkInfo())


def program_fd(program_id: int) -> int:
    return _library().call(
        "bpf_prog_get_fd_by_id", f"BPF program {program_id} could not be opened", ctypes.c_uint32(program_id)
    )


def programs() -> Iterator[ProgramInfo]:
    """Every BPF program of the machine. One that goes away meanwhile is left out."""
    yield from _every("bpf_prog_get_next_id", "bpf_prog_get_fd_by_id", program_info)


def programs_using(map_id: int) -> set[int]:
    """Every BPF program of the machine that uses this map, by id."""
    pairs = _every("bpf_prog_get_next_id", "bpf_prog_get_fd_by_id", _maps_of)
    return {program for program, used in pairs if map_id in used}


def _maps_of(fd: int) -> tuple[int, list[int]]:
    ids = (ctypes.c_uint32 * _MOST_MAPS)()
    info = _info(fd, ProgramInfo(nr_map_ids=_MOST_MAPS, map_ids=ctypes.addressof(ids)))
    return info.id, ids[: min(info.nr_map_ids, _MOST_MAPS)]


def links() -> Iterator[LinkInfo]:
    """Every BPF link of the machine."""
    yield from _every("bpf_link_get_next_id", "bpf_link_get_fd_by_id", link_info)


def maps() -> Iterator[MapInfo]:
    """Every BPF map of the machine."""
    yield from _every("bpf_map_get_next_id", "bpf_map_get_fd_by_id", map_info)


def _info(fd: int, info: _S) -> _S:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _library().call(
        "bpf_obj_get_info_by_fd",
        "A BPF object could not be described",
        fd,
        ctypes.byref(info),
        ctypes.byref(size),
    )
    return info


def _every(next_id: str, get_fd: str, describe: Callable[[int], _T]) -> Iterator[_T]:
    lib = _library()
    current = ctypes.c_uint32(0)
    while getattr(lib.c, next_id)(current, ctypes.byref(current)) == 0:
        fd = int(getattr(lib.c, get_fd)(current))
        if fd < 0:
            # Gone meanwhile; or a link that somebody is just making (EAGAIN): ours are made.
            if ctypes.get_errno() in (errno.ENOENT, errno.EAGAIN):
                continue
            raise lib.error("The machine's BPF objects could not be listed")
        try:
            yield describe(fd)
        finally:
            os.close(fd)
    if ctypes.get_errno() != errno.ENOENT:
        raise lib.error("The machine's BPF objects could not be listed")
