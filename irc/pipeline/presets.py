"""Named pipelines. A preset name may stand in a pipeline text wherever a pass may."""

from __future__ import annotations

# Lossless clean-up. The order inside one round:
#   canonicalize first, so that every later rule sees one form of each operator;
#   fold-constants next: it turns shape arithmetic into constants, which simplify and the folding passes need;
#   simplify then brings scales and shifts next to the linear operators they follow;
#   fold-batchnorm before fold-affine: what it cannot fold becomes Mul and Add, which fold-affine may move;
#   fuse-functions after both, or a scale inside a decomposed function would hide the weights before it;
#   eliminate-common late: merging earlier gives values second users, and most rules want a sole use;
#   eliminate-dead last removes what all of them left behind.
# A round can enable the next (a folded Reshape target lets two Transposes meet), hence the fixpoint.
CLEAN = (
    "(canonicalize,fold-constants,simplify,fold-batchnorm,fold-affine,fuse-functions,eliminate-common,eliminate-dead)*"
)

PRESETS: dict[str, str] = {
    "none": CLEAN,
    "fast": f"{CLEAN},quantize",
    # The same as fast until there is recovery: without training afterwards, low-rank factors (even at 99.99 % of the
    # energy) cost a quantized MobileNet many points, and pruning makes zeros that nothing stores shorter yet.
    "small": f"{CLEAN},quantize",
}

SUMMARIES: dict[str, str] = {
    "none": "lossless clean-up only",
    "fast": "clean-up, then 8-bit weights and activations (needs calibration data)",
    "small": "what makes the library smallest without training: today the same as fast (needs calibration data)",
}
