"""The sandbox's own `/etc`: files of this machine that programs need, and users of our own. Made once, at the start."""

import contextlib
import shutil
import stat
from collections.abc import Iterable
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


def make_etc(data_dir: Path, *, placeholders: Iterable[Path] = (), host_etc: Path = _HOST_ETC) -> Path:
    """Create `<data-dir>/etc` anew from `host_etc` and return its path. Raises `OSError`.

    `placeholders` are files below `/etc` that are bound over later: an empty file is created for each.
    """
    folder, staging = data_dir / "etc", data_dir / "etc.new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for pattern in HOST_FILES:
        for source in host_etc.glob(pattern):
            _copy(source, staging / source.relative_to(host_etc))
    for name, text in OWN_FILES.items():
        (staging / name).write_text(text, "utf-8")
    for path in placeholders:
        if path.is_relative_to(_HOST_ETC):
            target = staging / path.relative_to(_HOST_ETC)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.touch()
    for path in (staging, *staging.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    # Runs of an earlier life are over by now, and none of this one has begun.
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return folder


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a directory; links are followed unless their target is below /usr, which is bound whole."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        if source.is_symlink() and _is_below_usr(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
        elif source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            for each in source.iterdir():
                _copy(each, target / each.name)
        elif source.is_file() and source.stat().st_mode & stat.S_IROTH:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _is_below_usr(link: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to("/usr")
    except OSError:
        return False
