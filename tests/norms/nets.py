"""The papers' architectures, and timm's with fused layers, at sizes that a test can afford."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

DETECTORS = ("fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2")


class Net(NamedTuple):
    """An architecture, and what a conversion to MABN and a folding must find in it.

    `paired` norms follow one convolution, `sliced` ones a concatenation or an average pooling.
    """

    name: str
    size: int
    norms: int
    paired: int
    sliced: int = 0
    kept: int = 0
    library: str = "torchvision"
    slow: bool = False

    @property
    def unpaired(self) -> int:
        return self.norms - self.paired - self.sliced

    def build(self) -> nn.Module:
        """The untrained model, in evaluation mode, with norms as if it were trained."""
        torch.manual_seed(0)
        if self.library == "timm":
            return stir(timm.create_model(self.name, num_classes=10)).eval()
        options: dict[str, Any] = {"weights": None, "num_classes": 10}
        if self.name in DETECTORS:
            options |= {"weights_backbone": None, "min_size": 96, "max_size": 128}
            if self.name == DETECTORS[0]:
                options["rpn_post_nms_top_n_test"] = 20
        if self.name == "inception_v3":
            options["init_weights"] = False  # its own draw takes half a minute
        return stir(torchvision.models.get_model(self.name, **options)).eval()

    def example(self, dtype: torch.dtype = torch.float32) -> Any:
        images = torch.rand(2, 3, self.size, self.size, dtype=dtype)
        return list(images) if self.name in DETECTORS else images


NETS = [
    Net("resnet18", 64, 20, 20),
    Net("resnet50", 64, 53, 53),
    Net("resnet101", 64, 104, 104, slow=True),
    Net("resnext50_32x4d", 64, 53, 53, slow=True),
    Net("resnext101_32x8d", 64, 104, 104, slow=True),
    Net("vgg16_bn", 64, 13, 13, slow=True),
    Net("inception_v3", 299, 96, 96, slow=True),
    # 59 after one convolution, 58 after a concatenation, 3 after a transition's pooling; the very
    # first norm of a block comes after a ReLU and max pooling
    Net("densenet121", 64, 121, 59, sliced=61),
    Net("mobilenet_v2", 64, 52, 52),
    Net("fasterrcnn_resnet50_fpn_v2", 96, 53 + 8 + 4, 65, slow=True),
    Net("retinanet_resnet50_fpn_v2", 96, 53, 53, kept=8, slow=True),
    Net("resnetv2_50", 64, 49, 32, library="timm"),
    Net("mobilenetv3_small_100", 64, 34, 34, library="timm"),
    Net("efficientnet_b0", 64, 49, 49, library="timm"),
    Net("mixnet_s", 64, 49, 15, sliced=34, library="timm", slow=True),
    Net("dpn48b", 64, 54, 33, sliced=19, library="timm", slow=True),
    Net("levit_128s", 224, 52, 50, library="timm", slow=True),
    Net("res2net50_14w_8s", 64, 149, 149, library="timm", slow=True),
]
NET_CASES = [
    pytest.param(net, id=f"{net.name}", marks=[pytest.mark.slow] if net.slow else [])
    for net in NETS
]


@torch.no_grad()
def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms gamma, beta and running statistics that are not what they start as."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        buffers = {n: b for n, b in module._buffers.items() if b is not None}
        for name, value in (*buffers.items(), *module._parameters.items()):
            if name in ("running_var", "running_std"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif name == "running_mean":
                value.normal_(0.0, 0.2, generator=generator)
            elif isinstance(value, nn.Parameter) and value.dim() == 1 and "running_var" in buffers:
                value.uniform_(0.5, 1.5, generator=generator)
    return model


@torch.no_grad()
def outputs(model: nn.Module, example: Any) -> Tensor:
    """All numbers that a model puts out, as one vector; a detector's head's before selection."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.extend(leaves(output))

    names = ("roi_heads.box_predictor", "head")
    heads = [m for n, m in model.named_modules() if n in names and isinstance(example, list)]
    handles = [head.register_forward_hook(keep) for head in heads]
    try:
        result = model(example)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([t.flatten() for t in found or leaves(result)])


def leaves(tree: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, Tensor)]


@contextmanager
def inputs_and_outputs(model: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What every module took in and put out at its last call, copied."""
    taken: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                made[name] = output.clone()

        return note

    def before(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                taken[name] = inputs[0].clone()

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules()]
    handles += [m.register_forward_pre_hook(before(n)) for n, m in model.named_modules()]
    try:
        yield taken, made
    finally:
        for handle in handles:
            handle.remove()
