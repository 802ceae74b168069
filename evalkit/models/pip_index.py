"""Ask pip where a wheel lies, and by which certificates, proxy and credentials it may be had.

pip alone knows the user's index, mirrors, `--find-links` folders and certificates, so no host name is
written here. `pip index versions -vvv` lists every link it finds and downloads none of them, unlike
`pip install --dry-run`, which fetches the whole wheel (read in pip 23.2 and 26.3). A password is
masked in that list; it is taken from the index address it belongs to.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from evalkit.errors import FetchError

_SILENCE_S = 5.0  # chosen: an unreachable index is noticed within seconds
_ANSWER_S = 30  # chosen: several mirrors, each given _SILENCE_S
_LINK = re.compile(r"Found link (\S+?),? (?:\(from .*)?version: (\S+)")


class WheelLink(NamedTuple):
    """One wheel as the index names it."""

    url: str
    """Address without credentials, query kept, fragment dropped."""
    sha256: str | None
    """Digest in the link, where the index puts one there."""

    @property
    def file_name(self) -> str:
        """The wheel's own file name; never a path."""
        return re.split(r"[/\\]", unquote(urlsplit(self.url).path))[-1]


class PipSettings(NamedTuple):
    """What pip's configuration says about the connection."""

    verify: str | bool
    """Certificate file, or True for the system's; False for a trusted host."""
    client_cert: str | None
    proxies: dict[str, str]
    auth: tuple[str, str] | None


def find_wheel(package: str, version: str) -> WheelLink:
    """The wheel of `package` `version` that pip would take; a local file wins over an address.

    Raises:
        FetchError: No index can be reached, or none has this wheel; `str(error)` is a clause without
            place or remedy, for the caller to complete.
    """
    output = _pip(
        "index", "versions", package, "-vvv", "--no-input", "--only-binary=:all:", "--pre",
        "--ignore-requires-python", f"--timeout={_SILENCE_S}", "--retries=0",
    )  # fmt: skip
    links = [_parse(match[1]) for match in _LINK.finditer(output) if match[2] == version]
    wheels = [link for link in links if link.file_name.endswith(".whl")]
    if wheels:
        return min(wheels, key=lambda link: not link.url.startswith("file:"))
    if failure := re.search(r"Could not fetch URL (\S+?): (.*?)(?: - skipping)?$", output, re.MULTILINE):
        raise FetchError(f"the package index cannot be reached ({_reason(failure[2])})")
    if "No module named pip" in output:
        raise FetchError("pip is not installed beside this Python")
    raise FetchError(f"no package index known to pip has a wheel of {package} {version}")


def settings_for(url: str) -> PipSettings:
    """How pip would connect to the host of `url`.

    Raises:
        FetchError: pip does not answer.
    """
    configured = _configured()
    host = urlsplit(url)
    trusted = configured.get("trusted-host", "").split()
    proxy = configured.get("proxy")
    return PipSettings(
        verify=False if {host.hostname, host.netloc} & set(trusted) else configured.get("cert", True),
        client_cert=configured.get("client-cert"),
        proxies={"http": proxy, "https": proxy} if proxy else {},
        auth=_credentials(host, configured),
    )


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FetchError(f"the package index cannot be reached (no answer within {_ANSWER_S} s)") from None
    return f"{done.stdout}\n{done.stderr}"


def _parse(link: str) -> WheelLink:
    address, _, fragment = link.partition("#")
    parts = urlsplit(address)
    digest = re.search(r"sha256=([0-9a-f]{64})", fragment)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return WheelLink(bare.geturl() if parts.netloc else address, digest[1] if digest else None)


def _reason(failure: str) -> str:
    """The last cause in a chain of exceptions: `Connection refused`, `no answer in time`."""
    errno = re.findall(r"\[Errno -?\d+\] ([^'\")]+)", failure)
    if errno:
        return str(errno[-1]).strip()
    if "timed out" in failure.lower():
        return "no answer in time"
    return failure.split("(Caused by", 1)[0].removeprefix("connection error: ").strip()[:160]


def _configured() -> dict[str, str]:
    """pip's settings by option name; the environment wins over `[download]`, that over `[global]`."""
    found: dict[str, str] = {}
    rank = {"global": 0, "download": 1, ":env:": 2}
    lines = re.findall(r"^(global|download|:env:)\.([a-z-]+)=(.+)$", _pip("config", "list"), re.MULTILINE)
    for _section, option, value in sorted(lines, key=lambda line: rank[line[0]]):
        try:
            found[option] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue  # not a setting: a line of pip's own chatter
    return found


def _credentials(host: SplitResult, configured: dict[str, str]) -> tuple[str, str] | None:
    """User and password written into an index address of the same host; netrc is left to requests."""
    for option in ("index-url", "extra-index-url", "find-links"):
        for address in configured.get(option, "").split():
            index = urlsplit(address)
            if index.username and (index.scheme, index.hostname, index.port) == (
                host.scheme, host.hostname, host.port,
            ):  # fmt: skip
                return unquote(index.username), unquote(index.password or "")
    return None
