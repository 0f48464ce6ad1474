# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Known issues of kernels, and which findings look like them.

``knowledge.json`` in this folder has an entry for each. A finding looks like
an issue if it is of the issue's rule and its signature key, with its clues
behind it, begins with one of the issue's keys. That is never a proof: another
bug can have that key, too. Nor is the kernel's release, which says nothing of
backports; it is only shown. Where the clues were not recorded, a finding whose
whole signature key fits may be the issue, if the release has it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from vmcore_tools.model import HAS_THE_FIX, Finding, KernelCommit, KnownIssue

#: Other packages' entry points are the paths of such files.
ENTRY_POINT_GROUP = "vmcore_tools.knowledge"

_FILE = Path(__file__).resolve().parent / "knowledge.json"
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_RULE = re.compile(r"VT[0-9]{3}")
_COMMIT = re.compile(r"[0-9a-f]{12}")
_RELEASE = re.compile(r"v([0-9]+)\.([0-9]+)")
_REFERENCE = re.compile(r"https://\S+")

_HAS_IT = "has the issue by its release, unless the fix was backported"
_MISSING = "who allocates the objects, which SLUB tracks would tell (boot with slub_debug=U)"


class KnowledgeError(ValueError):
    """A file of known issues is not as it has to be."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """
    An issue, and what a finding of it looks like.

    :ivar rule: ID of the rule
    :ivar keys: each has, for every part of a signature key and of the clues
        behind it, from the first on, the strings that it may be
    """

    issue: KnownIssue
    rule: str
    keys: Tuple[Tuple[Tuple[str, ...], ...], ...]

    def fits(self, finding: Finding) -> bool:
        parts = (*finding.signature_key, *(finding.clues or ()))
        return finding.rule.id == self.rule and any(
            len(key) <= len(parts) and _agree(parts, key) for key in self.keys
        )

    def may_fit(self, finding: Finding) -> bool:
        """Whether it is only for clues that were not recorded that it does not fit."""
        return (
            finding.rule.id == self.rule
            and finding.clues is None
            and any(_agree(finding.signature_key, key) for key in self.keys)
        )


def _agree(parts: Sequence[str], key: Sequence[Sequence[str]]) -> bool:
    return all(part in allowed for part, allowed in zip(parts, key))


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """
    :ivar entries: all known issues, our own first
    :ivar unloadable: entry points that are no such file: value and reason
    """

    entries: Tuple[Entry, ...]
    unloadable: Tuple[Tuple[str, str], ...]


@functools.lru_cache(maxsize=1)
def knowledge() -> Knowledge:
    """What is known: the file of this project, then those of other packages."""
    entries = list(read_entries(_FILE.read_bytes()))
    unloadable: List[Tuple[str, str]] = []
    for entry_point in sorted(_entry_points(), key=lambda e: (e.value, e.name)):
        # Another package's code: whatever it raises is that package's failure.
        try:
            more = read_entries(Path(os.fspath(entry_point.load())).read_bytes())
            _check_ids([*entries, *more])
        except Exception as error:
            unloadable.append((entry_point.value, str(error)))
        else:
            entries += more
    return Knowledge(tuple(entries), tuple(unloadable))


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    if sys.version_info >= (3, 10):
        return importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return importlib.metadata.entry_points().get(ENTRY_POINT_GROUP, ())


def with_known_issues(
    finding: Finding, release: Optional[str], entries: Sequence[Entry]
) -> Finding:
    """
    The finding, with the issues that it looks like.

    :param release: of the kernel; None if it is not known
    """
    found = []
    for entry in entries:
        this_kernel = _this_kernel(entry.issue, release)
        if entry.fits(finding):
            found.append(dataclasses.replace(entry.issue, this_kernel=this_kernel))
        elif entry.may_fit(finding) and this_kernel in (None, _HAS_IT):
            found.append(
                dataclasses.replace(entry.issue, this_kernel=this_kernel, missing=_MISSING)
            )
    return dataclasses.replace(finding, known_issues=tuple(found)) if found else finding


def _this_kernel(issue: KnownIssue, release: Optional[str]) -> Optional[str]:
    """What the kernel's release says of the issue."""
    match = re.match(r"([0-9]+)\.([0-9]+)", release or "")
    if match is None:
        return None
    this = _number(match)
    since = [_number_of(commit.release) for commit in issue.introduced]
    until = [_number_of(commit.release) for commit in issue.fixed]
    if since and this < min(since):
        return "older than the issue by its release: it was backported, or it is something else"
    if until and this >= max(until):
        return HAS_THE_FIX
    return _HAS_IT


