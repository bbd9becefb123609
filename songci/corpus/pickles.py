"""Pickles that can do no harm: what meta.pkl and the checkpoints may hold, checked before any of it is built.

A pickle is a program. Forbidding it to call functions is not enough: with a few bytes it can ask for gigabytes (a
bytearray, place 2³² of its memo), or build a tuple of tuples that takes years to hash; and the zip file of a
checkpoint may hold a thousand times its own size. So only the instructions that our own files need are let through.
"""

import os
import pickletools
import struct
import zipfile
from typing import BinaryIO

DICTS = """
    PROTO FRAME STOP MARK EMPTY_DICT SETITEM SETITEMS BINUNICODE SHORT_BINUNICODE BININT BININT1 BININT2
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET"""  # of strings and whole numbers
TENSORS = f"""{DICTS}
    EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE BINFLOAT LONG1
    GLOBAL REDUCE BUILD BINPERSID"""
TENSOR_GLOBALS = frozenset(
    ["torch._utils _rebuild_tensor_v2", "collections OrderedDict"]
    + [f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")]
)
SHARED_TUPLES = 32  # places where a tuple is used again: each can triple the time to hash what it is used in


def check_pickle(content: bytes, instructions: str = DICTS, names: frozenset[str] = frozenset()) -> None:
    """Raises ValueError unless the pickle has only these instructions, and names only these classes and functions."""
    allowed = set(instructions.split())
    newest_is_tuple, tuples, shared = False, set(), 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in allowed:
            raise ValueError(f"pickle instruction {opcode.name}")
        if opcode.name == "GLOBAL" and argument not in names:
            raise ValueError("pickle of a foreign class or function")
        if opcode.name.endswith("BINPUT"):
            if argument > len(content):  # the memo of the standard library would grow to that size
                raise ValueError("pickle with a huge memo")
            (tuples.add if newest_is_tuple else tuples.discard)(argument)
        elif opcode.name.endswith("BINGET"):
            newest_is_tuple = argument in tuples
            shared += newest_is_tuple
        else:
            newest_is_tuple = opcode.name.startswith("TUPLE")
    if shared > SHARED_TUPLES:
        raise ValueError("pickle of tuples that share their parts")


def check_checkpoint(file: BinaryIO) -> None:
    """Raises an exception of some kind unless the file is what torch.save() writes of dicts, lists and tensors.

    That is a zip file of uncompressed parts without a flipped bit, one of which is a pickle.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        _check_end(file, size, archive.start_dir)
        parts = archive.infolist()
        names = [part.orig_filename.casefold() for part in parts]  # torch takes DATA.PKL for data.pkl
        if len(set(names)) < len(names):
            raise ValueError("two parts of the same name")
        if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in parts):
            raise ValueError("compressed parts")
        if sum(part.file_size for part in parts) > size:
            raise ValueError("overlapping parts")
        if archive.testzip() is not None:
            raise ValueError("a part is damaged")
        [content] = [archive.read(part) for part in parts if part.filename.casefold().endswith("data.pkl")]
        if content[:2] != b"\x80\2":  # torch's reader warns of other versions
            raise ValueError("another version of pickle")
        check_pickle(content, TENSORS, TENSOR_GLOBALS)
    file.seek(0)


def _check_end(file: BinaryIO, size: int, directory: int) -> None:
    """Raises ValueError unless all readers find the zip file's directory in the same place, and so the same parts.

    The three records at its end: the 64-bit one, its locator, and the old one.
    """
    file.seek(max(0, size - 98))
    end = file.read()
    marks = len(end) == 98 and (end[:4], end[56:60], end[76:80]) == (b"PK\6\6", b"PK\6\7", b"PK\5\6")
    if (
        not marks
        or struct.unpack_from("<Q", end, 48)[0] != directory
        or struct.unpack_from("<Q", end, 64)[0] + 98 != size
    ):
        raise ValueError("not the end of a checkpoint")
    if struct.unpack_from("<I", end, 92)[0] not in (directory, 0xFFFFFFFF):
        raise ValueError("two directories")
