"""Networks of other libraries, small and with random weights: what ``bench.coverage`` converts.

A library is imported when its first network is built. Inputs are the smallest that a network takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Example = Tensor | tuple[Any, ...] | dict[str, Any]
"""What a network is called with: its one input, its arguments, or its keyword arguments."""


@dataclass(frozen=True)
class Architecture:
    """A network of a library.

    Args:
        library: distribution that it belongs to.
        name: in this catalogue, once a library.
        build: makes it, with random weights.
        example: makes inputs for it.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Example]

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"


def catalogue() -> list[Architecture]:
    """All networks, by library; imports none."""
    return [*_torchvision(), *_timm(), *_transformers(), *_monai(), *_segmentation()]


def _images(side: int, channels: int = 3, batch: int = 2) -> Callable[[], Tensor]:
    return partial(torch.randn, batch, channels, side, side)


# --- torchvision ---------------------------------------------------------------------------------

# Name -> side of the input where it is not 64.
_CLASSIFIERS = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "googlenet": 64, "inception_v3": 96, "maxvit_t": 224,
    "mnasnet0_5": 64, "mobilenet_v2": 64, "mobilenet_v3_large": 64, "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64, "regnet_y_400mf": 64, "resnet18": 64, "resnet50": 64,
    "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_0": 64, "squeezenet1_1": 64,
    "swin_t": 64, "swin_v2_t": 64, "vgg11": 64, "vgg11_bn": 64, "vit_b_16": 224,
    "wide_resnet50_2": 64,
}  # fmt: skip
_SEGMENTERS = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)
_DETECTORS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)


def _torchvision() -> Iterator[Architecture]:
    def make(folder: str, name: str, **options: Any) -> nn.Module:
        module = import_module(f"torchvision.models.{folder}" if folder else "torchvision.models")
        return getattr(module, name)(weights=None, **options)

    def detector(name: str) -> nn.Module:
        # Their own sizes resize every image to 320 or 800 pixels; random scores keep every box.
        options = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
        options["box_detections_per_img" if "rcnn" in name else "detections_per_img"] = 10
        if "rcnn" in name:
            options |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20}
        return make("detection", name, weights_backbone=None, **options)

    def features(name: str, **nodes: str) -> nn.Module:
        from torchvision.models.feature_extraction import create_feature_extractor

        return create_feature_extractor(make("", name), nodes)

    def getter() -> nn.Module:
        from torchvision.models._utils import IntermediateLayerGetter

        return IntermediateLayerGetter(make("", "resnet18"), {"layer2": "low", "layer4": "high"})

    def pyramid() -> nn.Module:
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        return resnet_fpn_backbone(backbone_name="resnet18", weights=None)

    def of(name: str, build: Callable[[], nn.Module], example: Callable[[], Example]):  # type: ignore[no-untyped-def]
        return Architecture("torchvision", name, build, example)

    for name, side in _CLASSIFIERS.items():
        # What helps training alone, and its own slow initialisation, are left out.
        own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield of(name, partial(make, "", name, **own), _images(side))
    for name in _SEGMENTERS:
        yield of(
            f"segmentation/{name}",
            partial(make, "segmentation", name, weights_backbone=None, num_classes=5),
            _images(64),
        )
    for name in _DETECTORS:
        yield of(
            f"detection/{name}",
            partial(detector, name),
            lambda: ([torch.rand(3, 64, 64)],),
        )
    for name in ("raft_small", "raft_large"):
        yield of(
            f"optical_flow/{name}",
            partial(make, "optical_flow", name),
            lambda: (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128), 2),
        )
    yield of("features/resnet18", partial(features, "resnet18", layer4="out"), _images(64))
    yield of("features/intermediate_layers", getter, _images(64))
    yield of("features/resnet18_fpn", pyramid, _images(64))


# --- timm ----------------------------------------------------------------------------------------

