"""A headless Chromium in front of Prefect's UI."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Where Chromium is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Screen:
    """A page of the UI, photographed into a folder."""

    def __init__(self, page: Page, ui: str, folder: Path) -> None:
        self.page = page
        self._ui = ui
        self._folder = folder

    def open(self, path: str) -> None:
        """Go to a page of the UI."""
        self.page.goto(f"{self._ui}/{path}", wait_until="networkidle")

    def shoot(self, name: str) -> None:
        """Keep a picture."""
        self.page.screenshot(path=self._folder / f"{name}.png")

    def retry(self) -> None:
        """Click Retry on a run's page, and Retry in the dialog that asks."""
        self.page.get_by_role("button", name="Retry").first.click()
        dialog = self.page.get_by_role("dialog")
        dialog.wait_for()
        self.shoot("dialog")
        dialog.get_by_role("button", name="Retry").click()
        dialog.wait_for(state="hidden")


@contextmanager
def screen(executable: str, ui: str, folder: Path) -> Iterator[Screen]:
    """A browser with one page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            page.set_default_timeout(30_000)
            yield Screen(page, ui, folder)
        finally:
            browser.close()
