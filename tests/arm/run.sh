#!/usr/bin/env bash
# The kernel tests on 64-bit Arm Linux, emulated. On demand: it takes half an hour.
#
#   tests/arm/run.sh [FOLDER [PYTEST ARGUMENT...]]
#
# Needs a Debian machine with apt and a Python that has pip (PYTHON, or python3); no root, nothing is
# installed on the machine. qemu-user and an arm64 Python, Debian's packages, and the aarch64 wheels
# of what q4run needs are unpacked in FOLDER (or ~/.cache/q4run-arm) and found there the next time,
# as are the compiled kernels. PYTEST ARGUMENTs stand in for the selection below.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/q4run-arm}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
shift || true
host_python=${PYTHON:-python3}

# Unpacks packages of an architecture, and what they depend on, into a folder. apt keeps its lists in
# a folder of its own, where no package is installed and the architecture is the machine's.
unpack_packages() {
    local architecture=$1 target=$2
    shift 2
    [ ! -e "$target" ] || return 0
    local apt="$folder/apt-$architecture"
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/status"
    cat >"$apt/apt.conf" <<CONF
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Architecture "$architecture";
#clear APT::Architectures;
APT::Architectures { "$architecture"; };
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
CONF
    APT_CONFIG="$apt/apt.conf" apt-get update --quiet=2
    APT_CONFIG="$apt/apt.conf" apt-get install --quiet=2 --yes --download-only "$@"
    rm -rf "$target.part"
    mkdir "$target.part"
    for package in "$apt"/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$target.part"
    done
    mv "$target.part" "$target"
    rm -rf "$apt"
}

unpack_packages "$(dpkg --print-architecture)" "$folder/qemu" qemu-user-static
unpack_packages arm64 "$folder/root" python3 libstdc++6

# The emulated Python, under a name that its own processes can be started by.
cat >"$folder/python" <<SCRIPT
#!/bin/sh
exec "$(find "$folder/qemu/usr/bin" -name qemu-aarch64 -o -name qemu-aarch64-static)" \\
    -L "$folder/root" -0 "$folder/python" "$folder/root/usr/bin/python3" "\$@"
SCRIPT
chmod +x "$folder/python"
export PYTHONHOME="$folder/root/usr" PYTHONPYCACHEPREFIX="$folder/pycache"
export PYTHONPATH="$folder/project:$folder/wheels" Q4RUN_CACHE="$folder/kernels"
export QEMU_CPU=max

if [ ! -e "$folder/wheels" ] || [ "$checkout/pyproject.toml" -nt "$folder/wheels" ]; then
    read -r version glibc < <("$folder/python" -c \
        'import platform as p; print(p.python_version(), p.libc_ver()[1].split(".")[1])')
    mapfile -t needed < <(env -u PYTHONHOME "$host_python" - "$checkout/pyproject.toml" <<'SCRIPT'
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")
SCRIPT
    )
    mapfile -t platforms < <(seq -f '--platform=manylinux_2_%.0f_aarch64' "$glibc" -1 17)
    rm -rf "$folder/wheels" "$folder/wheels.part"
    env -u PYTHONHOME -u PYTHONPATH "$host_python" -m pip install --quiet \
        --target "$folder/wheels.part" --only-binary=:all: --python-version "$version" \
        "${platforms[@]}" --platform=manylinux2014_aarch64 \
        "${needed[@]}" 'pytest>=8' 'pytest-timeout>=2.3'
    touch "$folder/wheels.part"
    mv "$folder/wheels.part" "$folder/wheels"
fi

# The packages lie as they are installed: kernels/ and the others inside q4run/.
rm -rf "$folder/project"
mkdir -p "$folder/project/q4run"
ln -s "$checkout"/q4run/* "$checkout"/{kernels,convert,bench} "$folder/project/q4run"

cd "$folder"

# What is chosen on processors without the dot product, with it, and with matrix products too.
for pair in cortex-a72:generic neoverse-n1:neon max:i8mm; do
    chosen=$(env -u Q4RUN_SIMD QEMU_CPU="${pair%:*}" "$folder/python" -c \
        'from q4run.kernels.compiling.target import TARGET; print(TARGET)')
    echo "${pair%:*}: $chosen"
    [ "$chosen" = "${pair#*:}" ] || { echo "expected ${pair#*:}" >&2; exit 1; }
done

run_tests() {
    echo "Q4RUN_SIMD=$1 pytest ${*:2}"
    (cd "$checkout/tests" && Q4RUN_SIMD=$1 "$folder/python" -m pytest -c "$checkout/pyproject.toml" \
        --rootdir "$checkout" -p no:cacheprovider --timeout 1800 --durations 10 "${@:2}")
}

if [ $# -gt 0 ]; then
    run_tests "${Q4RUN_SIMD:-i8mm}" "$@"
    exit
fi
# Not what compiles a whole model; of the products, those of one format of each kind.
others="q4_1 or q5_0 or q5_1 or q2_k or q3_k or q5_k or iq4_xs or tq2_0 or bf16 or f32"
some="not warming and not all_formats and not (test_products.py and ($others))"
run_tests i8mm kernels/test_simd.py kernels/test_simd_matrices.py kernels/test_products.py kernels/test_feed_forward.py -k "$some"
run_tests neon kernels/test_elementwise.py kernels/test_formats.py kernels/test_strips.py kernels/test_dequantised.py \
    kernels/test_thread_pool.py kernels/test_products.py kernels/test_attention.py -k "$some"
run_tests generic kernels/test_elementwise.py kernels/test_strips.py -k "$some"
