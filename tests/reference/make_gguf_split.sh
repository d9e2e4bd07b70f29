#!/usr/bin/env bash
# Builds llama.cpp's llama-gguf-split from llama-cpp-python's source package, for
# tests/convert/test_other_tools.py: tests/reference/make_gguf_split.sh FOLDER
# Takes a C++ compiler, cmake, ninja and some minutes; then run pytest with
# LLAMA_GGUF_SPLIT=FOLDER/llama-gguf-split.
set -euo pipefail
mkdir -p "$1" && cd "$1"
pip download --quiet --no-deps --no-binary :all: --no-build-isolation llama-cpp-python==0.3.36
tar xzf llama_cpp_python-*.tar.gz
source=$(echo "$PWD"/llama_cpp_python-*/vendor/llama.cpp)
cmake -S "$source" -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF -DGGML_OPENMP=OFF
# The splitter's own target would build all of llama.cpp's common code, of which it uses nothing.
cmake --build build --target llama llama-common-base
g++ -O2 -std=c++17 -I "$source/include" -I "$source/common" -I "$source/ggml/include" -I build/common \
  "$source"/tools/gguf-split/gguf-split.cpp build/common/libllama-common-base.a \
  -L build/bin -lllama -lggml -lggml-base -lggml-cpu -Wl,-rpath,"$PWD/build/bin" \
  -o llama-gguf-split
