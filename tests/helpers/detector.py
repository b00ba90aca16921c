"""A small recipe and random pretrained weights, to train the fracture detector in seconds."""

from pathlib import Path

from fracture_lib.training.detector import DetectorRecipe

TINY_DETECTOR_RECIPE = DetectorRecipe(epochs=1, batch_size=8)


def write_random_efficientnet(path: Path) -> Path:
    """Write random weights of an EfficientNet-Lite0 under timm's names."""
    import torch
    from safetensors.torch import save_file

    from fracture_lib.models.efficientnet import NEW_LAYERS, FractureDetector

    torch.manual_seed(0)
    state = FractureDetector(1).state_dict()
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(NEW_LAYERS)}
    tensors["conv_stem.weight"] = tensors["conv_stem.weight"].repeat(1, 3, 1, 1) / 3
    tensors["classifier.bias"] = torch.zeros(1000)  # as in the original; not used
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file(kept, path, metadata={"source": "random EfficientNet-Lite0"})
    return path