# One or more of each of its families. Those of a fixed input size take that, the others 64.
_TIMM = """
bat_resnext26ts beit_base_patch16_224 caformer_s18 cait_xxs24_224 coat_lite_tiny coat_tiny
coatnet_pico_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnext_atto_ols
convnextv2_atto cpubone_nano crossvit_9_240 cs3darknet_s csatv2 cspnext_tiny cspresnet50 darknet53
davit_tiny deit_tiny_patch16_224 densenet121 densenetblur121d dla46_c dla60_res2net dm_nfnet_f0
dpn48b dpn68 eca_botnext26ts_256 eca_halonext26ts eca_nfnet_l0 ecaresnet26t edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_b0_gn efficientnet_es
efficientnet_lite0 efficientnetv2_rw_t efficientvim_m1 efficientvit_b0 efficientvit_m0
ese_vovnet19b_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b
focalnet_tiny_srf gc_efficientnetv2_rw_t gcresnext26ts gcvit_xxtiny gernet_s ghostnet_050
ghostnetv2_100 ghostnetv3_050 gmlp_ti16_224 halonet_h1 hardcorenas_a hgnet_tiny hgnetv2_b0
hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2
inception_v3 inception_v4 lambda_resnet26t lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception
levit_128s levit_conv_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 mixer_s16_224 mixnet_s
mnasnet_small mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_050 mobilenetv3_large_100
mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobilenetv5_base mobileone_s0
mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge nest_tiny nextvit_small nf_regnet_b0
nf_resnet26 pit_ti_224 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0 rdnet_tiny
regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s
res2next50 resmlp_12_224 resnest14d resnest50d_1s4x24d resnet10t resnet18 resnet26t resnet32ts
resnetaa50 resnetblur50 resnetrs50 resnetv2_18 resnetv2_50x1_bit resnext50_32x4d rexnet_100
samvit_base_patch16_224 sebotnet33ts_256 selecsls42 semnasnet_075 sequencer2d_s shvit_s1 skresnet18
spnasnet_100 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
swinv2_tiny_window8_256 tf_efficientnet_b0 tf_efficientnet_cc_b0_4e tf_efficientnetv2_b0 tf_mixnet_s
tf_mobilenetv3_small_075 tiny_vit_5m_224 tinynet_e tnt_s_patch16_224 tresnet_m twins_pcpvt_small
twins_svt_small vgg11_bn visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224
vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41 xcit_nano_12_p16_224
"""
_TIMM_SIDES = {
    "bat_resnext26ts": 256, "csatv2": 512, "eca_halonext26ts": 256, "halonet_h1": 256,
    "inception_resnet_v2": 96, "inception_v3": 96, "inception_v4": 96, "nasnetalarge": 96,
    "pnasnet5large": 96,
}  # fmt: skip


def _timm() -> Iterator[Architecture]:
    def make(name: str, **options: Any) -> nn.Module:
        return import_module("timm").create_model(name, pretrained=False, **options)

    def images(name: str) -> Tensor:
        fixed = import_module("timm").get_pretrained_cfg(name)
        side = fixed.input_size[-1] if fixed.fixed_input_size else _TIMM_SIDES.get(name, 64)
        return torch.randn(2, 3, side, side)

    for name in _TIMM.split():
        yield Architecture("timm", name, partial(make, name), partial(images, name))
    for name in ("resnet18", "convnext_atto"):
        yield Architecture(
            "timm", f"features/{name}", partial(make, name, features_only=True), _images(64)
        )


# --- transformers --------------------------------------------------------------------------------