def _number(match: re.Match[str]) -> Tuple[int, int]:
    return int(match.group(1)), int(match.group(2))


def _number_of(release: str) -> Tuple[int, int]:
    match = _RELEASE.fullmatch(release)
    assert match is not None  # it was checked when it was read
    return _number(match)


# Reading; strict, so that a slip in a file is seen and not overlooked.


def read_entries(text: bytes) -> Tuple[Entry, ...]:
    """
    Read a file of known issues.

    :raises KnowledgeError: if it is not as it has to be
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise KnowledgeError(f"it is not JSON: {error}") from None
    (issues,) = _members(document, "the file", issues=list)
    entries = tuple(_entry(issue) for issue in issues)
    _check_ids(entries)
    return entries


def _check_ids(entries: Sequence[Entry]) -> None:
    ids = [entry.issue.id for entry in entries]
    for id in ids:
        if ids.count(id) > 1:
            raise KnowledgeError(f"there are two issues {id}")


def _entry(value: Any) -> Entry:
    id, title, rule, keys, explanation, introduced, fixed, references = _members(
        value,
        "an issue",
        id=str,
        title=str,
        rule=str,
        keys=list,
        explanation=str,
        introduced=list,
        fixed=list,
        references=list,
    )
    where = f"issue {id}"
    _fits(_ID, id, where)
    _fits(_RULE, rule, where)
    for reference in references:
        _fits(_REFERENCE, reference, where)
    if not keys:
        raise KnowledgeError(f"{where} has no key")
    issue = KnownIssue(
        id=id,
        title=title,
        explanation=explanation,
        introduced=tuple(_commit(commit, where) for commit in introduced),
        fixed=tuple(_commit(commit, where) for commit in fixed),
        references=tuple(references),
    )
    return Entry(issue, rule, tuple(_key(key, where) for key in keys))


def _key(value: Any, where: str) -> Tuple[Tuple[str, ...], ...]:
    if not isinstance(value, list) or not value:
        raise KnowledgeError(f"a key of {where} is no list of parts")
    for part in value:
        if not isinstance(part, list) or not part or not all(isinstance(s, str) for s in part):
            raise KnowledgeError(f"a part of a key of {where} is no list of strings")
    return tuple(tuple(part) for part in value)


def _commit(value: Any, where: str) -> KernelCommit:
    commit, subject, release = _members(
        value, f"a commit of {where}", commit=str, subject=str, release=str
    )
    _fits(_COMMIT, commit, where)
    _fits(_RELEASE, release, where)
    return KernelCommit(commit, subject, release)


def _members(value: Any, where: str, **types: type) -> List[Any]:
    """The members of a JSON object, which must be these and of these types."""
    members: Dict[str, Any] = value if isinstance(value, dict) else {}
    if set(members) != set(types):
        raise KnowledgeError(f"{where} has to have exactly {', '.join(types)}")
    for name, type_ in types.items():
        if not isinstance(members[name], type_) or members[name] == "":
            raise KnowledgeError(f"{name} of {where} is no {type_.__name__}, or empty")
    return [members[name] for name in types]


def _fits(pattern: re.Pattern[str], text: Any, where: str) -> None:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise KnowledgeError(f"{where} has {text!r}, which does not fit {pattern.pattern}")
