"""Every network, and whether it is carried to a verified bundle or refused before the first step, and why."""

from __future__ import annotations

from typing import NamedTuple


class Network(NamedTuple):
    """A name for a recipe's students, the side of its images, and the reason if it is to be refused."""

    name: str
    size: int = 32
    reason: str = ""
    output: str | int | None = None  # `cohort.output`

    @property
    def expected(self) -> str:
        return "refused" if self.reason else "carried"


# The factories of networks/, by module.
CARRIED = {
    "trunk": "plain",
    "activations": """
        silu hardswish hardsigmoid mish gelu gelu_tanh elu celu selu prelu rrelu relu6 hardtanh softplus leaky threshold
        tanhshrink binary
    """,
    "norms": """
        groupnorm groupnorm_sequential leaky_sequential instancenorm instancenorm_running batchnorm_without_weights
        batchnorm_cumulative sync_batchnorm local_response layernorm2d rmsnorm batchnorm_of_images dead_channels
        outlier_channel
    """,
    "attention": """
        multihead multihead_with_weights encoder_layer scaled_dot_product bottleneck_transformer gru lstm
    """,
    "pooling": """
        adaptive_uneven adaptive_larger adaptive_max_uneven adaptive_one_side ceil_mode average_with_padding lp_pool gem
        topk standard_deviation soft_places
    """,
    "resizing": """
        transposed transposed_grouped upsample_bilinear upsample_nearest upsample_bicubic images_larger
        images_smaller_antialiased pad_reflect pad_replicate pad_circular pad_same pad_same_even pixel_unshuffle roll
        spatial_transformer
    """,
    "mixing": """
        squeeze_excite channel_attention einsum channel_shuffle layer_scale large_kernel dilated sliced fourier conv3d
        masked_in_place one_resolution
    """,
    "heads": "cosine distances bilinear hidden_layer convolution_as_head lenet",
    "weights": """
        applied_thrice in_two_stages tied weight_norm weight_norm_by_hook spectral_norm weight_standardisation pruned
        frozen_stem frozen_but_head lazy data_in_forward
    """,
    "modes": """
        dropout2d alpha_dropout dropout_by_flag frozen_front frozen_submodule frozen_batchnorm_in_submodule hook_keeps
        hook_changes hook_before hook_backward features_on_self in_evaluation
    """,
    "dtypes": "float_of_images double_buffer half_and_back channels_last",
    "shapes": """
        view_of_map view_of_images view_minus_one reshape_by_first_batch batch_of_middle branch_on_size asserted_size
        squeeze_by_axis grey_made lists_of_modules python_keywords optional_arguments star_arguments keyword_only
        named_argument
    """,
    "operators": "many_operators",
    "outputs": "auxiliary_head two_auxiliary_heads softmax log_softmax first_logits tuple_with_map dict_of_logits",
}
REFUSED = {
    "norms": {"batchnorm_without_statistics": "an answer depends on the other images of the batch"},
    "pooling": {"fractional": "random in evaluation"},
    "mixing": {
        "conditional_convolution": "the exporter takes no number of groups that is that of images",
        "pyramid": "no one map for all that follows",
        "two_streams": "no one map for all that follows",
        "slice_in_place": "raises in training without okdc too",
    },
    "weights": {"unused_head": "a parameter takes no part in the forward"},
    "modes": {
        "dropout_always": "random in evaluation",
        "activation_checkpoint": "batch statistics would be taken twice",
        "counting_buffer": "its outermost forward changes a buffer",
        "noise_in_training": "its outermost forward does other things in training",
    },
    "dtypes": {"autocast": "a precision of its own", "double_network": "takes no float32 images"},
    "shapes": {
        "branch_on_batch": "what is computed depends on the number of images",
        "branch_on_values": "what is computed depends on values",
        "doubled_batch": "its maps are of other images than its input",
        "int_of_batch": "the number of images as a Python number",
        "squeeze_all": "one image alone loses its batch axis",
    },
    "wrong": {
        "coupled_by_shift": "an answer depends on the other images of the batch",
        "coupled_by_mean": "an answer depends on the other images of the batch",
        "one_convolution": "one map",
        "mlp": "no convolution",
        "grey_wanted": "takes images of one channel",
        "scripted": "TorchScript",
        "compiled": "compiled already",
        "data_parallel": "DataParallel",
        "half": "takes no float32 images",
        "two_arguments": "the factory asks for a second argument",
        "no_arguments": "the factory takes no number of classes",
        "other_classes": "another number of logits than of classes",
        "no_module": "no torch.nn.Module",
        "two_inputs": "the forward asks for a second input",
        "raising": "the forward raises",
        "tokens_only": "no second map",
        "in_pairs": "does not take one image alone",
    },
}

OUTPUTS: dict[str, str | int] = {"tuple_with_map": 0, "dict_of_logits": "logits"}

FACTORIES = tuple(
    [
        Network(f"networks.{module}:{name}", output=OUTPUTS.get(name))
        for module, names in CARRIED.items()
        for name in names.split()
    ]
    + [
        Network(f"networks.{module}:{name}", reason=reason)
        for module, reasons in REFUSED.items()
        for name, reason in reasons.items()
    ]
)

# Sixty of timm, small ones of as many families as there are, by the side of images that they take.
_TIMM = {
    64: """
        resnet10t skresnet18 gcresnext26ts resnest14d rexnet_100 dpn48b densenet121 mobilenetv2_050
        mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilevit_xxs mobilevitv2_050 mobileone_s0
        tf_efficientnet_lite0 tf_mixnet_s mnasnet_small fbnetc_100 lcnet_050 tinynet_e hardcorenas_a ghostnet_050
        ghostnetv2_100 regnetx_002 regnety_002 regnetz_005 hrnet_w18_small convnext_atto convnextv2_atto poolformer_s12
        edgenext_xx_small fastvit_t8 repvgg_a0 repvit_m0_9 starnet_s1 dla46_c cspresnet50 hgnetv2_b0
        ese_vovnet19b_slim_dw nf_regnet_b0 lambda_resnet26t efficientvit_b0 gernet_s inception_next_atto mambaout_femto
        pvt_v2_b0 shvit_s1 test_resnet test_efficientnet test_byobnet test_convnext test_nfnet swiftformer_xs
    """,
    128: "inception_v3",
    224: """
        efficientformerv2_s0 efficientvit_m0 visformer_tiny coatnet_pico_rw_224 vit_tiny_patch16_224 test_vit
        levit_128s
    """,
}
_NOT_CUT = {f"timm:{name}": "tokens, no second map" for name in ("vit_tiny_patch16_224", "test_vit")}
_NOT_CUT |= {"timm:mambaout_femto": "NHWC maps"}
_NOT_CUT |= {f"timm:{name}": "takes one size of images" for name in ("efficientformerv2_s0", "visformer_tiny")}
TIMM = tuple(
    Network(f"timm:{name}", size, _NOT_CUT.get(f"timm:{name}", ""))
    for size, names in _TIMM.items()
    for name in names.split()
)
