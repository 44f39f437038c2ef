"""Chromium without a window: what is wrong with a page in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS, THEMES, HEIGHT = (400, 1280), ("light", "dark"), 900
"""The windows in which a page is looked at, in CSS pixels, and what the reader prefers."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def missing() -> str:
    """What this machine lacks for a browser; empty if nothing."""
    try:
        import selenium  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return "selenium is not installed"
    if not any(map(shutil.which, PROGRAMS)):
        return f"there is no Chromium on PATH ({', '.join(PROGRAMS)})"
    return "" if shutil.which("chromedriver") else "there is no chromedriver on PATH"


@contextmanager
def opened_browser(profile: Path) -> Generator[Any]:
    """A browser whose profile is an empty folder. Its logs keep every message and every request."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(found for name in PROGRAMS if (found := shutil.which(name)))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Named, so that selenium looks for no driver on the network.
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def show(browser: Any, file: Path, width: int, theme: str) -> None:
    """Open a file in a window of this width, for a reader who prefers this theme."""
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    browser.get(file.as_uri())


def page_faults(browser: Any, text: str, folder: Path) -> list[str]:
    """Everything that is wrong with a page, in windows of both widths and in both themes."""
    file, found, papers = folder / "page.html", dict[str, None](), set[str]()
    file.write_text(text, encoding="utf-8")
    for width in WIDTHS:
        for theme in THEMES:
            show(browser, file, width, theme)
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            if wide > width:
                found[f"the page is {wide} pixels wide in a window of {width}"] = None
            papers.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
            found |= dict.fromkeys(f"message: {one['message']}" for one in browser.get_log("browser"))
            requests = {url for one in browser.get_log("performance") if (url := _requested(one["message"]))}
            found |= dict.fromkeys(f"request: {url}" for url in requests if url != file.as_uri())
    if len(papers) != len(THEMES):
        found["dark and light have one background"] = None
    return list(found)


def _requested(event: str) -> str:
    """The address that an event of the log says was asked for; empty for another event.

    The browser's own pages and data in an address leave the machine no more than the file does.
    """
    message = json.loads(event)["message"]
    url = str(message["params"]["request"]["url"]) if message["method"] == "Network.requestWillBeSent" else ""
    return "" if url.startswith(("chrome:", "data:")) else url
