"""Send a tile to the web service as the blog's client does, and write the mask as a picture.

URL in the environment names a running service, as `magtiles-seg serve` starts it; without it the
example starts one for itself.
"""

import json
import os
from pathlib import Path

import cv2
import httpx
import numpy as np

from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.serve.running import local_service

file_path = Path("out/tile.jpg")
file_path.parent.mkdir(exist_ok=True)
cv2.imwrite(str(file_path), synthetic_tile(seed=3, defect="blowhole", exposure=3).image)

with local_service(os.environ.get("URL")) as service, file_path.open("rb") as file:
    files = {"image": (str(file_path), file, "image/jpeg")}
    try:
        response = httpx.post(f"{service}/analyze", files=files, timeout=30).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SystemExit(f"no answer of {service}: {error}") from error

data = json.loads(response.content)
pred = np.array(data["pred"], np.uint8)
cv2.imwrite(str(file_path.with_name("tile_mask.png")), pred * 255)

print(f"{pred.shape[0]} x {pred.shape[1]} px, {pred.sum()} of them defect")
print(f"verdict {response.headers['x-verdict']}, model {response.headers['x-model-name']}")
