"""One file over HTTP into a folder: by pooch, with retries, a progress bar and errors that say what to do."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sagefm._settings import logger, settings

TIMEOUT = 60  # seconds in which a server has to send something


@cache
def notice(text: str) -> None:
    """Log a licence notice once a session."""
    logger.info(text)


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    name: str = "",
    token: str | None = None,
    refused: str = "",
    size: int = 0,
    instead: str = "",
) -> Path:
    """Fetch a file unless it lies at ``path``, and return the path.

    With ``sha256`` another file there is replaced, and what comes has to be it. Without, whatever lies there is taken
    as it is, and the digest of what comes is logged, for the caller's user to pass next time. ``token`` is sent as a
    bearer token to the host of ``url`` alone. ``refused`` is what to do where the server wants one (401, 403),
    ``instead`` is what else to do, ``name`` what messages call the file, ``size`` its bytes, if they are known.
    """
    import pooch
    import requests

    _refuse_insecure(url)
    name = name or path.name
    facts = [f"{size / 1e6:.0f} MB"] * bool(size) + [f"SHA-256 {sha256}"] * bool(sha256)
    about = f"\n  ({', '.join(facts)})" if facts else ""
    by_hand = f"\n  By hand: fetch {url}{about}\n  and put it at {path}{instead}"
    # requests drops the header when it is redirected to another host.
    headers = {"Authorization": f"Bearer {token}"} if token else None
    downloader = pooch.HTTPDownloader(progressbar=settings.progress_bars, timeout=TIMEOUT, headers=headers)
    if os.path.isdir(path):
        raise RuntimeError(f"{path} is a folder, where {name} is to lie as a file. Move it away.")
    there = ""
    pooch.get_logger().setLevel(logger.level)  # it says what it fetches as loudly as we are to be
    try:
        if sha256 and path.is_file() and (found := pooch.file_hash(str(path), alg="sha256")) != sha256:
            there = f"; the file at its place has another SHA-256, {found}"
            logger.warning("%s is not %s: its SHA-256 is %s, not %s. Fetching it again.", path, name, found, sha256)
        new = not path.exists()
        pooch.create(
            path=path.parent,
            base_url="",
            registry={path.name: f"sha256:{sha256}" if sha256 else None},
            urls={path.name: url},
            retry_if_failed=2,
        ).fetch(path.name, downloader=downloader)
    except requests.RequestException as error:
        raise RuntimeError(f"could not download {name} ({_reason(error, refused)}{there}).{by_hand}") from error
    except ValueError as error:
        raise RuntimeError(f"what was downloaded is not {name} and was discarded: {error}{by_hand}") from error
    except OSError as error:
        raise RuntimeError(
            f"can't use the folder {path.parent} ({error}). Set SAGEFM_CACHE or sg.settings.cache_dir to a folder "
            f"that can be written.{by_hand}"
        ) from error
    if new and sha256 is None:
        logger.info(
            "Received %s, sha256 %s: not checked, since sagefm doesn't know the file's digest.",
            path.name,
            pooch.file_hash(str(path), alg="sha256"),
        )
    return path


def _refuse_insecure(url: str) -> None:
    """Refuse what others on the way could read or change; a server on this machine has no way."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(
            f"{url} isn't https, so what it sends can't be trusted. Fetch it by hand, or use a mirror's https."
        )


def _reason(error: Exception, refused: str) -> str:
    """Say what went wrong; of an HTTP error the status alone, for the URL that it names may carry a signature."""
    import requests

    response = getattr(error, "response", None)
    if response is None or not isinstance(error, requests.HTTPError):  # as of too many redirects
        return str(error)
    hint = f"; {refused}" if refused and response.status_code in (401, 403) else ""
    return f"HTTP {response.status_code} {response.reason}{hint}"


def get_json(url: str, *, instead: str = "") -> Any:
    """Return what a web interface answers; ``instead`` is what else to do where it doesn't."""
    import requests

    _refuse_insecure(url)
    try:
        response = requests.get(url, timeout=TIMEOUT)
        response.raise_for_status()
        return response.json()
    except requests.RequestException as error:  # what isn't JSON is one of them
        raise RuntimeError(f"no answer from {url} ({_reason(error, '')}). {instead}") from error
