"""The demo as a Hugging Face Space: put the files of this folder into a Space's repository."""

from magtiles_seg import Segmenter
from magtiles_seg.serve.demo import LAUNCH, build

if __name__ == "__main__":
    build(Segmenter()).launch(**LAUNCH)
