"""Pixels of evaluation crops compared with open_clip's transform on photographs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxclip.data.images import crops
from jaxclip.data.images import decode as images
from jaxclip.data.record import Record
from jaxclip.data.sources import open_source

# Undoes the last two steps of open_clip's transform, which make floats of the pixels and normalize them.
PROGRAM = """
import sys
import numpy as np
from PIL import Image
from open_clip.transform import image_transform
resize_and_crop = image_transform(224, is_train=False).transforms[:-2]
for number in range(int(sys.argv[2])):
    image = Image.open(f"{sys.argv[1]}/{number}.jpg")
    for change in resize_and_crop:
        image = change(image)
    np.save(f"{sys.argv[1]}/{number}.npy", np.asarray(image))
"""


@pytest.mark.peer
def test_evaluation_sees_the_pixels_that_open_clip_sees(shared_data, tmp_path):
    python = os.environ.get("PEER_PYTHON", sys.executable)
    if python == sys.executable and importlib.util.find_spec("open_clip") is None:
        pytest.skip("set PEER_PYTHON to a Python that has open_clip_torch")
    source = open_source(str(shared_data / "photos" / "*.tar"))
    records = [record for record in source.read(range(len(source))) if isinstance(record, Record)]
    for number, record in enumerate(records):
        (tmp_path / f"{number}.jpg").write_bytes(record.image)
    subprocess.run([python, "-c", PROGRAM, str(tmp_path), str(len(records))], check=True, capture_output=True)
    for number, record in enumerate(records):
        ours = crops.center_crop(images.open_image(record.image), 224)
        np.testing.assert_array_equal(ours, np.load(tmp_path / f"{number}.npy"), err_msg=record.key)
    assert len(records) >= 256
