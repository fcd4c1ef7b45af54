"""Well known networks built from nothing: the topology of the paper, random weights, batch norm not folded.

Only NumPy and onnx are needed, so that a demo can show the compiler at work on a full-sized network without downloading
one. A network is described once; a `GraphBuilder` (`benchmarks.zoo.builder`) writes the ONNX nodes and, beside them,
computes the activations of a few synthetic images, from which every layer takes its statistics. Activations therefore
stay as healthy as in a trained network, through any depth.

All builders take ``batch``, ``image`` (height and width), ``width`` (multiplies the channels of every layer) and
``seed`` (of the weights), those of long networks ``depth`` (multiplies the blocks of every stage). They return a model
of opset 17 with one input, float32 [batch, 3 (or 1), image, image]. Defaults are the papers'. A new network is a
function that calls the builder's layers and returns ``builder.finish(...)``, and a line below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from benchmarks.zoo.classifiers import densenet121, shufflenet_v2, squeezenet, vgg16
from benchmarks.zoo.dense_prediction import deeplab_v3, edsr, espcn, fsrcnn, unet
from benchmarks.zoo.detection import ssd_mobilenet_v1, ssd_vgg16, yolov3_tiny
from benchmarks.zoo.inception import inception_v3, inception_v4
from benchmarks.zoo.mobilenet import efficientnet_b0, mobilenet_v1, mobilenet_v2, mobilenet_v3_large
from benchmarks.zoo.resnet import resnet, resnext50

ZOO: dict[str, Callable[..., onnx.ModelProto]] = {
    "resnet18_v1": partial(resnet, 18),
    "resnet50_v1": partial(resnet, 50),
    "resnet101_v1": partial(resnet, 101),
    "resnet152_v1": partial(resnet, 152),
    "resnext50": resnext50,
    "inception_v3": inception_v3,
    "inception_v4": inception_v4,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v1_050": partial(mobilenet_v1, width=0.5),
    "mobilenet_v1_025": partial(mobilenet_v1, width=0.25),
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "efficientnet_b0": efficientnet_b0,
    "vgg16": vgg16,
    "squeezenet1_1": squeezenet,
    "densenet121_v1": densenet121,
    "shufflenet_v2": shufflenet_v2,
    "ssd_vgg16": ssd_vgg16,
    "ssd_mobilenet_v1": ssd_mobilenet_v1,
    "yolov3_tiny": yolov3_tiny,
    "deeplab_v3": deeplab_v3,
    "unet": unet,
    "espcn": espcn,
    "fsrcnn": fsrcnn,
    "edsr": edsr,
}
"""Name to the function that builds the network."""
