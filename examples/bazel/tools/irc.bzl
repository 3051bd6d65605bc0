"""irc_model: a neural network in ONNX, compiled into a library that C and C++ rules link with.

    load("//tools:irc.bzl", "irc_model")

    irc_model(
        name = "digits",
        model = "digits.onnx",
        calibration = "digits_calibration.npz",
        preset = "speed",
    )

    cc_binary(name = "classify", srcs = ["classify.c"], deps = [":digits"])
"""

load("@rules_cc//cc:defs.bzl", "CcInfo", "cc_common")
load("@rules_cc//cc:find_cc_toolchain.bzl", "find_cc_toolchain", "use_cc_toolchain")

def _irc_model_impl(ctx):
    name = ctx.attr.network or ctx.label.name
    library = ctx.actions.declare_file("{}/lib{}.a".format(ctx.label.name, name))
    header = ctx.actions.declare_file("{}/{}.h".format(ctx.label.name, name))

    arguments = ctx.actions.args()
    arguments.add("compile")
    arguments.add(ctx.file.model)
    arguments.add("--name", name)
    arguments.add("--target", ctx.attr.target)
    arguments.add("--library", library)
    arguments.add("--header", header)
    for option in ("calibration", "evaluation", "statistics", "tuning"):
        file = getattr(ctx.file, option)
        if file:
            arguments.add("--" + option, file)
    for option in ("preset", "passes", "metric", "max_drop", "weights"):
        value = getattr(ctx.attr, option)
        if value:
            arguments.add("--" + option.replace("_", "-"), value)
    arguments.add_all(ctx.attr.options)
    arguments.add("--quiet")

    # The kernel cache lies in the action's own folder: what a build makes depends on its inputs alone.
    arguments.add("--cache-dir", library.dirname + "/.cache")
    files = [ctx.file.calibration, ctx.file.evaluation, ctx.file.statistics, ctx.file.tuning]
    ctx.actions.run(
        executable = ctx.executable.irc,
        arguments = [arguments],
        inputs = depset([ctx.file.model] + [f for f in files if f] + ctx.files.data),
        outputs = [library, header],
        mnemonic = "IrcCompile",
        progress_message = "Compiling %{label}",
    )

    toolchain = find_cc_toolchain(ctx)
    features = cc_common.configure_features(ctx = ctx, cc_toolchain = toolchain)
    linked = cc_common.create_library_to_link(
        actions = ctx.actions,
        feature_configuration = features,
        cc_toolchain = toolchain,
        static_library = library,
    )
    linking = cc_common.create_linking_context(linker_inputs = depset([
        cc_common.create_linker_input(
            owner = ctx.label,
            libraries = depset([linked]),
            user_link_flags = ["-lm"],
        ),
    ]))
    compilation = cc_common.create_compilation_context(
        headers = depset([header]),
        system_includes = depset([header.dirname]),
    )
    return [
        DefaultInfo(files = depset([library, header])),
        CcInfo(compilation_context = compilation, linking_context = linking),
    ]

irc_model = rule(
    implementation = _irc_model_impl,
    attrs = {
        "model": attr.label(allow_single_file = [".onnx"], mandatory = True),
        "data": attr.label_list(allow_files = True, doc = "external data of the model"),
        "network": attr.string(doc = "prefix of the C functions (default: the rule's name)"),
        "target": attr.string(default = "native", doc = "see irc targets (but for c, which is source); a select() by platform fits here"),
        "preset": attr.string(),
        "passes": attr.string(),
        "calibration": attr.label(allow_single_file = [".npz"]),
        "statistics": attr.label(allow_single_file = [".npz"]),
        "evaluation": attr.label(allow_single_file = [".npz"]),
        "metric": attr.string(),
        "max_drop": attr.string(),
        "weights": attr.string(),
        "tuning": attr.label(allow_single_file = [".json"]),
        "options": attr.string_list(doc = "other options of irc compile"),
        "irc": attr.label(default = "//tools:irc", executable = True, cfg = "exec"),
    },
    fragments = ["cpp"],
    toolchains = use_cc_toolchain(),
    provides = [CcInfo],
)
