"""Inner Guidance: what the host loads. The nodes are in nodes/, the help pages in web/docs/."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES

WEB_DIRECTORY = "./web"


class InnerGuidance(ComfyExtension):
    """The pack, as the host sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node class of the pack."""
        return NODES


async def comfy_entrypoint() -> InnerGuidance:
    """The function that the host looks for in a V3 pack."""
    return InnerGuidance()
