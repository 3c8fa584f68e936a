"""torchvision's classification networks as bodies, by name, with weights from a local file if asked for.

Owns what is changed of them: their last layer is 256 wide in place of 1,000, the representation that objectives and
heads stand on; they have neither auxiliary outputs nor dropout nor stochastic depth, so that a step depends on nothing
but its batch. Everything else, initialisation included, is torchvision's. Nothing is downloaded.
Use: `body = torchvision_body("torchvision:resnet50", (224, 224, 3))`, then `load_weights(body, name, path)`.
"""

import pickle
import re
import typing
from pathlib import Path

import torch
from torch import nn

from fastad.errors import FastadError, unknown

PREFIX = "torchvision:"
REPRESENTATION_WIDTH = 256

# These have further outputs in training, and say that their initialisation may change.
_WITH_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def check_backbone(name: str) -> None:
    """Raises `FastadError` if torchvision has no classification network of that name."""
    from torchvision import models

    if name.removeprefix(PREFIX) not in (known := models.list_models(module=models)):
        raise unknown("network", name, [PREFIX + other for other in known])


def torchvision_body(name: str, shape_hwc: tuple[int, int, int]) -> nn.Module:
    """The network with a last layer `REPRESENTATION_WIDTH` wide, initialised as torchvision does it.

    Raises `FastadError` if it does not take images of that shape.
    """
    from torchvision import models
    from torchvision.ops import StochasticDepth

    height, width, channels = shape_hwc
    if channels != 3:
        raise FastadError(
            f"{name} takes colour images, found {height}×{width}×{channels}: choose another set or network"
        )
    network = name.removeprefix(PREFIX)
    options = {"aux_logits": False, "init_weights": True} if network in _WITH_AUXILIARY else {}
    body = models.get_model(network, weights=None, num_classes=REPRESENTATION_WIDTH, **options)
    for module in body.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    try:
        with torch.inference_mode():
            body.eval()(torch.zeros(1, channels, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FastadError(
            f"{name} does not take images of {height}×{width}×{channels} ({reason}): resize or crop them with "
            "--set augment.resize_px and augment.crop_px, or choose another network"
        ) from error
    return typing.cast(nn.Module, body.train())


def load_weights(body: nn.Module, name: str, path: Path) -> None:
    """Puts the weights of a state dict, as torchvision's own files hold it, into the body, but for its last layer.

    Raises `FastadError` for a file that is missing, holds anything but tensors, or is another network's.
    """
    if not path.is_file():
        raise FastadError(f"no weights at {path}: give the file of a state dict of {name} in network_weights")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise FastadError(
            f"{path} cannot be read as weights: save them with torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise FastadError(f"{path} holds no state dict: save one with torch.save(model.state_dict(), path)")
    last = [key for key, module in body.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    left_out = (f"{last}.", *_WITH_AUXILIARY.get(name.removeprefix(PREFIX), ()))
    # torchvision's files of DenseNets have names of an older version of it.
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): found[key] for key in found}
    given = {key: value for key, value in renamed.items() if not key.startswith(left_out)}
    own = {key: value for key, value in body.state_dict().items() if not key.startswith(left_out)}
    wrong = [key for key in own if key not in given or given[key].shape != own[key].shape]
    if wrong := wrong or [key for key in given if key not in own]:
        raise FastadError(
            f"{path} holds the weights of another network than {name}: {len(wrong)} of {len(own)} tensors are missing, "
            f"too many or of another shape, such as {wrong[0]}"
        )
    body.load_state_dict(given, strict=False)
