"""The real frontend in a headless Chromium, with a page for all tests of this folder."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from inner_guidance.tools.host_server import HostServer
from inner_guidance.tools.setup_chromium import find_chromium

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
STARTED = "() => window.app?.graph && LiteGraph.registered_node_types.InnerLoadDemoModel"
START_MILLISECONDS = 120_000


@pytest.fixture(scope="session")
def page(server: HostServer) -> Iterator[Page]:
    """ComfyUI's page, ready."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium: install chromium to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_function(STARTED, timeout=START_MILLISECONDS)
        yield page
        browser.close()
