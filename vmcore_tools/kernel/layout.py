# SPDX-License-Identifier: LGPL-2.1-or-later
"""Structure layouts from the debug info, for reads of many objects at once."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, Type, TypeKind, offsetof, sizeof


def field_dtype(type_: Type, members: Mapping[str, str]) -> np.dtype[Any]:
    """
    A NumPy dtype with the unsigned integer or pointer members of a structure.

    :param type_: a structure or union type
    :param members: name in the dtype to member designator (``"list.next"``)
    :raises LookupError: if there is no such member
    """
    order = "<" if type_.prog.platform.flags.IS_LITTLE_ENDIAN else ">"
    names, formats, offsets = [], [], []
    for name, designator in members.items():
        names.append(name)
        formats.append(f"{order}u{_member_size(type_, designator)}")
        offsets.append(offsetof(type_, designator))
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": type_.size}
    )


def _member_size(type_: Type, designator: str) -> int:
    for part in designator.split("."):
        type_ = type_.member(part).type
        while type_.kind == TypeKind.TYPEDEF:
            type_ = type_.type
    return int(sizeof(type_))


@dataclasses.dataclass(frozen=True)
class BitField:
    """
    A bit field of a structure.

    :ivar byte_offset: of the aligned 32-bit word that holds it
    :ivar shift: of its lowest bit in that word
    :ivar bits: its width
    """

    byte_offset: int
    shift: int
    bits: int

    def extract(self, words: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        """The field's value in each 32-bit word."""
        mask = (1 << self.bits) - 1
        return (words.astype(np.uint32) >> np.uint32(self.shift)) & np.uint32(mask)


def bit_field(type_: Type, member: str) -> BitField:
    """
    Where a bit field of at most 32 bits is, on a little-endian machine.

    :raises LookupError: if there is no such member, or it is no bit field
    """
    bit_offset, bits = _bit_position(type_, member)
    return BitField(bit_offset // 32 * 4, bit_offset % 32, bits)


def _bit_position(type_: Type, name: str) -> Tuple[int, int]:
    for member in type_.members or ():
        if member.name == name:
            if member.bit_field_size is None:
                raise LookupError(f"{name} of {type_.type_name()} is no bit field")
            return int(member.bit_offset), int(member.bit_field_size)
        if member.name is None and member.type.kind in (TypeKind.STRUCT, TypeKind.UNION):
            try:
                bit_offset, bits = _bit_position(member.type, name)
            except LookupError:
                continue
            return member.bit_offset + bit_offset, bits
    raise LookupError(f"{type_.type_name()} has no member {name}")


def read_structs(
    prog: Program, addresses: Sequence[int], dtype: np.dtype[Any]
) -> Tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """
    Read structures of one type at many addresses.

    :param dtype: of :func:`field_dtype`
    :return: array of *dtype* of shape (n,), and bool array of shape (n,):
        which ones could be read; the others are zero
    """
    raw = bytearray(len(addresses) * dtype.itemsize)
    read = np.ones(len(addresses), dtype=bool)
    for number, address in enumerate(addresses):
        try:
            data = prog.read(address, dtype.itemsize)
        except FaultError:
            read[number] = False
            continue
        raw[number * dtype.itemsize : (number + 1) * dtype.itemsize] = data
    return np.frombuffer(bytes(raw), dtype=dtype), read


def as_structs(data: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """
    View the bytes of structures by their fields.

    :param data: uint8 array of shape (n, size of the structure)
    :param dtype: of :func:`field_dtype`
    :return: array of *dtype* of shape (n,)
    """
    return np.ascontiguousarray(data).reshape(-1).view(dtype)
