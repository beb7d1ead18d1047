"""demo/renders.py: shards on disk."""

import numpy as np
import pytest

from inner_guidance.demo.renders import shard_path, shards, write_shard


def test_finished_shards_in_the_order_of_their_seeds(tmp_path):
    for start in (500, 0, 250):
        write_shard(shard_path(tmp_path, start), np.zeros(1))
    shard_path(tmp_path, 750).with_suffix(".123").touch()  # a shard that was interrupted

    assert [int(path.stem) for path in shards(tmp_path, "renders")] == [0, 250, 500]


def test_without_shards_the_stage_that_writes_them_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"no shards in .*demo\.train latents` first"):
        shards(tmp_path / "latents", "latents")
