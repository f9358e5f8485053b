"""Which convolutions, and which of the layers to read: the whole definition of a search space."""

from torch import Tensor, nn

from src.spaces.choices import InputChoice, LayerChoice


class SignalSpace(nn.Module):
    """Layers of convolutions on signals (N, C, length), and a choice of the two layers that the head reads."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, depth: int = 3, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv1d(input_shape[0], channels, 3, padding=1)
        self.layers = nn.ModuleList(self.layer(f"layer{number}", channels) for number in range(depth))
        self.read = InputChoice([f"output{number}" for number in range(depth)], n_chosen=2, key="read")
        self.head = nn.Linear(channels, num_classes)

    def layer(self, key: str, channels: int) -> LayerChoice:
        """Return one of three convolutions, or nothing."""
        candidates: dict[str, nn.Module] = {"skip": nn.Identity()}
        for size in (3, 5, 9):
            conv = nn.Conv1d(channels, channels, size, padding=size // 2)
            candidates[f"conv_{size}"] = nn.Sequential(conv, nn.BatchNorm1d(channels), nn.ReLU())
        return LayerChoice(candidates, key=key)

    def forward(self, x: Tensor) -> Tensor:
        """Map signals (N, C, length) to logits (N, num_classes)."""
        outputs = [self.stem(x)]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return self.head(self.read(outputs[1:]).mean(dim=2))
