"""What the page itself complains of, and nodes that lie on each other."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import ConsoleMessage, Error, Page

# The host looks for downloads of missing models and shows pictures of the input folder; both are not here.
MISSING = ("Content Security Policy", "example.png")

# Pairs of nodes that overlap: as the classic canvas draws them, and as Nodes 2.0 does.
CLASSIC_OVERLAPS = """() => {
    const boxes = window.app.graph.nodes.map(node => ({
        type: node.type, left: node.pos[0], top: node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT,
        right: node.pos[0] + node.size[0], bottom: node.pos[1] + (node.flags.collapsed ? 0 : node.size[1]),
    }));
    return OVERLAPS(boxes);
}"""
NODES_2_OVERLAPS = """() => {
    const boxes = [...document.querySelectorAll("[data-node-id]")].map(element => {
        const { left, top, right, bottom } = element.getBoundingClientRect();
        const { type } = window.app.graph.getNodeById(element.dataset.nodeId);
        return { type, left, top, right, bottom };
    });
    return OVERLAPS(boxes);
}"""
PAIRS = """boxes => boxes.flatMap((a, i) => boxes.slice(0, i).filter(
    b => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
).map(b => `${a.type} and ${b.type}`))"""


def overlaps(page: Page, nodes_2: bool) -> list[str]:
    """The pairs of nodes that overlap."""
    script = NODES_2_OVERLAPS if nodes_2 else CLASSIC_OVERLAPS
    return page.evaluate(script.replace("OVERLAPS", f"({PAIRS})"))


@contextmanager
def errors_of(page: Page) -> Iterator[list[str]]:
    """The errors that the page writes to its console, and exceptions; without those of missing files."""
    found: list[str] = []

    def written(message: ConsoleMessage) -> None:
        text = f"{message.text} {message.location['url']}"
        if message.type == "error" and not any(missing in text for missing in MISSING):
            found.append(text)

    def thrown(error: Error) -> None:
        found.append(str(error))

    page.on("console", written)
    page.on("pageerror", thrown)
    yield found
    page.remove_listener("console", written)
    page.remove_listener("pageerror", thrown)
