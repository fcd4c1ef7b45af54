"""The compiler, pass by pass, in order, with the reason for every ordering constraint."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from tvm_int8.code_generation import MarkReadersOfInputs
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import register_with_tvm
from tvm_int8.passes.absorb_high_biases import AbsorbHighBiases
from tvm_int8.passes.assign_layouts import AssignLayouts
from tvm_int8.passes.byte_inputs import ByteInputs
from tvm_int8.passes.canonicalize import Canonicalize
from tvm_int8.passes.dense_to_conv2d import DenseToConv2d
from tvm_int8.passes.dequantize_late import DequantizeLate
from tvm_int8.passes.equalize_layers import EqualizeLayers
from tvm_int8.passes.fold_batch_norm import FoldBatchNorm
from tvm_int8.passes.fold_constants import FoldConstants
from tvm_int8.passes.fold_scale_shift import FoldScaleShift
from tvm_int8.passes.insert_qdq import InsertQdq
from tvm_int8.passes.lift_constants import LiftConstants
from tvm_int8.passes.merge_gathers import MergeGathers
from tvm_int8.passes.merge_quantizes import MergeQuantizes
from tvm_int8.passes.move_integers import MoveIntegers
from tvm_int8.passes.observe import Observe
from tvm_int8.passes.order_channels_last import OrderChannelsLast
from tvm_int8.passes.order_kernels import OrderKernels
from tvm_int8.passes.order_winograd import OrderWinograd, Ways
from tvm_int8.passes.overlay_channels import OverlayChannels
from tvm_int8.passes.plan_memory import PlanMemory
from tvm_int8.passes.quantize_early import QuantizeEarly
from tvm_int8.passes.quantizers import Quantizers
from tvm_int8.passes.recognize_channel_shuffle import RecognizeChannelShuffle
from tvm_int8.passes.recognize_depth_to_space import RecognizeDepthToSpace
from tvm_int8.passes.recognize_lrn import RecognizeLrn
from tvm_int8.passes.schedule_islands import ScheduleIslands
from tvm_int8.passes.schedule_kernels import Choose, ScheduleKernels
from tvm_int8.passes.simulate_quantization import SimulateQuantization
from tvm_int8.passes.sub_pixel_convolution import SubPixelConvolution
from tvm_int8.passes.unsigned_activations import UnsignedActivations
from tvm_int8.passes.wrap_integers import WrapIntegers
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.schedules.convolution_time import Measured, fastest
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.specs import Conv2d

register_with_tvm()


def canonical_float() -> tvm.transform.Pass:
    """Passes 1: what the frontend delivers -> the smallest float network that computes the same."""
    return tvm.transform.Sequential(
        [
            FoldConstants(),  # first, because the folds below look for constant operands
            Canonicalize(),  # because patterns are stated on one spelling of each operator
            FoldBatchNorm(),  # before scale/shift, because what it cannot fold becomes one
            FoldScaleShift(),
            RecognizeChannelShuffle(),
            RecognizeLrn(),
            FoldConstants(),  # again, because folding leaves arithmetic on constants behind
            SubPixelConvolution(),  # after folding, because a batch norm's channels are the transposed convolution's
            DenseToConv2d(),  # last, because batch norms behind dense layers are folded as matmuls
        ]
    )


def byte_inputs(mean=None, std=None) -> tvm.transform.Pass:
    """Before passes 1: float32 images -> uint8 ones that the network normalises, so that folding sees it."""
    return ByteInputs(mean, std)


def equalize(imported: tvm.IRModule) -> tvm.transform.Pass:
    """Between passes 1 and calibration: the same float network, easier to quantise; `imported` has the batch norms."""
    return tvm.transform.Sequential(
        [
            EqualizeLayers(),
            AbsorbHighBiases(imported),  # after equalising, because scales decide which biases stand out
            FoldScaleShift(),  # last, because an absorbed bias is added beside the layer's own
        ]
    )


def observe(names: list[str]) -> tvm.transform.Pass:
    """The float network that also returns the tensors called `names`."""
    return Observe(names)


def simulate(points: list[str]) -> tvm.transform.Pass:
    """The float network whose tensors called `points` are rounded as parameters say."""
    return SimulateQuantization(points)


def quantize(
    table: CalibrationTable, config: QuantizationConfig, quantizers: Quantizers | None = None
) -> tvm.transform.Pass:
    """Passes 2: canonical float -> QDQ, with the quantisers that ranges and options give, or with given ones."""
    return InsertQdq(table, config, quantizers)


def integers() -> tvm.transform.Pass:
    """Passes 3, first steps: QDQ as quantisers write it -> QDQ as kernels compute it."""
    return tvm.transform.Sequential(
        [
            MergeQuantizes(),  # first, because what follows asks whether one quantize is a tensor's only reader
            WrapIntegers(),  # before unsigned activations, because those need every reader of integers to say its scale
            DequantizeLate(),
            QuantizeEarly(),  # with the above before moving integers, because they leave pairs around what moves
            UnsignedActivations(),  # before everything that reads scales, because kernels take uint8
            MoveIntegers(),  # last, because a moved integer needs no dequantize
        ]
    )


def order() -> tvm.transform.Pass:
    """Passes 3, first half: QDQ (or float) -> kernel orders on logical tensors."""
    return tvm.transform.Sequential(
        [
            integers(),
            RecognizeChannelShuffle(),  # again, because only now shuffles of imported QDQ models are free of QDQ
            RecognizeDepthToSpace(),  # after moving integers, because they may be what it reads
            OrderKernels(),
            OrderChannelsLast(),  # after ordering, because it asks whether a kernel delivers what is transposed
        ]
    )


def tile(ways: Ways, cpu: Cpu, always: bool = False, measured: Measured = lambda spec: {}) -> tvm.transform.Pass:
    """After `order`: convolutions that are faster so, or `always`, in the Winograd domain.

    What is faster a model of the CPU says, or times that have been measured.
    """

    def choose(specs: Sequence[Conv2d]) -> int:
        return 1 + fastest(specs[1:], cpu, measured) if always else fastest(specs, cpu, measured)

    return OrderWinograd(ways, choose)


def place(tiles: tvm.transform.Pass | None = None) -> tvm.transform.Pass:
    """Passes 3 without the last ones: QDQ (or float) -> kernel orders on packed tensors, which are what is tuned.

    `tiles` is what `tile` returns; without it all convolutions are direct.
    """
    return tvm.transform.Sequential(
        [
            order(),
            *([tiles] if tiles else []),  # after ordering, because what it replaces are orders
            MergeGathers(),  # before layouts, because it removes tensors
            AssignLayouts(),  # after ordering, because layouts belong to kernels
            OverlayChannels(),  # after layouts, because they decide which channels lie together
        ]
    )


def schedule(cpu: Cpu, choose: Choose = lambda spec: None) -> tvm.transform.Pass:
    """The last of passes 3: kernel orders and islands -> calls of scheduled functions."""
    return tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),  # the islands; kernel orders are no operators TVM knows
            relax.transform.RewriteDataflowReshape(),  # before scheduling, because it recognises views by their blocks
            ScheduleIslands(cpu),
            ScheduleKernels(
                cpu, choose
            ),  # last, because its functions are explicit loops that no pass over blocks may see
        ]
    )


def lower(cpu: Cpu, choose: Choose = lambda spec: None, tiles: tvm.transform.Pass | None = None) -> tvm.transform.Pass:
    """Passes 3: QDQ (or float) -> calls of scheduled functions, with the knobs that `choose` knows for a spec."""
    return tvm.transform.Sequential([place(tiles), schedule(cpu, choose)])


def lift_constants(counts: dict[str, int]) -> tvm.transform.Pass:
    """Scheduled functions whose constants are parameters: the kernels that bind these names, so many of each."""
    return LiftConstants(counts)


def to_executable() -> tvm.transform.Pass:
    """Relax with scheduled functions -> what the virtual machine's code generator takes."""
    return tvm.transform.Sequential(
        [
            MarkReadersOfInputs(),  # first, while the dataflow block is there
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            PlanMemory(),  # leaves nothing to KillAfterLastUse: the arena lives as long as the call
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
