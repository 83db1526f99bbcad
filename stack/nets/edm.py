"""The EDM networks of CIFAR-10 and ImageNet-64, and the denoiser around them.

Written from Karras et al. 2022 (arXiv 2206.00364, Table 1 and Appendix F), with modules named such
that the published state dicts (``model.enc.32x32_conv.weight``, ...) load.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stack.diffusion.karras import KarrasSchedule, Scales, edm_loss_weight, precondition
from stack.diffusion.schedule import per_sample
from stack.nets import edm_blocks
from stack.nets.edm_blocks import (
    Block,
    Conv,
    EdmConfig,
    FloatLinear,
    Style,
    double,
    halve,
    waves,
)
from stack.nets.precision import autocast
from stack.util.errors import UserError


class EdmNetwork(nn.Module):
    """F(x; noise, c): the U-Net of either architecture, without its preconditioning.

    Args:
        stem: channels of the first convolution.
        decoder_attends: (resolution, number of the block) -> whether that block has attention.
    """

    def __init__(
        self,
        config: EdmConfig,
        style: Style,
        *,
        stem: int,
        decoder_attends: Callable[[int, int], bool],
    ) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips = self._build_encoder(stem)
        self._build_decoder(skips, decoder_attends)

    def _build_encoder(self, stem: int) -> list[int]:
        """Fill ``enc``; returns the channels of what it hands to the decoder."""
        config, emb = self.config, self.config.embedding
        width, skips = stem, [stem]
        for size, outputs in zip(config.resolutions, config.widths, strict=True):
            if size == config.img_resolution:
                conv = Conv(config.img_channels, stem, 3)
                self.style.start(conv, 1.0)
                self.enc[f"{size}x{size}_conv"] = conv
            else:
                down = Block(width, width, emb, self.style, resample=halve)
                self.enc[f"{size}x{size}_down"] = down
                skips.append(width)
            attends = size in config.attn_resolutions
            for number in range(config.num_blocks):
                block = Block(width, outputs, emb, self.style, attends=attends)
                self.enc[f"{size}x{size}_block{number}"] = block
                width = outputs
                skips.append(width)
        return skips

    def _build_decoder(self, skips: list[int], attends: Callable[[int, int], bool]) -> None:
        config, emb = self.config, self.config.embedding
        width, lowest = config.widths[-1], config.resolutions[-1]
        for size, outputs in zip(config.resolutions[::-1], config.widths[::-1], strict=True):
            if size == lowest:
                for number in range(2):
                    middle = Block(width, width, emb, self.style, attends=number == 0)
                    self.dec[f"{size}x{size}_in{number}"] = middle
            else:
                up = Block(width, width, emb, self.style, resample=double)
                self.dec[f"{size}x{size}_up"] = up
            for number in range(config.num_blocks + 1):
                inputs, attention = width + skips.pop(), attends(size, number)
                block = Block(inputs, outputs, emb, self.style, attends=attention, joins=True)
                self.dec[f"{size}x{size}_block{number}"] = block
                width = outputs

    def embed(self, noise: Tensor, c: Tensor, augment: Tensor | None) -> Tensor:
        """(B, width) float32 of noise (B,), labels c (B, K) and augmentation labels (B, A)."""
        raise NotImplementedError

    def output(self, x: Tensor) -> Tensor:
        """The picture (B, C, H, W) of the decoder's last state."""
        raise NotImplementedError

    def hidden(self, x: Tensor, emb: Tensor) -> Iterator[Tensor]:
        """States of the encoder in order, from the first convolution's on."""
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            yield x

    def decode(self, hidden: Sequence[Tensor], emb: Tensor) -> Tensor:
        """The picture (B, C, H, W) from all states of the encoder."""
        skips = list(hidden)
        x = skips[-1]
        for layer in self.dec.values():
            if isinstance(layer, Block):
                x = layer(torch.cat((x, skips.pop()), dim=1) if layer.joins else x, emb)
        return self.output(x)


