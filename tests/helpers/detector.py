"""A small recipe and random pretrained weights, to train the fracture detector in seconds."""

from pathlib import Path

from fracture_lib.training.detector import DetectorRecipe

TINY_DETECTOR_RECIPE = DetectorRecipe(epochs=1, batch_size=8, n_cached_views=1)


def write_random_efficientnet(path: Path) -> Path:
    """Write random weights of an EfficientNet-Lite0 under timm's names."""
    import torch
    from safetensors.torch import save_file

    from fracture_lib.models.efficientnet import N_FROZEN_STAGES, NEW_LAYERS, Tail, Trunk

    torch.manual_seed(0)
    tensors = dict(Trunk().state_dict())
    tensors["conv_stem.weight"] = tensors["conv_stem.weight"].repeat(1, 3, 1, 1) / 3
    for name, tensor in Tail(1).state_dict().items():
        if not name.startswith(NEW_LAYERS):
            _, stage, rest = name.split(".", 2)
            tensors[f"blocks.{int(stage) + N_FROZEN_STAGES}.{rest}"] = tensor
    tensors["classifier.bias"] = torch.zeros(1000)  # as in the original; not used
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file(kept, path, metadata={"source": "random EfficientNet-Lite0"})
    return path
