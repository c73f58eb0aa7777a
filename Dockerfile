# pbu for GPU hosts.
#   docker build -t pbu .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" pbu \
#       unlearn model.safetensors --forget class8
# Checkpoint and images are mounted and never part of the image. With --user the outputs belong to
# the caller, whatever the uid, because pbu writes only to /work and /tmp.

# Any image with Python >= 3.11, venv and pip will do. The default has no CUDA, because torch's
# wheels bring their own CUDA libraries and the NVIDIA container toolkit brings the host's driver.
# nvidia/cuda:*-base has no Python, and its libcudart would not be used.
#
# The digest was current in September 2026. `docker buildx imagetools inspect python:3.13-slim-trixie`
# shows the present one, and --build-arg BASE=... takes any other image.
ARG BASE=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

# The dependencies have their own stage here and their own layer below, so that a change in pbu_cli/
# rebuilds and ships kilobytes instead of gigabytes. Nothing is installed whose hash is not in a lock.
# Two things are done to the dependencies:
# - triton (1 GB) is removed. It compiles kernels at run time, which needs a C compiler, and the image
#   has none.
# - Bytecode is compiled now. A user who is not root could not store it later and would wait for it
#   at every start. It is not checked against time stamps, because COPY may change them. Some packages
#   contain files for other Python versions, which do not compile: hence the `|| true`.
FROM ${BASE} AS dependencies
WORKDIR /build
COPY requirements.lock ./
RUN python3 -m venv --without-pip /opt/pbu \
    && python3 -m pip --python /opt/pbu/bin/python install --no-cache-dir --no-compile --require-hashes -r requirements.lock \
    && python3 -m pip --python /opt/pbu/bin/python uninstall --yes triton \
    && { python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/pbu/lib || true; }

FROM ${BASE} AS tools
WORKDIR /build
COPY .ci/build.lock ./
RUN python3 -m venv --without-pip /opt/tools \
    && python3 -m pip --python /opt/tools/bin/python install --no-cache-dir --require-hashes -r build.lock

FROM tools AS wheel
COPY . .
RUN python3 -m pip --python /opt/tools/bin/python wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /dist .

# The bill of materials (CycloneDX) of what the dependencies' stage has installed.
FROM tools AS sbom
COPY .ci/sbom ./
RUN --mount=type=bind,from=dependencies,source=/opt/pbu,target=/opt/pbu \
    PATH=/opt/tools/bin:$PATH ./sbom /build/sbom.cdx.json /opt/pbu/bin/python

FROM ${BASE}
LABEL org.opencontainers.image.title="pbu" \
      org.opencontainers.image.description="Make a trained classifier forget a class, from its checkpoint and the images of that class alone" \
      org.opencontainers.image.licenses="Apache-2.0"
# HOME and USER: a uid may have no passwd entry, and libraries ask for a cache folder and a name.
# No bytecode is written at run time: it would land beside the user's own --arch FILE.py.
ENV HOME=/tmp \
    USER=pbu \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The python images come without bytecode for the standard library, so it is compiled here too.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp pbu \
    && install --directory --mode 1777 /work \
    && python3 -m compileall -q -j 0 -x packages/ "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')"
COPY --from=dependencies /opt/pbu /opt/pbu
COPY --from=sbom /build/sbom.cdx.json /opt/pbu/sbom.cdx.json
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3 -m pip --python /opt/pbu/bin/python install --no-cache-dir --no-deps /dist/*.whl
ENV PATH=/opt/pbu/bin:$PATH
USER 10001:10001
WORKDIR /work
# pbu is process 1, so that it receives the SIGTERM of `docker stop`. It has a handler for it; process
# 1 ignores a signal without one.
ENTRYPOINT ["pbu"]
CMD ["--help"]
