"""Judge tiles on a line: four requests under way, a deadline for each, and no tile forgotten."""

import asyncio
import os

import cv2
import httpx

from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.serve.running import local_service

AT_ONCE = httpx.Limits(max_connections=4)
QUESTION = "/analyze?include=verdict,defects&mask=none"


async def judge(client: httpx.AsyncClient, picture: bytes) -> str:
    """Return the verdict; ask again while the service is busy."""
    while True:
        reply = await client.post(QUESTION, files={"image": picture})
        if reply.status_code != 503:
            return str(reply.raise_for_status().json()["verdict"])
        await asyncio.sleep(float(reply.headers.get("retry-after", 1)))


async def main(service: str) -> None:
    """Judge the tiles as a camera would give them."""
    tiles = (synthetic_tile(seed, defect="crack").image for seed in range(8))
    files = [cv2.imencode(".jpg", tile)[1].tobytes() for tile in tiles]
    async with httpx.AsyncClient(base_url=service, limits=AT_ONCE, timeout=None) as client:
        judged = (asyncio.wait_for(judge(client, file), timeout=20) for file in files)
        verdicts = await asyncio.gather(*judged, return_exceptions=True)
    for verdict in verdicts:  # what nobody judged in time is for a person
        print(verdict if isinstance(verdict, str) else f"review ({verdict!r})")


with local_service(os.environ.get("URL")) as address:
    asyncio.run(main(address))
