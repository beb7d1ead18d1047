"""The real frontend in a headless Chromium, with pages for all tests of this folder."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

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
# The page spins until it has loaded its own first workflow, which would replace one that a test loads before.
STARTED = """() => window.app?.graph && !window.app.extensionManager.spinner
    && LiteGraph.registered_node_types.InnerLoadDemoModel"""
START_MILLISECONDS = 120_000
VIEWPORT = {"width": 1920, "height": 1080}


# Without the first the page opens with the template browser, which asks for the host's own templates.
SETTINGS = {"Comfy.TutorialCompleted": True}
CHINESE_NODES_2 = SETTINGS | {"Comfy.Locale": "zh", "Comfy.VueNodes.Enabled": True}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium: install chromium to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


def opened(browser: Browser, server: HostServer, settings: dict[str, object]) -> Page:
    """ComfyUI's page, ready. The settings are the page's alone; the server's are not touched."""
    page = browser.new_page(viewport=VIEWPORT)
    page.route("**/api/settings", lambda route: route.fulfill(json=settings))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function(STARTED, polling=200, timeout=START_MILLISECONDS)
    return page


@pytest.fixture(scope="session")
def page(browser: Browser, server: HostServer) -> Page:
    """The page as a new user has it."""
    return opened(browser, server, SETTINGS)


@pytest.fixture(scope="session")
def chinese_page(browser: Browser, server: HostServer) -> Page:
    """The page in Chinese and with Nodes 2.0."""
    return opened(browser, server, CHINESE_NODES_2)


@pytest.fixture
def own_chinese_page(browser: Browser, server: HostServer) -> Iterator[Page]:
    """The same for one test, which leaves a panel open."""
    page = opened(browser, server, CHINESE_NODES_2)
    yield page
    page.close()
