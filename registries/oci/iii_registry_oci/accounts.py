"""Who ``USER`` of an image is, by the image's own ``/etc/passwd`` and ``/etc/group`` (OCI image-spec, ``config.User``).

Both files are from a stranger: bytes are compared, lines that make no sense are passed over, and of several lines for
one name the first counts, as the C library takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from iii_core.images.port import ImageUser

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWD, GROUP = b"etc/passwd", b"etc/group"
FILE_MAX = 1024 * 1024  # bytes of either file; a larger one is taken as absent
GROUPS_MAX = 64
_ID_MAX = 2**32 - 2
_HOME_MAX = 4095


class _Account(NamedTuple):
    name: bytes
    uid: int
    gid: int
    home: str


def resolve_user(user: str, passwd: bytes, group: bytes) -> ImageUser | None:
    """The account that ``user`` (``USER[:GROUP]``, each by name or number) stands for; None where a name is unknown.

    What is a number is always taken as an id, known or not. Without a group it is the account's own one (0 for an id
    without account, as other tools have it), together with those groups that list the account as a member; root needs
    no others, so it gets none.
    """
    name, _, group_name = user.partition(":")
    wanted = (name or "0").encode()
    account = _find_account(wanted, passwd)
    if account is None:
        if not wanted.isdigit():
            return None
        account = _Account(b"", int(wanted), 0, "")
    gid = account.gid
    groups: tuple[int, ...] = ()
    if group_name:
        found = _find_group(group_name.encode(), group)
        if found is None:
            return None
        gid = found
    elif account.uid:
        groups = _memberships(account, group)
    return ImageUser(uid=account.uid, gid=gid, groups=groups, home=account.home)


def _find_account(wanted: bytes, passwd: bytes) -> _Account | None:
    by_id = int(wanted) if wanted.isdigit() else None
    for fields in _lines(passwd, 7):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is None or gid is None:
            continue
        if uid == by_id if by_id is not None else fields[0] == wanted:
            return _Account(fields[0], uid, gid, _home(fields[5]))
    return None


def _find_group(wanted: bytes, group: bytes) -> int | None:
    if wanted.isdigit():
        return int(wanted)
    for fields in _lines(group, 4):
        gid = _number(fields[2])
        if fields[0] == wanted and gid is not None:
            return gid
    return None


def _memberships(account: _Account, group: bytes) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for fields in _lines(group, 4):
        gid = _number(fields[2])
        if account.name and gid not in (None, account.gid) and account.name in fields[3].split(b","):
            found[gid] = None
    return tuple(found)[:GROUPS_MAX]


def _lines(data: bytes, fields: int) -> Iterator[list[bytes]]:
    for line in data.split(b"\n"):
        parts = line.strip().split(b":")
        if len(parts) == fields and parts[0]:
            yield parts


def _number(field: bytes) -> int | None:
    if not field.isdigit() or len(field) > 10:
        return None
    value = int(field)
    return value if value <= _ID_MAX else None


def _home(field: bytes) -> str:
    """A folder that can be an environment variable's value, else ""."""
    try:
        text = field.decode()
    except UnicodeDecodeError:
        return ""
    return text if text.startswith("/") and text.isprintable() and len(text) <= _HOME_MAX else ""
