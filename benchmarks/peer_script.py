"""Runs a peer's script as it is, with what this machine lacks standing in.

    python benchmarks/peer_script.py [--narrow WIDTH,GROUPS] SCRIPT ARGUMENTS...

transformers asks whether there is a torchvision, and would want all of it: it is asked before the stand-in is there.
--narrow: kohya's UNet has the widths of Stable Diffusion written in its source; they are divided by WIDTH before it is
built, and its norms have GROUPS groups.
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    arguments = sys.argv[1:]
    narrow = arguments[1] if arguments[0] == "--narrow" else ""
    script = Path(arguments[2 if narrow else 0]).resolve()
    sys.argv = [str(script), *arguments[3 if narrow else 1 :]]
    import_module("transformers.utils.import_utils").is_torchvision_available()
    sys.path[:1] = [str(script.parent), str(Path(__file__).parent / "stand_ins")]
    if narrow:
        name_as_before()
        make_narrow(*map(int, narrow.split(",")))
    runpy.run_path(str(script), run_name="__main__")


def name_as_before() -> None:
    """kohya imports this class by the name that it had until transformers 5."""
    processor = import_module("transformers").CLIPImageProcessor
    sys.modules["transformers"].CLIPFeatureExtractor = processor  # another module since that first use


def make_narrow(width: int, groups: int) -> None:
    unet = import_module("library.original_unet")
    unet.BLOCK_OUT_CHANNELS = tuple(channels // width for channels in unet.BLOCK_OUT_CHANNELS)
    unet.TIMESTEP_INPUT_DIM = unet.BLOCK_OUT_CHANNELS[0]
    unet.TIME_EMBED_DIM = 4 * unet.BLOCK_OUT_CHANNELS[0]
    unet.NORM_GROUPS = unet.TRANSFORMER_NORM_NUM_GROUPS = groups


if __name__ == "__main__":
    main()
