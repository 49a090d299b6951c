#!/bin/sh
# Make a folder from which benchmarks/gpu.py runs on a machine without a network.
#
#     tools/offline_kit.sh FOLDER [SECTION.h5ad ...]
#
# The machine has Python 3.12, torch, torch-geometric, lightning, transformers and the usual scientific packages; the
# folder brings what is missing, two sections or so, and run.sh. From the root of the repository there:
#
#     FOLDER/run.sh OUT_DIR [--small]
set -eu
folder=$1
shift
mkdir -p "$folder/wheels" "$folder/sections"
download() {
    "${PYTHON:-python3}" -m pip download --quiet --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --dest "$folder/wheels" "$@"
}
download --no-deps adjustText anndata array-api-compat dask donfig fast-array-utils google-crc32c h5py \
    legacy-api-wrap locket msgspec natsort numcodecs partd platformdirs pooch pynndescent scanpy scverse-misc \
    session-info2 toolz umap-learn zarr
download pydantic-settings  # pydantic fits one version of its core alone
for section in "$@"; do
    cp "$section" "$folder/sections"
done
cat > "$folder/run.sh" <<'RUN'
#!/bin/sh
# benchmarks/gpu.py with the wheels of this folder, from the root of the repository: run.sh OUT_DIR [--small]
set -eu
folder=$(dirname "$0")
site=${TMPDIR:-/tmp}/sagefm_site
python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$folder"/wheels/*.whl
mkdir -p "$site/sagefm-0.dist-info"  # the package itself is read from src, and wants to know its version
printf 'Metadata-Version: 2.1\nName: sagefm\nVersion: 0\n' > "$site/sagefm-0.dist-info/METADATA"
PYTHONPATH=$PWD/src:$site python3 benchmarks/gpu.py "$@" --sections "$folder"/sections/*.h5ad
RUN
chmod +x "$folder/run.sh"
du -sh "$folder"
