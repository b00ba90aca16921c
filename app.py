"""Entry point of the page, on a machine of your own (`python app.py`) and in a Space."""

import subprocess
from importlib.util import find_spec

from fracture_lib.webui.launch import main

if find_spec("spaces"):  # a Space brings it
    import spaces

    @spaces.GPU(duration=10)
    def describe_gpu() -> str:
        """Return what nvidia-smi prints about the GPU.

        ZeroGPU hosts a Space only if it has a function for the GPU. The page never calls this one: ONNX
        Runtime on the CPU answers sooner than a GPU could be borrowed, so no visitor queues for one.
        """
        return subprocess.run(["nvidia-smi"], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
