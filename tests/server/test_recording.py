"""Recording in the running server: the preview on the Record node, and whose run a map node shows."""

import asyncio
import io
import json
import struct
import uuid

import aiohttp
import numpy as np
import pytest
from PIL import Image

from inner_guidance.tests.support.node_defaults import with_defaults
from inner_guidance.tools.host_server import HostServerError

PREVIEW_IMAGE_WITH_METADATA = 4

# Two samplers of one recorded model: 5 draws, 6 draws on from its latent. 7 and 8 show the runs of each.
PROMPT = {
    "1": {"class_type": "InnerLoadDemoModel", "inputs": {}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "red sphere"}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 64, "batch_size": 1}},
    "4": {"class_type": "InnerRecordAttention", "inputs": {"model": ["1", 0]}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["4", 0],
            "positive": ["2", 0],
            "negative": ["2", 0],
            "latent_image": ["3", 0],
            "seed": 1,
            "steps": 3,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
}
PROMPT["6"] = {
    "class_type": "KSampler",
    "inputs": PROMPT["5"]["inputs"] | {"latent_image": ["5", 0], "steps": 2, "denoise": 0.5},
}
MAPS = {"record": ["4", 1], "steps": "each", "legend": False, "smooth": False, "lightest": 3.0}
for number, sampler in (("7", "5"), ("8", "6")):
    PROMPT[number] = {"class_type": "InnerAttentionMaps", "inputs": MAPS | {"latent": [sampler, 0]}}
    PROMPT[f"{number}1"] = {"class_type": "PreviewImage", "inputs": {"images": [number, 0]}}


def with_seed(prompt, sampler, seed):
    changed = prompt[sampler] | {"inputs": prompt[sampler]["inputs"] | {"seed": seed}}
    return prompt | {sampler: changed}


async def previews(server, prompt):
    """The previews that a browser would show during a prompt: (node id, picture), in order."""
    client = uuid.uuid4().hex
    shown = []
    address = f"ws://127.0.0.1:{server.port}/ws?clientId={client}"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as events:
        await events.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        queued = server.queue(with_defaults(prompt, server.object_info()), client)
        assert "prompt_id" in queued, queued
        async for message in events:
            if message.type is aiohttp.WSMsgType.BINARY:
                (kind,) = struct.unpack(">I", message.data[:4])
                if kind == PREVIEW_IMAGE_WITH_METADATA:
                    (length,) = struct.unpack(">I", message.data[4:8])
                    metadata = json.loads(message.data[8 : 8 + length])
                    picture = np.asarray(Image.open(io.BytesIO(message.data[8 + length :])))
                    shown.append((metadata["node_id"], picture))
                continue
            event = json.loads(message.data)
            assert event["type"] != "execution_error", event
            if event["type"] == "executing" and event["data"]["node"] is None:
                return shown
    raise AssertionError("the connection was closed")


def maps_of(server, prompt):
    """The pictures of both map nodes."""
    images = server.run(with_defaults(prompt, server.object_info()))
    return [
        [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in images[node]]
        for node in ("71", "81")
    ]


def test_the_record_node_shows_the_attention_while_the_sampler_runs(server):
    shown = asyncio.run(previews(server, with_seed(PROMPT, "5", 11)))

    on_record_node = [picture for node, picture in shown if node == "4"]
    assert len(on_record_node) >= 2 * 2  # the first and the last step of each sampler
    for picture in on_record_node:
        assert picture.shape == (128, 256, 3)
        assert picture.std() > 5


def test_each_sampler_has_its_run_and_only_what_samples_again_is_recorded_again(server):
    first = maps_of(server, PROMPT)
    assert [len(pictures) for pictures in first] == [3, 2]
    assert first[0][0].shape == (64, 128, 3)

    # The host takes sampler 5 from its cache: its run is still there beside the new one of 6.
    prompt = with_seed(PROMPT, "6", 2)
    prompt["7"] = {"class_type": "InnerAttentionMaps", "inputs": MAPS | {"latent": ["5", 0], "lightest": 3.1}}
    second = maps_of(server, prompt)
    assert [len(pictures) for pictures in second] == [3, 2]
    assert not np.array_equal(second[1][0], first[1][0])
    prompt["7"] = PROMPT["7"]
    again = maps_of(server, prompt)
    assert all(np.array_equal(a, b) for a, b in zip(again[0], first[0], strict=True))

    # Another seed in 5, and everything is drawn again.
    third = maps_of(server, with_seed(PROMPT, "5", 3))
    assert not np.array_equal(third[0][-1], first[0][-1])


def test_a_latent_of_no_sampler_is_refused_in_one_sentence(server):
    """Two runs are there, and a latent of neither."""
    maps_of(server, PROMPT)
    prompt = PROMPT | {"7": {"class_type": "InnerAttentionMaps", "inputs": MAPS | {"latent": ["3", 0]}}}

    with pytest.raises(HostServerError, match="comes from none of the 2 samplers"):
        maps_of(server, prompt)
