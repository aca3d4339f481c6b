"""Finding your own videos in a folder: what is a video, to which fold it belongs, what is left out.

A video is a video file, a file of many pictures, or a sequence of numbered pictures. Each belongs
to the training, validation or test fold for good: by the name of a folder that it lies in if that
is one that people use (`train`, `val`, `Testing`, ...), else by a hash of its path in the folder
searched, which stays the same when other videos are added.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from srvp.data.config import DataConfig
from srvp.data.pictures import holds_many

FOLDS = ("train", "validation", "test")
SEED = 42  # of the split that hashes paths as they are; any other seed is put before them

_words = str.split
FOLD_WORDS = {
    **dict.fromkeys("train training trn".split(), "train"),
    **dict.fromkeys("validation validate valid val dev development".split(), "validation"),
    **dict.fromkeys("test testing tests tst eval evaluation heldout holdout".split(), "test"),
}
FOLD_ADDITIONS = re.compile(r"^\d+|set|split|fold|data|videos?|clips?|frames?|images?|\d+$|[-_. ]")

VIDEO_SUFFIXES = set(
    ".mp4 .m4v .mov .qt .avi .divx .mkv .webm .wmv .asf .flv .f4v .3gp .3g2 .mpg .mpeg .mpe .m1v "
    ".m2v .vob .ts .mts .m2ts .m2t .ogv .ogg .y4m .mjpeg .mjpg .dv".split()
)
STILL_SUFFIXES = set(
    ".jpg .jpeg .jpe .jfif .bmp .dib .pgm .ppm .pbm .pnm .pfm .tga .jp2".split()
)
EITHER_SUFFIXES = set(".gif .png .apng .tif .tiff .webp .avif".split())  # one picture or many
