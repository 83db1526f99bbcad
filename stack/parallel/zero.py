"""A trained network sharded by DeepSpeed (``parallel.backend: zero1 | zero2 | zero3``).

The engine places the parameters, reduces gradients, steps and writes its own files. When a
gradient is whole, and whether a step is taken at all, is decided here and by the caller, since
one decision is shared by several networks; so the engine's own forward, backward, accumulation,
clipping and overflow checks are never entered. With P parameters on n ranks, an iteration moves

    zero1  gradients reduced to their owners once (P), weights gathered after the step (P)
    zero2  the same, but gradients are reduced in every backward: P per micro-batch
    zero3  weights gathered in every forward and backward (P each), gradients
           reduce-scattered in every backward (P)
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stack.parallel import engine
from stack.parallel.adam import Adam
from stack.parallel.collectives import Ranks
from stack.parallel.local import LocalWeights, make_dense
from stack.util.errors import UserError


class ZeroWeights(LocalWeights):
    """Weights, optimizer and learning-rate schedule of one network behind an engine.

    Call :attr:`module` as before, any of its methods, with and without gradient: for stage 3,
    hooks on its submodules gather what each needs.

    Args:
        ranks: torch.distributed must be initialized, for a single rank too.
        optimizer: over the module's parameters, in one group.
        lr_at: learning rate of this network's n-th step, counted from 0.
        max_norm: global gradient norm above which the gradient is scaled down.
        stage: what is sharded besides the optimizer's state: 1 nothing, 2 gradients, 3 weights.
        bf16: keep the weights of the forward in bfloat16; float32 are the sharded ones,
            and the reduction of gradients.
        offload: keep the sharded float32 weights and the optimizer's state in host memory.
    """

    def __init__(
        self,
        ranks: Ranks,
        name: str,
        module: nn.Module,
        optimizer: Adam,
        *,
        lr_at: Callable[[int], float],
        max_norm: float,
        stage: int,
        bf16: bool = False,
        offload: bool = False,
    ) -> None:
        super().__init__(name, module, optimizer, lr_at=lr_at, max_norm=max_norm)
        self.ranks, self.stage, self.offload = ranks, stage, offload
        make_dense(module)
        self.names: dict[Any, str] = {
            parameter: key for key, parameter in module.named_parameters()
        }
        size = sum(parameter.numel() for parameter in module.parameters())
        exact = {n: p.detach().clone() for n, p in module.named_parameters()} if bf16 else {}
        config = engine.config(stage, size, bf16=bf16, offload=offload)
        self.engine = engine.build(module, optimizer, config)
        # Our checkpoints hold data only, no scripts.
        self.engine._copy_recovery_script = lambda folder: None
        self.zero = self.engine.optimizer
        self.zero.set_gradient_accumulation_boundary(False)
        if stage == 3:
            # Ranks would compare notes on the order of submodules at every start of a forward,
            # to prefetch; but our forwards differ from call to call, and it would never settle.
            self.zero.parameter_offload.fwd_pre_hook.remove()
        for flat in self._flats():
            optimizer.moments(flat)  # A checkpoint before the first step holds them too.
        if stage < 3:
            self.zero._lazy_init_hp_params_optimizer_state()
        if bf16:
            # DeepSpeed takes the float32 weights from those that it has rounded.
            for key, piece in self.pieces().items():
                parameter, start = key.rsplit("@", 1)
                piece.copy_(exact[parameter].flatten()[int(start) :][: len(piece)])

    def _flats(self) -> list[Any]:
        """This rank's float32 weights as the optimizer sees them."""
        if self.stage == 3:
            return self.zero.fp32_partitioned_groups_flat
        return self.zero.single_partition_of_fp32_groups

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient; collective from stage 2 on."""
        self._reduce_pending()
        loss.backward()
        self._reduce_pending()

    def _reduce_pending(self) -> None:
        """Reduce what a backward has left in the buckets: of this network's loss, or of
        another's that reached these weights too."""
        if any(bucket.params for bucket in self.zero.ipg_buckets.values()):
            self.zero.overlapping_partition_gradients_reduce_epilogue()
            self.zero.clear_backward_seen_flag()
        if self.stage == 3:
            self.zero.backward_epilogue()

    def clip(self) -> Tensor:
        """Complete the gradient; returns its norm over all ranks (0-d float32), before clipping.

        What follows is :meth:`step`, which clips, or :meth:`discard`.
        """
        self._reduce_pending()
        self.zero.set_gradient_accumulation_boundary(True)
        if self.stage == 1:
            self.zero.reduce_gradients()
        else:
            self.zero.finalize_gradient_accumulation_boundary()
        self.zero.set_gradient_accumulation_boundary(False)
        square = nn.utils.get_total_norm(self._gradients()).float().square()
        self._norm = (self.ranks.all_reduce_mean(square) * self.ranks.world_size).sqrt()
        return self._norm.to(self.engine.device)

    def step(self) -> None:
        """Clip, step the optimizer and clear the gradient."""
        # DeepSpeed's own clipping would round differently from torch's.
        coefficient = (self.max_norm / (self._norm + 1e-6)).clamp(max=1)
        for gradient in self._gradients():
            gradient.mul_(coefficient)
        self.zero.set_lr(self.lr)
        self.zero.step()
        self.steps += 1
        self.discard()

    def discard(self) -> None:
        """Clear the gradient without a step."""
        self.zero.averaged_gradients.clear()
        self.zero.zero_grad()
        # Else a parameter without gradient in the next backward would keep this one.
        if self.stage == 3:
            self.zero.grad_partitions_flat_buffer.zero_()
        if self.offload:
            for flat in self._flats():
                flat.grad.zero_()
            self.zero.reset_cpu_buffers()
            if self.stage < 3:
                self.zero.micro_step_id = -1
                self.zero._offload_accumulated_param_ids.clear()

    def _gradients(self) -> list[Tensor]:
        """This rank's part of the complete gradient."""
        if self.offload:
            return [flat.grad for flat in self._flats()]
        return list(chain.from_iterable(self.zero.averaged_gradients.values()))

    def pieces(self) -> dict[str, Tensor]:
        """This rank's float32 weights as live 1-D views, ``parameter@start`` each, where start
        counts in the flattened parameter; the ranks' pieces tile every parameter. After writing
        into them call :meth:`refresh`."""
        found = self._pieces_stage3() if self.stage == 3 else self._pieces_stage12()
        return {f"{self.names[parameter]}@{start}": piece for parameter, start, piece in found}

    def _pieces_stage12(self) -> Iterator[tuple[nn.Parameter, int, Tensor]]:
        for parameter in chain.from_iterable(self.zero.bit16_groups):
            if mapping := parameter._hp_mapping:
                start = mapping.lp_fragment_address.start
                yield parameter, start, mapping.get_hp_fragment().detach()

    def _pieces_stage3(self) -> Iterator[tuple[nn.Parameter, int, Tensor]]:
        for group, flat in zip(self.zero.fp16_groups, self._flats(), strict=True):
            parts = flat.detach().split([p.partition_numel() for p in group])
            for parameter, part in zip(group, parts, strict=True):
                start = self.ranks.rank * part.numel()
                # The last part is padded; a short parameter leaves nothing for the last ranks.
                if start < parameter.ds_numel:
                    yield parameter, start, part[: parameter.ds_numel - start]

    def refresh(self) -> None:
        """Bring the weights of the forward in line with the pieces; collective."""
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        self.zero.empty_partition_cache()
        forwards = self.zero.fp16_partitioned_groups_flat
        for forward, master in zip(forwards, self._flats(), strict=True):
            forward.detach().copy_(master.detach())

    @torch.no_grad()
    def _put(self, name: str, value: Tensor) -> None:
        flat = value.flatten()
        for piece, view in self.pieces().items():
            parameter, _, start = piece.partition("@")
            if parameter == name:
                view.copy_(flat[int(start) :][: len(view)])

    def _sizes(self) -> dict[str, int]:
        if self.stage < 3:
            return super()._sizes()
        return {name: parameter.ds_numel for parameter, name in self.names.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the whole state is in :meth:`objects`."""
        return {}

    def objects(self) -> dict[str, Any]:
        """What DeepSpeed saves on this rank, for torch.save, by path; live references.
        Collective."""
        recorder = engine.recorder()
        usual, self.engine.checkpoint_engine = self.engine.checkpoint_engine, recorder
        try:
            with engine.silence():
                self.engine.save_checkpoint("unwritten", tag=self.name, save_latest=False)
        finally:
            self.engine.checkpoint_engine = usual
        return {f"{self.name}/{Path(path).name}": state for path, state in recorder.saved.items()}

    def load_objects(self, folder: Path) -> None:
        """Take over :meth:`objects` from a checkpoint's folder, which is only read. Files of
        another number of ranks are converted beside it first. Collective.

        Raises:
            UserError: they are of a network with other parameters.
        """
        own = folder / self.name
        self._check(own)
        if len(list(own.glob("*_optim_states.pt"))) == self.ranks.world_size:
            self._load(own)
            return
        converted = self.ranks.gather(folder.parent / f".universal-{uuid.uuid4().hex[:8]}")[0]
        self.ranks.by_first(lambda: engine.convert(own, converted / self.name))
        self.engine._config.load_universal_checkpoint = True
        self._load(converted / self.name)
        self.engine._config.load_universal_checkpoint = False
        self.ranks.barrier()
        self.ranks.by_first(lambda: shutil.rmtree(converted))

    def _check(self, folder: Path) -> None:
        """DeepSpeed would fill parameters of other shapes, if only their sizes fit in sum."""
        stored = engine.stored_shapes(folder)
        for parameter, name in self.names.items():
            here, there = getattr(parameter, "ds_shape", parameter.shape), stored.pop(name, None)
            if there != tuple(here):
                raise UserError(
                    f"{folder}: {name}: the checkpoint has {there or 'nothing'}, the run "
                    f"{tuple(here)}; resume with the recipe the run was started with"
                )
        if stored:
            raise UserError(f"{folder}: {next(iter(stored))}: not in the run's network")

    def _load(self, folder: Path) -> None:
        with engine.silence():
            self.engine.load_checkpoint(str(folder.parent), tag=folder.name)


def zero_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Float32 weights by name, each whole, out of a network's folder in a checkpoint, on one
    process. Of stages 1 and 2 DeepSpeed reads the whole network's weights first."""
    engine.deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with engine.silence():
        lazy = get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), tag=folder.name, lazy_mode=True
        )
    for name, tensor in lazy.items():
        yield name, tensor.contiguous()