def _transformers() -> Iterator[Architecture]:
    def make(config: str, model: str, **options: Any) -> nn.Module:
        library = import_module("transformers")
        ready = {key: v() if callable(v) else v for key, v in options.items()}
        return getattr(library, model)(getattr(library, config)(**ready))

    def config(name: str, **options: Any) -> Callable[[], Any]:
        """Of a backbone; made when its network is."""
        return lambda: getattr(import_module("transformers"), name)(**options)

    stages = ["stage1", "stage2", "stage3", "stage4"]
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    resnet_backbone = config("ResNetConfig", **resnet, layer_type="basic", out_features=["stage4"])
    resnet_stages = config("ResNetConfig", **resnet, layer_type="basic", out_features=stages)
    convnext = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    swin = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
    detr = {
        "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }  # fmt: skip
    rtdetr = {
        "backbone": None, "use_pretrained_backbone": False, "d_model": 32,
        "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_in_channels": [16, 24, 32], "num_queries": 10, "decoder_layers": 2,
        "hidden_expansion": 0.5,
    }  # fmt: skip
    three = config("RTDetrResNetConfig", **resnet, layer_type="basic", out_features=stages[1:])
    hgnet = {
        "depths": [1, 1, 1, 1], "stem_channels": [3, 8, 8], "hidden_sizes": [16, 16, 24, 32],
        "embedding_size": 8, "stage_in_channels": [8, 16, 16, 24],
        "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 16, 24, 32],
        "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
    }  # fmt: skip
    vit = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    dino = {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14, "reshape_hidden_states": False,
        "out_features": stages, "apply_layernorm": True,
    }  # fmt: skip
    tasks = {
        "Classification": "ForImageClassification", "Segmentation": "ForSemanticSegmentation",
        "Detection": "ForObjectDetection", "Depth": "ForDepthEstimation", "": "Model",
        "Backbone": "Backbone",
    }  # fmt: skip

    # Family, task, side of the images, options of the configuration.
    rows: list[tuple[str, str, int, dict[str, Any]]] = [
        ("ResNet", "Classification", 64, {**resnet, "layer_type": "bottleneck"}),
        ("ResNet", "Backbone", 64, {**resnet, "layer_type": "basic", "out_features": stages}),
        ("ConvNext", "Classification", 64, convnext),
        ("ConvNextV2", "Classification", 64, convnext),
        ("DINOv3ConvNext", "", 64, convnext),
        ("MobileNetV1", "Classification", 64, {"depth_multiplier": 0.25}),
        ("MobileNetV2", "Classification", 64, {"depth_multiplier": 0.35}),
        ("MobileNetV2", "Segmentation", 64, {"depth_multiplier": 0.35}),
        ("EfficientNet", "Classification", 64, {"width_coefficient": 0.25,
            "depth_coefficient": 0.5, "hidden_dim": 320}),
        ("RegNet", "Classification", 64, {**resnet, "groups_width": 8}),
        ("Bit", "Classification", 64, {**resnet, "embedding_size": 32, "num_groups": 8,
            "hidden_sizes": [32, 32, 64, 64]}),
        ("HGNetV2", "Classification", 64, hgnet),
        ("TextNet", "Classification", 64, {}),
        ("PPLCNet", "Classification", 64, {"scale": 0.25}),
        ("PoolFormer", "Classification", 64, {"hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1]}),
        ("SwiftFormer", "Classification", 64, {"depths": [1, 1, 1, 1],
            "embed_dims": [8, 16, 24, 32]}),
        ("Cvt", "Classification", 64, {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 2],
            "depth": [1, 2, 3]}),
        ("Levit", "Classification", 64, {"image_size": 64, "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}),
        ("MobileViT", "Classification", 64, {"image_size": 64, "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}),
        ("MobileViT", "Segmentation", 64, {"image_size": 64, "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "aspp_out_channels": 16}),
        ("MobileViTV2", "Classification", 64, {"image_size": 64, "width_multiplier": 0.25,
            "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [64, 64, 64]}),
        ("Pvt", "Classification", 64, {"image_size": 64, "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 2]}),
        ("PvtV2", "Classification", 64, {"image_size": 64, "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 2]}),
        ("FocalNet", "Classification", 64, {"image_size": 64, "embed_dim": 16,
            "depths": [1, 1, 1, 1]}),
        ("ViT", "Classification", 32, vit),
        ("DeiT", "Classification", 32, vit),
        ("Beit", "Classification", 32, vit),
        ("ViTMSN", "Classification", 32, vit),
        ("Dinov2", "Classification", 56, {"hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 56}),
        ("Swin", "Classification", 128, {**swin, "image_size": 128}),
        ("Swinv2", "Classification", 64, {**swin, "image_size": 64}),
        ("Hiera", "Classification", 64, {"image_size": [64, 64], "embed_dim": 16,
            "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}),
        ("SamVision", "", 64, {**vit, "image_size": 64, "global_attn_indexes": [1],
            "window_size": 4, "output_channels": 16, "num_hidden_layers": 2}),
        ("CLIPVision", "", 32, vit),
        ("SiglipVision", "", 32, vit),
        ("VitDet", "Backbone", 64, {**vit, "image_size": 64, "pretrain_image_size": 64,
            "residual_block_indices": [1]}),
        ("Segformer", "Classification", 64, {"hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}),
        ("Segformer", "Segmentation", 64, {"hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2],
            "decoder_hidden_size": 16}),
        ("Beit", "Segmentation", 32, {**vit, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4],
            "use_auxiliary_head": False}),
        ("UperNet", "Segmentation", 64, {"backbone_config": config(
            "ConvNextConfig", **convnext, out_features=stages), "hidden_size": 16,
            "use_auxiliary_head": False}),
        ("DPT", "Depth", 32, {**vit, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}),
        ("DPT", "Segmentation", 32, {**vit, "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16}),
        ("GLPN", "Depth", 64, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16}),
        ("DepthAnything", "Depth", 56, {"backbone_config": config("Dinov2Config", **dino),
            "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 16, 24, 32],
            "fusion_hidden_size": 16, "head_hidden_size": 8}),
        ("Detr", "Detection", 64, {**detr, "backbone_config": resnet_backbone}),
        ("ConditionalDetr", "Detection", 64, {**detr, "backbone_config": resnet_backbone}),
        ("DabDetr", "Detection", 64, {**detr, "backbone_config": resnet_backbone,
            "hidden_size": 32}),
        ("DeformableDetr", "Detection", 64, {**detr, "backbone_config": resnet_stages}),
        ("TableTransformer", "Detection", 64, {**detr, "backbone_config": resnet_backbone}),
        ("RTDetr", "Detection", 64, {**rtdetr, "backbone_config": three}),
        ("RTDetrV2", "Detection", 64, {**rtdetr, "backbone_config": three}),
        ("DFine", "Detection", 64, {**rtdetr, "backbone_config": config(
            "HGNetV2Config", **hgnet, out_features=stages[1:])}),
        ("Yolos", "Detection", 32, {**vit, "image_size": [32, 32], "num_detection_tokens": 5}),
        ("PPOCRV5MobileDet", "Detection", 64, {}),
    ]  # fmt: skip
    for family, task, side, options in rows:
        yield Architecture(
            "transformers",
            f"{family}{tasks[task]}",
            partial(make, f"{family}Config", f"{family}{tasks[task]}", **options),
            lambda side=side: {"pixel_values": torch.randn(2, 3, side, side)},  # type: ignore[misc]
        )
    swin_stages = config("SwinConfig", **swin, image_size=128, out_features=stages)
    mask = {
        "backbone_config": swin_stages, "fpn_feature_size": 32, "mask_feature_size": 32,
        "decoder_config": config("DetrConfig", **detr), "use_auxiliary_loss": False,
    }  # fmt: skip
    mask2 = {
        "backbone_config": swin_stages, "feature_size": 32, "mask_feature_size": 32,
        "hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32,
        "num_attention_heads": 2, "num_queries": 5, "encoder_layers": 1, "decoder_layers": 2,
    }  # fmt: skip
    special: list[tuple[str, str, str, int, dict[str, Any]]] = [
        ("MaskFormerConfig", "MaskFormerForInstanceSegmentation", "pixel_values", 128, mask),
        ("Mask2FormerConfig", "Mask2FormerForUniversalSegmentation", "pixel_values", 128, mask2),
        ("SuperPointConfig", "SuperPointForKeypointDetection", "pixel_values", 64, {
            "encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
            "descriptor_decoder_dim": 16}),
        ("Swin2SRConfig", "Swin2SRForImageSuperResolution", "pixel_values", 32, {
            "image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
            "window_size": 4, "num_channels": 3}),
        ("VitPoseConfig", "VitPoseForPoseEstimation", "pixel_values", 32, {
            "backbone_config": config("VitPoseBackboneConfig", hidden_size=32, image_size=[32, 32],
                patch_size=[8, 8], num_hidden_layers=2, num_attention_heads=2,
                out_features=["stage2"])}),
        ("ZoeDepthConfig", "ZoeDepthForDepthEstimation", "pixel_values", 64, {
            "backbone_config": config("BeitConfig", **{**vit, "image_size": 64},
                out_features=["stage1", "stage2"], reshape_hidden_states=False),
            "neck_hidden_sizes": [8, 16], "fusion_hidden_size": 16, "bottleneck_features": 16}),
    ]  # fmt: skip
    for config_name, model, key, side, options in special:
        yield Architecture(
            "transformers",
            model,
            partial(make, config_name, model, **options),
            lambda key=key, side=side: {key: torch.randn(2, 3, side, side)},  # type: ignore[misc]
        )


# --- MONAI ---------------------------------------------------------------------------------------


def _monai() -> Iterator[Architecture]:
    def make(name: str, **options: Any) -> nn.Module:
        return getattr(import_module("monai.networks.nets"), name)(**options)

    plane = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    levels = {"channels": (8, 16, 32), "strides": (2, 2)}
    rows: list[tuple[str, Callable[[], Example], dict[str, Any]]] = [
        ("UNet", _images(32, 1), {**plane, **levels}),
        ("UNet:residual", _images(32, 1), {**plane, **levels, "num_res_units": 2, "norm": "batch"}),
        ("BasicUNet", _images(32, 1), {**plane, "features": (8, 8, 16, 16, 32, 8)}),
        ("BasicUNetPlusPlus", _images(32, 1), {**plane, "features": (8, 8, 16, 16, 32, 8)}),
        ("AttentionUnet", _images(32, 1), {**plane, **levels}),
        ("DynUNet", _images(32, 1), {**plane, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2], "filters": [8, 16, 32]}),
        ("DynUNet:batch", _images(32, 1), {**plane, "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [8, 16, 32],
            "norm_name": "batch", "res_block": True}),
        ("SegResNet", _images(32, 1), {**plane, "init_filters": 8}),
        ("SegResNetDS", _images(32, 1), {**plane, "init_filters": 8}),
        ("SegResNetVAE", _images(32, 1), {**plane, "init_filters": 8,
            "input_image_size": (32, 32)}),
        ("VNet", _images(32, 1), plane),
        ("UNETR", _images(32, 1), {**plane, "img_size": 32, "feature_size": 8, "hidden_size": 32,
            "mlp_dim": 64, "num_heads": 2}),
        ("SwinUNETR", _images(64, 1), {**plane, "feature_size": 12}),
        ("FlexibleUNet", _images(64, 3), {"in_channels": 3, "out_channels": 2,
            "backbone": "efficientnet-b0", "spatial_dims": 2}),
        ("FlexibleUNet:resnet", _images(64, 3), {"in_channels": 3, "out_channels": 2,
            "backbone": "resnet18", "spatial_dims": 2}),
        ("HighResNet", _images(32, 1), plane),
        ("AHNet", _images(64, 3), {"spatial_dims": 2, "in_channels": 3, "out_channels": 2,
            "psp_block_num": 3}),
        ("RegUNet", _images(32, 2), {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 8,
            "depth": 2}),
        ("LocalNet", _images(32, 2), {"spatial_dims": 2, "in_channels": 2,
            "num_channel_initial": 8, "extract_levels": (0, 1, 2)}),
        ("GlobalNet", _images(32, 2), {"image_size": (32, 32), "spatial_dims": 2, "in_channels": 2,
            "num_channel_initial": 8, "depth": 2}),
        ("VoxelMorphUNet", _images(32, 2), {"spatial_dims": 2, "in_channels": 2,
            "unet_out_channels": 8, "channels": (8, 8, 16, 16, 8, 8),
            "final_conv_channels": (8, 8)}),
        ("DenseNet121", _images(64, 1), plane),
        ("EfficientNetBN", _images(64, 1), {"model_name": "efficientnet-b0", "spatial_dims": 2,
            "in_channels": 1, "pretrained": False}),
        ("ResNet", _images(64, 1), {"block": "basic", "layers": [1, 1, 1, 1],
            "block_inplanes": [8, 16, 32, 64], "spatial_dims": 2, "n_input_channels": 1}),
        ("ResNet:bottleneck", _images(64, 1), {"block": "bottleneck", "layers": [1, 1, 1, 1],
            "block_inplanes": [8, 16, 32, 64], "spatial_dims": 2, "n_input_channels": 1}),
        ("SEResNet50", _images(64, 1), {"spatial_dims": 2, "in_channels": 1, "num_classes": 5}),
        ("SEResNext50", _images(64, 1), {"spatial_dims": 2, "in_channels": 1, "num_classes": 5}),
        ("TorchVisionFCModel", _images(224), {"model_name": "resnet18", "num_classes": 5,
            "pretrained": False}),
        ("MILModel", partial(torch.randn, 2, 3, 3, 64, 64), {"num_classes": 2,
            "pretrained": False}),
        ("ViT", _images(32, 1), {"in_channels": 1, "img_size": (32, 32), "patch_size": (8, 8),
            "hidden_size": 32, "mlp_dim": 64, "num_layers": 2, "num_heads": 2, "spatial_dims": 2,
            "classification": True, "proj_type": "conv"}),
        ("ViTAutoEnc", _images(32, 1), {"in_channels": 1, "img_size": (32, 32),
            "patch_size": (16, 16), "hidden_size": 32, "mlp_dim": 64, "num_layers": 2,
            "num_heads": 2, "spatial_dims": 2}),
        ("AutoEncoder", _images(32, 1), {**plane, "channels": (8, 16), "strides": (2, 2)}),
        ("VarAutoEncoder", _images(32, 1), {"spatial_dims": 2, "in_shape": (1, 32, 32),
            "out_channels": 1, "latent_size": 4, "channels": (8, 16), "strides": (2, 2)}),
        ("Classifier", _images(32, 1), {"in_shape": (1, 32, 32), "classes": 3, **levels}),
        ("Discriminator", _images(32, 1), {"in_shape": (1, 32, 32), **levels}),
        ("Generator", partial(torch.randn, 2, 8), {"latent_shape": (8,),
            "start_shape": (16, 4, 4), "channels": (16, 8, 1), "strides": (2, 2, 1)}),
        ("AutoencoderKL", _images(32, 1), {"spatial_dims": 2, "in_channels": 1, "out_channels": 1,
            "channels": (8, 16), "num_res_blocks": (1, 1), "attention_levels": (False, True),
            "latent_channels": 4, "norm_num_groups": 4}),
        ("VQVAE", _images(32, 1), {"spatial_dims": 2, "in_channels": 1, "out_channels": 1,
            "channels": (8, 16), "num_res_channels": (8, 16), "num_res_layers": 1,
            "downsample_parameters": ((2, 4, 1, 1), (2, 4, 1, 1)),
            "upsample_parameters": ((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)), "num_embeddings": 8,
            "embedding_dim": 8}),
        ("DiffusionModelUNet", lambda: (torch.randn(2, 1, 16, 16), torch.tensor([3, 7])), {
            "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1,
            "channels": (8, 16), "attention_levels": (False, True), "norm_num_groups": 4,
            "num_head_channels": 8}),
        ("PatchDiscriminator", _images(64, 1), {"spatial_dims": 2, "channels": 8,
            "in_channels": 1, "num_layers_d": 2}),
        ("MedNeXt", _images(64, 1), {"spatial_dims": 2, "in_channels": 1, "out_channels": 2,
            "init_filters": 8}),
        ("HoVerNet", _images(256, 3, 1), {"mode": "fast", "in_channels": 3, "out_classes": 3}),
        ("Quicknat", _images(32, 1), {"num_classes": 2, "num_channels": 1, "num_filters": 8,
            "se_block": "None"}),
        ("DiNTS", _images(64, 1), {}),
    ]  # fmt: skip

    def dints() -> nn.Module:
        nets = import_module("monai.networks.nets")
        space = nets.TopologyInstance(num_blocks=4, num_depths=3, use_downsample=True,
            spatial_dims=2, device="cpu")  # fmt: skip
        return nets.DiNTS(space, 1, 2, spatial_dims=2)

    for name, example, options in rows:
        build = dints if name == "DiNTS" else partial(make, name.split(":")[0], **options)
        yield Architecture("monai", name, build, example)


# --- segmentation_models_pytorch -----------------------------------------------------------------

_PLAIN = ("resnet18", "mobilenet_v2", "efficientnet-b0", "timm-regnetx_002")
_DECODERS: dict[str, Iterable[str]] = {
    "Unet": (*_PLAIN, "mit_b0", "tu-convnext_atto"),
    "UnetPlusPlus": _PLAIN,
    "MAnet": (*_PLAIN, "mit_b0"),
    "Linknet": _PLAIN,
    "FPN": (*_PLAIN, "mit_b0", "tu-convnext_atto"),
    "PSPNet": (*_PLAIN, "mit_b0"),
    "PAN": _PLAIN,
    "DeepLabV3": _PLAIN,
    "DeepLabV3Plus": _PLAIN,
    "UPerNet": (*_PLAIN, "mit_b0", "tu-convnext_atto"),
    "Segformer": (*_PLAIN, "mit_b0"),
    "DPT": ("tu-vit_tiny_patch16_224",),
}


def _segmentation() -> Iterator[Architecture]:
    def make(decoder: str, encoder: str) -> nn.Module:
        library = import_module("segmentation_models_pytorch")
        return getattr(library, decoder)(encoder, encoder_weights=None, classes=2)

    for decoder, encoders in _DECODERS.items():
        for encoder in encoders:
            side = {"DPT": 224, "PAN": 128}.get(decoder, 64)
            yield Architecture(
                "segmentation_models_pytorch",
                f"{decoder}/{encoder}",
                partial(make, decoder, encoder),
                _images(side),
            )
