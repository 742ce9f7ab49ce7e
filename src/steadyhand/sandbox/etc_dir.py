"""The sandbox's own `/etc`: files of this machine that programs need, and users of our own. Made once, at the start."""

import contextlib
import errno
import functools
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

HOST_FILES = (
    "alternatives",
    "bindresvport.blacklist",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "pki/ca-trust",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "protocols",
    "python3*",
    "rpc",
    "services",
    "ssl/certs",
    "ssl/cert.pem",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
)
"""The files that are copied from this machine if every user may read them: no users, hosts or secrets."""
OWN_FILES = {
    "passwd": (
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        "agent:x:1000:1000:agent:/home/agent:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "sandbox\n",
    "shells": "/bin/sh\n/bin/bash\n",
    # There is nobody to ask: names are looked up by the service. Shared networks have the machine's bound over it.
    "resolv.conf": "",
}
_HOST_ETC = Path("/etc")
_DIR_MODE, _FILE_MODE = 0o755, 0o644
_MAX_LINKS = 40


def make_etc(data_dir: Path, *, placeholders: Iterable[Path] = (), host_etc: Path = _HOST_ETC) -> Path:
    """Create `<data-dir>/etc` anew from `host_etc` and return its path. Raises `OSError`.

    `placeholders` are files below `/etc` that are bound over later: an empty file is created for each.
    """
    folder, staging = data_dir / "etc", data_dir / "etc.new"
    shutil.rmtree(staging, ignore_errors=True)
    _make_dir(staging)
    resolve_dir = functools.cache(partial(os.path.realpath, strict=True))
    for pattern in HOST_FILES:
        for source in host_etc.glob(pattern):
            target = staging / source.relative_to(host_etc)
            _make_dir(target.parent)
            _copy(str(source), str(target), resolve_dir)
    for name, text in OWN_FILES.items():
        (staging / name).write_text(text, "utf-8")
        (staging / name).chmod(_FILE_MODE)
    for path in placeholders:
        if path.is_relative_to(_HOST_ETC):
            target = staging / path.relative_to(_HOST_ETC)
            _make_dir(target.parent)
            target.unlink(missing_ok=True)
            target.touch()
            target.chmod(_FILE_MODE)
    # Runs of an earlier life are over by now, and none of this one has begun.
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return folder


def _make_dir(folder: Path) -> None:
    """Create a directory and its parents, each of which every user may enter."""
    if not folder.is_dir():
        _make_dir(folder.parent)
        folder.mkdir()
        folder.chmod(_DIR_MODE)


def _copy(source: str, target: str, resolve_dir: Callable[[str], str]) -> None:
    """Copy a file or a directory; links are followed unless their target is below /usr, which is bound whole.

    Paths are strings: with some hundred certificates, `pathlib` took a tenth of the processor time of a start.
    """
    with contextlib.suppress(FileNotFoundError, PermissionError):
        if os.path.islink(source) and (path := _path_below_usr(source, resolve_dir)) is not None:  # noqa: PTH114
            os.symlink(path, target)  # noqa: PTH211
            return
        mode = _mode_of(source)
        if stat.S_ISDIR(mode):
            if not os.path.isdir(target):  # noqa: PTH112
                os.mkdir(target)  # noqa: PTH102
                os.chmod(target, _DIR_MODE)  # noqa: PTH101
            for name in os.listdir(source):  # noqa: PTH208
                _copy(f"{source}/{name}", f"{target}/{name}", resolve_dir)
        elif stat.S_ISREG(mode) and mode & stat.S_IROTH:
            shutil.copyfile(source, target)
            os.chmod(target, _FILE_MODE)  # noqa: PTH101


def _mode_of(path: str) -> int:
    """Return the mode of a file; 0 for a link that leads in a circle."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return 0


def _path_below_usr(link: str, resolve_dir: Callable[[str], str]) -> str | None:
    """Return the path that a link leads to if it is below /usr and exists, else None."""
    try:
        path = _resolve(link, resolve_dir)
    except OSError:
        return None
    return path if path.startswith("/usr/") else None


def _resolve(path: str, resolve_dir: Callable[[str], str]) -> str:
    """Return the path of an existing file without links, like `os.path.realpath` and with few system calls.

    Raises `OSError` if the file does not exist, or for a loop.
    """
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            break
        path = f"{resolve_dir(folder)}/{name}"
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            return path
        path = os.path.join(os.path.dirname(path), os.readlink(path))  # noqa: PTH115, PTH118, PTH120
    return os.path.realpath(path, strict=True)