class DDPMPlusPlus(EdmNetwork):
    """DDPM++ (Song et al. 2021) as EDM trains it on CIFAR-10."""

    def __init__(self, config: EdmConfig, dropout: float = 0.0) -> None:
        style = dataclasses.replace(edm_blocks.DDPMPP, dropout=dropout)
        channels, last = config.model_channels, config.num_blocks
        super().__init__(
            config,
            style,
            stem=channels,
            decoder_attends=lambda size, number: number == last and size in config.attn_resolutions,
        )
        size = f"{config.img_resolution}x{config.img_resolution}"
        self.dec[f"{size}_aux_norm"] = edm_blocks.group_norm(config.widths[0], style.eps)
        conv = Conv(config.widths[0], config.img_channels, 3)
        style.start(conv, style.last_gain)
        self.dec[f"{size}_aux_conv"] = conv
        self.map_label = FloatLinear(config.label_dim, channels) if config.label_dim else None
        self.map_augment = (
            FloatLinear(config.augment_dim, channels, bias=False) if config.augment_dim else None
        )
        self.map_layer0 = FloatLinear(channels, config.embedding)
        self.map_layer1 = FloatLinear(config.embedding, config.embedding)
        for layer in (self.map_label, self.map_augment, self.map_layer0, self.map_layer1):
            if layer is not None:
                style.start(layer, 1.0)

    def embed(self, noise: Tensor, c: Tensor, augment: Tensor | None) -> Tensor:
        channels = self.config.model_channels
        cosines, sines = waves(noise, channels, span=channels // 2 - 1)
        emb = torch.cat((sines, cosines), dim=1)
        if self.map_label is not None:
            emb = emb + self.map_label(c * math.sqrt(self.config.label_dim))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def output(self, x: Tensor) -> Tensor:
        size = f"{self.config.img_resolution}x{self.config.img_resolution}"
        return self.dec[f"{size}_aux_conv"](F.silu(self.dec[f"{size}_aux_norm"](x)))


class ADM(EdmNetwork):
    """ADM (Dhariwal & Nichol 2021) as EDM trains it on ImageNet-64."""

    def __init__(self, config: EdmConfig, dropout: float = 0.0) -> None:
        style = dataclasses.replace(edm_blocks.ADM, dropout=dropout)
        channels, wide = config.model_channels, config.embedding
        super().__init__(
            config,
            style,
            stem=config.widths[0],
            decoder_attends=lambda size, number: size in config.attn_resolutions,
        )
        self.map_augment = self.map_label = None
        if config.augment_dim:
            self.map_augment = FloatLinear(config.augment_dim, channels, bias=False)
            nn.init.zeros_(self.map_augment.weight)
        if config.label_dim:
            self.map_label = FloatLinear(config.label_dim, wide, bias=False)
            nn.init.normal_(self.map_label.weight)
        self.map_layer0 = FloatLinear(channels, wide)
        self.map_layer1 = FloatLinear(wide, wide)
        self.out_norm = edm_blocks.group_norm(config.widths[0], style.eps)
        self.out_conv = Conv(config.widths[0], config.img_channels, 3)
        style.start(self.out_conv, style.last_gain)

    def embed(self, noise: Tensor, c: Tensor, augment: Tensor | None) -> Tensor:
        channels = self.config.model_channels
        emb = torch.cat(waves(noise, channels, span=channels // 2), dim=1)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        return F.silu(emb if self.map_label is None else emb + self.map_label(c))

    def output(self, x: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))


_ARCHITECTURES: dict[str, Callable[[EdmConfig, float], EdmNetwork]] = {
    "ddpm++": DDPMPlusPlus,
    "adm": ADM,
}


def edm_network(config: EdmConfig, dropout: float = 0.0) -> EdmNetwork:
    """A network with random weights. ``dropout`` is for training a teacher: EDM's are .13 for
    CIFAR-10 and .10 for ImageNet-64 (Appendix F)."""
    return _ARCHITECTURES[config.architecture](config, dropout)


def one_hot(classes: Sequence[int] | Tensor, count: int) -> Tensor:
    """float32 (B, count) of B classes; (B, 0) where there are none."""
    if not count:
        return torch.zeros(len(classes), 0)
    return F.one_hot(torch.as_tensor(classes, dtype=torch.int64), count).float()


class EdmDenoiser(nn.Module):
    """An EDM network that returns x0 in float32: D(x; sigma) of eq. 7.

    Conditions c are (B, K) float: one-hot labels, or zeros for none; K = 0 if unconditional.

    Args:
        resolutions: sizes of the feature maps :meth:`features` returns, in this order: of each
            size the deepest hidden state of the encoder.
        bf16: run the network under bf16 autocast.
    """

    def __init__(
        self,
        network: EdmNetwork,
        schedule: KarrasSchedule,
        *,
        resolutions: Sequence[int] = (),
        bf16: bool = False,
    ) -> None:
        super().__init__()
        # The layout in which tensor cores convolve fastest; torch's stubs do not know the argument.
        self.model: EdmNetwork = network.to(memory_format=torch.channels_last)  # type: ignore
        self.config, self.schedule = network.config, schedule
        self.resolutions, self.bf16 = tuple(resolutions), bf16
        for resolution in resolutions:
            if resolution not in self.config.resolutions:
                raise UserError(
                    f"gan.resolutions: {resolution}: the network has feature maps of sizes "
                    f"{', '.join(map(str, self.config.resolutions))}"
                )

    @property
    def feature_channels(self) -> list[int]:
        """Channels of each feature map."""
        sizes = self.config.resolutions
        return [self.config.widths[sizes.index(size)] for size in self.resolutions]

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x0 (B, C, H, W) float32 of x_t (B, C, H, W), t (B,) int64, c (B, K)."""
        return self.denoise(x_t, self.schedule.sigma(t), c)

    def denoise(self, x: Tensor, sigma: Tensor, c: Tensor, augment: Tensor | None = None) -> Tensor:
        """x0 (B, C, H, W) float32 of x = x0 + sigma eps at any sigma (B,) above 0.

        Args:
            augment: (B, A) labels of the augmentation that x0 went through; None for none.
        """
        emb = self._embed(sigma, c, augment)
        with autocast(x.device, self.bf16):
            output = self.model.decode(list(self._hidden(x, sigma, emb)), emb)
        return self._x0(output, x, sigma)

    def features(self, x_t: Tensor, t: Tensor, c: Tensor) -> list[Tensor]:
        """Feature maps from the encoder alone, which stops after the deepest one asked for."""
        sigma = self.schedule.sigma(t)
        emb = self._embed(sigma, c)
        with autocast(x_t.device, self.bf16):
            return self._pick(self._hidden(x_t, sigma, emb))

    def x0_and_features(self, x_t: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both from one pass; the decoder runs without gradient."""
        sigma = self.schedule.sigma(t)
        emb = self._embed(sigma, c)
        with autocast(x_t.device, self.bf16):
            hidden = list(self._hidden(x_t, sigma, emb))
            features = self._pick(iter(hidden))
            with torch.no_grad():
                output = self.model.decode(hidden, emb)
        with torch.no_grad():
            return self._x0(output, x_t, sigma), features

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) weight that makes an error in x0 one in the network's own target."""
        return edm_loss_weight(self.schedule.sigma(t), self.config.sigma_data)

    def blocks(self) -> Iterator[nn.Module]:
        """Single residual blocks with their attention: the units of sharding and compilation."""
        for layer in (*self.model.enc.values(), *self.model.dec.values()):
            if isinstance(layer, Block):
                yield layer

    def _scales(self, sigma: Tensor, x: Tensor) -> Scales:
        """Float32, whatever sigma is given in, so that x0 at sigma(t) is that at t."""
        return precondition(per_sample(sigma.float(), x), self.config.sigma_data)

    def _embed(self, sigma: Tensor, c: Tensor, augment: Tensor | None = None) -> Tensor:
        noise = precondition(sigma.float(), self.config.sigma_data).noise
        return self.model.embed(noise, c, augment)

    def _hidden(self, x: Tensor, sigma: Tensor, emb: Tensor) -> Iterator[Tensor]:
        return self.model.hidden(self._scales(sigma, x).into * x.float(), emb)

    def _x0(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        scales = self._scales(sigma, x)
        return scales.skip * x.float() + scales.out * output.float()

    def _pick(self, hidden: Iterator[Tensor]) -> list[Tensor]:
        """The last hidden state of each resolution; stops reading below the smallest."""
        found: dict[int, Tensor] = {}
        for state in hidden:
            if state.shape[-1] < min(self.resolutions):
                break
            found[state.shape[-1]] = state
        return [found[resolution] for resolution in self.resolutions]
