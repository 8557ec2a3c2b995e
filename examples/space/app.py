"""The demo as a Hugging Face Space: put the files of this folder into a Space's repository."""

from magtiles_seg import Segmenter, demo

if __name__ == "__main__":
    demo.run(Segmenter(), host="0.0.0.0", port=7860)
