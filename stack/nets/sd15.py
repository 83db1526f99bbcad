"""Stable Diffusion's UNet as a denoiser: x0, features from the encoder, FSDP blocks.

Conditioning is stock diffusers' to the letter: all 77 token states, no padding mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D
from torch import Tensor, nn

from stack.diffusion.parameterization import PARAMETERIZATIONS, loss_weight, predict_x0
from stack.diffusion.schedule import DiscreteSchedule, schedule_from_config
from stack.nets.layout import channels_last
from stack.nets.precision import autocast
from stack.nets.weights import require_weights
from stack.util.errors import UserError
from stack.util.files import read_json


class SDDenoiser(nn.Module):
    """A UNet2DConditionModel that returns x0 in float32.

    Args:
        unet: the network; latents (B, 4, H, W), context (B, 77, D).
        parameterization: what it predicts, from the scheduler's config.
        resolutions: sizes of the feature maps :meth:`features` returns, in this order: of each
            size the deepest hidden state of the encoder (the middle block's at the smallest).
        bf16: run the network under bf16 autocast.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        schedule: DiscreteSchedule,
        parameterization: str,
        *,
        resolutions: Sequence[int] = (),
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.unet = channels_last(unet)
        self.schedule, self.parameterization = schedule, parameterization
        self.resolutions, self.bf16 = tuple(resolutions), bf16
        sizes = [unet.config.sample_size >> i for i in range(len(unet.config.block_out_channels))]
        for resolution in resolutions:
            if resolution not in sizes:
                raise UserError(
                    f"gan.resolutions: {resolution}: the UNet has feature maps of sizes "
                    f"{', '.join(map(str, sizes))}"
                )

    @property
    def feature_channels(self) -> list[int]:
        """Channels of each feature map."""
        config = self.unet.config
        sizes = [config.sample_size >> i for i in range(len(config.block_out_channels))]
        return [config.block_out_channels[sizes.index(size)] for size in self.resolutions]

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x0 (B, 4, H, W) float32 of x_t (B, 4, H, W), t (B,) int64, c (B, 77, D)."""
        with autocast(x_t.device, self.bf16):
            prediction = self._decode(*self._encode(x_t, t, c), c)
        return predict_x0(prediction, x_t, t, self.schedule, self.parameterization)

    def features(self, x_t: Tensor, t: Tensor, c: Tensor) -> list[Tensor]:
        """Feature maps from the encoder alone, which stops after the deepest one asked for."""
        with autocast(x_t.device, self.bf16):
            return self._pick(self._hidden(x_t, self._time(t, x_t), c))

    def x0_and_features(self, x_t: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Both from one pass; the decoder runs without gradient."""
        with autocast(x_t.device, self.bf16):
            hidden, emb = self._encode(x_t, t, c)
            features = self._pick(iter(hidden))
            with torch.no_grad():
                prediction = self._decode(hidden, emb, c)
        with torch.no_grad():
            x0 = predict_x0(prediction, x_t, t, self.schedule, self.parameterization)
        return x0, features

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) weight that makes an error in x0 one in the network's own target."""
        return loss_weight(t, self.schedule, self.parameterization)

    def blocks(self) -> Iterator[nn.Module]:
        """Single ResNet and transformer blocks: the units of sharding and compilation."""
        for stage in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks):
            for kind in ("resnets", "attentions"):
                yield from dict(stage.named_children()).get(kind, ())

    # The UNet's own parts in the order of its forward.

    def _time(self, t: Tensor, x_t: Tensor) -> Tensor:
        return self.unet.time_embedding(self.unet.time_proj(t).to(x_t.dtype))

    def _hidden(self, x_t: Tensor, emb: Tensor, c: Tensor) -> Iterator[Tensor]:
        """Hidden states in order: conv_in, every output of the down blocks, the middle block."""
        state = self.unet.conv_in(x_t)
        yield state
        for block in self.unet.down_blocks:
            if isinstance(block, CrossAttnDownBlock2D):
                state, states = block(hidden_states=state, temb=emb, encoder_hidden_states=c)
            else:
                state, states = block(hidden_states=state, temb=emb)
            yield from states
        yield self.unet.mid_block(state, emb, encoder_hidden_states=c)

    def _encode(self, x_t: Tensor, t: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
        emb = self._time(t, x_t)
        return list(self._hidden(x_t, emb, c)), emb

    def _decode(self, hidden: list[Tensor], emb: Tensor, c: Tensor) -> Tensor:
        *skips, state = hidden
        for block in self.unet.up_blocks:
            states = tuple(skips[-len(block.resnets) :])
            del skips[-len(block.resnets) :]
            if isinstance(block, CrossAttnUpBlock2D):
                state = block(
                    hidden_states=state,
                    temb=emb,
                    res_hidden_states_tuple=states,
                    encoder_hidden_states=c,
                )
            else:
                state = block(hidden_states=state, temb=emb, res_hidden_states_tuple=states)
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(state)))

    def _pick(self, hidden: Iterator[Tensor]) -> list[Tensor]:
        """The last hidden state of each resolution; stops reading below the smallest."""
        found: dict[int, Tensor] = {}
        for state in hidden:
            if state.shape[-1] < min(self.resolutions):
                break
            found[state.shape[-1]] = state
        return [found[resolution] for resolution in self.resolutions]


def load_schedule(folder: str | Path) -> tuple[DiscreteSchedule, str]:
    """Noise schedule and parameterization of a pipeline folder.

    Raises:
        UserError: a part is missing or of an unknown kind.
    """
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    name = config.get("prediction_type", "epsilon")
    if name not in PARAMETERIZATIONS:
        raise UserError(f"{path}: prediction_type: {name!r} is none of {list(PARAMETERIZATIONS)}")
    return schedule_from_config(config, str(path)), name


def load_unet(folder: str | Path) -> UNet2DConditionModel:
    """The UNet of a pipeline folder, in float32.

    Raises:
        UserError: the folder lacks it.
    """
    return UNet2DConditionModel.from_pretrained(
        folder,
        subfolder="unet",
        variant=require_weights(folder, "unet"),
        use_safetensors=True,
        torch_dtype=torch.float32,
    )
