# SPDX-License-Identifier: LGPL-2.1-or-later
"""Strings that the kernel has pointers to: a damaged one may have no end."""

from __future__ import annotations

from drgn import Object, Program

#: No name in sysfs, and none of what a driver calls itself, is longer (NAME_MAX).
NAME_BYTES_MAX = 255


def c_string(pointer: Object) -> bytes:
    """
    A name, as far as it can be one.

    :param pointer: ``const char *``
    :return: at most :data:`NAME_BYTES_MAX` bytes
    :raises drgn.FaultError: if it is not in the dump
    """
    text: bytes = pointer.prog_.read_c_string(pointer.value_(), max_size=NAME_BYTES_MAX)
    return text


def name_text(pointer: Object) -> str:
    """
    As :func:`c_string`; undecodable bytes are escaped.

    :param pointer: ``const char *``
    :raises drgn.FaultError: if it is not in the dump
    """
    return c_string(pointer).decode(errors="backslashreplace")


def text_at(prog: Program, address: int) -> str:
    """
    As :func:`name_text`; empty without an address.

    :param address: ``const char *``
    :raises drgn.FaultError: if it is not in the dump
    """
    text: bytes = prog.read_c_string(address, max_size=NAME_BYTES_MAX) if address else b""
    return text.decode(errors="backslashreplace")


def device_name(device: Object) -> str:
    """
    What a device is called in sysfs. Mirrors ``dev_name()``.

    :param device: ``struct device *``
    :raises drgn.FaultError: if it is not in the dump
    """
    return name_text(device.init_name or device.kobj.name)
